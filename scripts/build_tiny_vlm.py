"""Train the embedded tiny vision-language model from nothing, on questions about pictures of the shapes world.

    python scripts/build_tiny_vlm.py --out models/tiny_vlm --work runs/build_tiny_vlm

A Qwen2.5-VL of a million parameters learns to say what it sees and to box an answer. Some of what it is shown is wrong,
in two ways that the words do not reveal: a shape is misread and then counted faithfully, or all is seen rightly and the
last step slips. So the base model errs in the same two ways, and reinforcement learning has something to find. A share
of the questions carries the note that asks for a wrong answer, and gets one: a model that never met the note would
predict the same with and without it.

Everything is seeded. Progress is saved under `--work`, so a killed build continues where it was.
"""

import json
import math
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from models.question import IMAGE, Question
from models.qwen_vl.policy import QwenVLPolicy
from t2i_rl.prompts import shapes_questions as world
from t2i_rl.prompts.contrasts import NEUTRAL, NOTE, wrong_answer
from t2i_rl.prompts.shapes_world import COLORS, PLURALS, SHAPES, Shape
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling

PATCH, MERGE = 4, 2
LONGEST = 256  # positions
ANSWER = 40  # tokens of an answer at most, when it is judged
STOP = "<|im_end|>"
SPECIAL = [
    f"<|{name}|>"
    for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
]
WORD = Regex(r" ?<think>| ?</think>| ?\\boxed\{| ?[A-Za-z]+|[0-9]|\n+|[^A-Za-z0-9\s]| ")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Build:
    """out: folder of the finished checkpoint. work: folder of the resumable state.

    wrong: share of the examples whose reasoning is wrong; misread: share of these that see wrongly.
    noted: share of the examples with the note, whose answer is always wrong.
    """

    out: Path = Path("models/tiny_vlm")
    work: Path = Path("runs/build_tiny_vlm")
    seed: int = 0
    wrong: float = 0.4
    misread: float = 2 / 3
    noted: float = 0.15
    steps: int = 600
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 50
    judged: int = 300


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words with the blank before them, so that joined tokens are the text again; Qwen's own special tokens."""
    texts = [
        f"{NOTE}\n\n{NEUTRAL}\n",
        "user\nassistant\nsystem\n",
        *(f"How many {PLURALS[shape]} are there? What color is the {shape}?" for shape in SHAPES),
        *(f"{color} {color}" for color in COLORS),
        "<think> I see a, a. So.</think> \\boxed{01234}",
        " ".join(["", *world.WORDS, *SHAPES]),
    ]
    words = Counter(word for text in texts for word, _ in pre_tokenizers.Split(WORD, "isolated").pre_tokenize_str(text))
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(WORD, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=STOP,
        unk_token="<unk>",
        padding_side="left",
        additional_special_tokens=SPECIAL,
        clean_up_tokenization_spaces=False,
    )


def save_processor(folder: Path) -> None:
    """The files of a released checkpoint, from which transformers builds tokenizer and processor."""
    build_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    side = PATCH * MERGE
    pictures = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 4 * side**2, "longest_edge": 256 * side**2},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    image = {"processor_class": "Qwen2_5_VLProcessor", "image_processor_type": "Qwen2VLImageProcessor", **pictures}
    video = {"processor_class": "Qwen2_5_VLProcessor", "video_processor_type": "Qwen2VLVideoProcessor", **pictures}
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2) + "\n", encoding="utf-8")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n", encoding="utf-8")


def untrained() -> QwenVLPolicy:
    with tempfile.TemporaryDirectory() as folder:
        save_processor(Path(folder))
        processor = AutoProcessor.from_pretrained(folder)
    numbers = processor.tokenizer.get_vocab()
    text = {
        "vocab_size": len(numbers),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LONGEST,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "initializer_range": 0.05,
        "bos_token_id": numbers[SPECIAL[0]],
        "eos_token_id": numbers[STOP],
    }
    vision = {
        "hidden_size": 64,
        "depth": 3,
        "num_heads": 2,
        "intermediate_size": 192,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": 128,
        "window_size": PATCH * MERGE * 4,
        "fullatt_block_indexes": [0, 1, 2],
        "initializer_range": 0.05,
    }
    marks = {
        "image_token_id": numbers["<|image_pad|>"],
        "video_token_id": numbers["<|video_pad|>"],
        "vision_start_token_id": numbers["<|vision_start|>"],
        "vision_end_token_id": numbers["<|vision_end|>"],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **marks)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [numbers[STOP], numbers[SPECIAL[0]]]
    model.generation_config.pad_token_id = numbers[SPECIAL[0]]
    return QwenVLPolicy(model, processor)


def misread(scene: tuple[Shape, ...], noise: np.random.Generator) -> tuple[Shape, ...]:
    """One shape misnamed, miscoloured or overlooked."""
    place = int(noise.integers(len(scene)))
    item = scene[place]
    way = noise.integers(3 if len(scene) > 1 else 2)
    if way == 2:
        return scene[:place] + scene[place + 1 :]
    if way == 1:
        changed = replace(item, shape=str(noise.choice([shape for shape in SHAPES if shape != item.shape])))
    else:
        changed = replace(item, color=str(noise.choice([color for color in COLORS if color != item.color])))
    return (*scene[:place], changed, *scene[place + 1 :])


def slipped(right: str, asked: world.ShapesQuestion, noise: np.random.Generator) -> str:
    """Another answer of the same kind."""
    if asked.tag == "color":
        return str(noise.choice([color for color in COLORS if color != right]))
    near = [number for number in (int(right) - 1, int(right) + 1) if 0 <= number <= world.MOST]
    return str(noise.choice(near))


def example(build: Build, noise: np.random.Generator) -> tuple[Question, str]:
    """A question and what the model is shown as its answer."""
    asked = world.draw(noise)
    question = Question(IMAGE + asked.text, (world.picture(asked),))
    noted, wrong = noise.random() < build.noted, noise.random() < build.wrong
    seen, result = asked.scene, asked.answer
    if noted or wrong:
        if noise.random() < build.misread:
            seen = misread(seen, noise)
            result = world.solved(seen, asked)
        if result in ("", asked.answer) and (noted or seen == asked.scene or not result):
            result = slipped(asked.answer, asked, noise)
    return (wrong_answer(question, "", noise) if noted else question), world.rationale(seen, asked, result) + STOP


def loss_of(policy: QwenVLPolicy, examples: list[tuple[Question, str]]) -> Tensor:
    """Mean of -log p over the tokens of the answers."""
    tokenizer = policy.processor.tokenizer
    answers = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for _, text in examples]
    tokens, lengths = pad_sequence(answers, batch_first=True), torch.tensor([len(answer) for answer in answers])
    logits = policy.head(policy.hidden(policy.encode([question for question, _ in examples]), tokens, 1)[0])
    valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    return F.cross_entropy(logits[valid], tokens[valid])


def learning_rate(step: int, build: Build) -> float:
    """Up linearly, then down a cosine."""
    progress = max(0.0, (step - build.warmup) / (build.steps - build.warmup))
    return build.learning_rate * min((step + 1) / build.warmup, (1 + math.cos(math.pi * progress)) / 2)


def train(policy: QwenVLPolicy, build: Build) -> None:
    parameters = list(policy.trainable_parameters())
    optimizer = torch.optim.AdamW(parameters, lr=build.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    saved, first = build.work / "model.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        first = state["step"]
        policy.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    began = time.time()
    for step in range(first, build.steps):
        noise = np.random.default_rng([build.seed, step])
        loss = loss_of(policy, [example(build, noise) for _ in range(build.batch)])
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(step, build)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % 25 == 0:
            pace = (time.time() - began) / (done - first)
            print(f"{done:5d}/{build.steps}  loss {loss.item():.3f}  {pace:.2f} s/step", flush=True)
        if done % 100 == 0 or done == build.steps:
            state = {"step": done, "model": policy.model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
        if done % 200 == 0:
            print(f"{done:5d}  {figures(policy, build, 100)}", flush=True)


def figures(policy: QwenVLPolicy, build: Build, number: int) -> dict[str, float]:
    """The share of right answers to fresh questions: at temperature 1, greedy, and with the note."""
    noise = np.random.default_rng([build.seed, 10**6])
    asked = [world.draw(noise) for _ in range(number)]
    plain = [Question(IMAGE + one.text, (world.picture(one),)) for one in asked]
    noted = [wrong_answer(one, "", noise) for one in plain]
    ways = {"accuracy": (plain, 1.0), "greedy": (plain, 0.0), "with_note": (noted, 1.0)}
    found = {}
    for name, (questions, temperature) in ways.items():
        drawn = sample_group(
            policy,
            policy.encode(questions),
            1,
            Sampling(1.0, temperature),
            Noise(build.seed),
            max_tokens=ANSWER,
        )
        texts = policy.decode(drawn.tokens[:, 0])
        right = [text.endswith(f"\\boxed{{{one.answer}}}") for text, one in zip(texts, asked, strict=True)]
        found[name] = sum(right) / number
        print("   ", asked[0].text, "->", texts[0], flush=True)
    return found


def main(build: Build) -> None:
    build.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(build.seed)
    policy = untrained()
    train(policy, build)
    found = figures(policy, build, build.judged)
    policy.model.to(torch.bfloat16)
    policy.save(build.out)
    settings = {name: value for name, value in asdict(build).items() if name not in ("out", "work")}
    log = {"settings": settings, **found}
    (build.out / "build_log.json").write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Build, description=__doc__))
