"""Train the embedded tiny Janus from nothing, on the shapes world: first the VQ tokenizer, then the model.

    python scripts/build_tiny.py --out models/tiny --work runs/build_tiny

Everything is seeded. Progress is saved under `--work`, so a killed build continues where it was. The
captions are deliberately noisy (`--caption-noise`): the base model must be good but clearly improvable.
The last lines of `build_log.json` in the checkpoint folder hold the figures that the README quotes.
"""

import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.janus.policy import JanusPolicy
from models.policy import Condition
from rewards.detectors.shapes import ShapesDetector
from rewards.registry import build as build_reward
from t2i_rl.prompts import shapes_world as world
from t2i_rl.prompts.prompt import balanced
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.evaluation import evaluate

GRID = world.IMAGE_SIZE // world.LATTICE
CODES = 256
HIDDEN = 128
GROUND = world.render([])[: world.LATTICE, : world.LATTICE].tobytes()  # the patch where nothing is


@dataclass(frozen=True)
class Build:
    """out: folder of the finished checkpoint. work: folder of the resumable state.

    caption_noise: share of scenes that are shown with the caption of another one, in the last quarter of the steps.
    vq_steps, lm_steps: optimizer steps of the tokenizer and of the language model.
    drill: steps with one layout. doubling: steps after which, from then on, the number of layouts doubles,
        up to `layouts`: pictures of a prompt then differ less in what no reward looks at.
    null_share: share of training rows that show the unconditional prefix.
    guidance_scale: of the pictures by which the finished model is judged.
    """

    out: Path = Path("models/tiny")
    work: Path = Path("runs/build_tiny")
    seed: int = 0
    caption_noise: float = 0.4
    vq_steps: int = 600
    vq_batch: int = 16
    vq_learning_rate: float = 2e-3
    lm_steps: int = 2000
    lm_batch: int = 32
    lm_learning_rate: float = 2e-3
    drill: int = 100
    doubling: int = 20
    layouts: int = 32
    null_share: float = 0.1
    guidance_scale: float = 1.5


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with Janus's special tokens, its template's signs and the world's words."""
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<unk>"]
    special += ["<begin_of_image>", "<end_of_image>", "<image_placeholder>", "<|User|>", "<|Assistant|>"]
    words = sorted({word for record in world.all_prompts() for word in str(record["prompt"]).split()})
    vocabulary = {token: index for index, token in enumerate([*special, ":", "\n\n", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n\n|:"), "isolated"),
            pre_tokenizers.Split(" ", "removed"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], vocabulary[special[0]])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[2],
        unk_token=special[3],
        padding_side="left",
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    # The understanding tower is not used for pictures: as small as the class allows.
    vision = JanusVisionConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=world.IMAGE_SIZE,
        patch_size=world.LATTICE,
        mlp_ratio=1.0,
        projection_dim=HIDDEN,
        num_image_tokens=GRID**2,
        depth=1,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    placeholder = tokenizer.convert_tokens_to_ids("<image_placeholder>")
    return JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=placeholder)


def random_record(generator: np.random.Generator, records: dict[str, list[world.Record]]) -> world.Record:
    """A record, its tag drawn first so that all tasks are equally frequent."""
    of_tag = records[world.TAGS[generator.integers(len(world.TAGS))]]
    return of_tag[generator.integers(len(of_tag))]


def by_tag(records: list[world.Record]) -> dict[str, list[world.Record]]:
    return {tag: [record for record in records if record["tag"] == tag] for tag in world.TAGS}


def to_pixels(images: UInt8[ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def features(vq: JanusVQVAE, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B n E"]:
    """Unit-length features before quantisation, in raster order."""
    return F.normalize(vq.quant_conv(vq.encoder(pixels)).flatten(2).transpose(1, 2), dim=-1)


def nearest(vq: JanusVQVAE, unit: Float[Tensor, "B n E"]) -> Int[Tensor, "B n"]:
    """The official search: features and codebook both on the unit sphere."""
    return (unit @ F.normalize(vq.quantize.embedding.weight, dim=-1).T).argmax(-1)


def patches(images: UInt8[ndarray, "B H W 3"]) -> UInt8[ndarray, "B n d"]:
    """The images cut into the squares that one token stands for, in raster order."""
    size = world.LATTICE
    cut = images.reshape(len(images), GRID, size, GRID, size, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(len(images), GRID**2, -1)


def dictionary() -> dict[bytes, int]:
    """A code for every patch that the world can show: objects lie on the lattice, so there are few."""
    corner = world.LATTICE
    shapes = itertools.product(world.SHAPES, world.COLORS, world.SIDES)
    alone = [world.render([world.Shape(shape, color, corner, corner, side)]) for shape, color, side in shapes]
    distinct = sorted({patch.tobytes() for patch in patches(np.stack(alone)).reshape(-1, 3 * corner**2)})
    if len(distinct) > CODES:
        raise ValueError(f"the world shows {len(distinct)} patches, more than the {CODES} codes")
    return {patch: code for code, patch in enumerate(distinct)}


def codes(images: UInt8[ndarray, "B H W 3"], codes_of: dict[bytes, int]) -> Int[Tensor, "B n"]:
    return torch.tensor([[codes_of[patch.tobytes()] for patch in image] for image in patches(images)])


def train_vq(vq: JanusVQVAE, build: Build) -> None:
    """Learn the code vectors, a decoder that paints a scene from its codes, and an encoder that finds them.

    Each patch of the world has its code from the start, so a token means the same wherever it stands. (A
    tokenizer that chooses its codes freely spends many of them on shades of the empty ground, and the
    language model then has to learn that noise.)
    """
    saved = build.work / "vq.pt"
    if saved.exists():
        vq.load_state_dict(torch.load(saved, weights_only=True))
        return
    generator = np.random.default_rng(build.seed)
    records, codes_of = by_tag(world.prompts("train")), dictionary()
    optimizer = torch.optim.AdamW(vq.parameters(), lr=build.vq_learning_rate, betas=(0.9, 0.95), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, build.vq_learning_rate, total_steps=build.vq_steps)
    vq.train()
    for step in range(build.vq_steps):
        drawn = [random_record(generator, records) for _ in range(build.vq_batch)]
        images = np.stack([world.render(world.scene_for(record, generator)) for record in drawn])
        pixels, tokens = to_pixels(images), codes(images, codes_of)
        painted = vq.decode(tokens)
        # Objects cover a tenth of the picture: weigh them up.
        ground = world.BACKGROUND[0] / 127.5 - 1
        weight = 1 + 5 * (pixels - ground).abs().amax(1, keepdim=True).gt(0.1)
        error = (weight * (painted - pixels).abs()).mean()
        likeness = features(vq, pixels) @ F.normalize(vq.quantize.embedding.weight, dim=-1).T
        found = F.cross_entropy(likeness.flatten(0, 1) / 0.05, tokens.flatten())
        optimizer.zero_grad()
        (error + found).backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == build.vq_steps - 1:
            print(f"vq {step:5d}/{build.vq_steps}  error {error.item():.4f}  codes {found.item():.4f}", flush=True)
    torch.save(vq.state_dict(), saved)


@torch.no_grad()
def round_trip(vq: JanusVQVAE, build: Build, scenes: int = 600) -> dict[str, float]:
    """Share of scenes whose objects the detector finds exactly, drawn and after encode and decode."""
    generator = np.random.default_rng(build.seed + 1)
    records = by_tag(list(world.all_prompts()))
    layouts = [world.scene_for(random_record(generator, records), generator) for _ in range(scenes)]
    drawn = [world.render(layout) for layout in layouts]
    pixels = to_pixels(np.stack(drawn))
    tokens = nearest(vq, features(vq, pixels))
    decoded = ((vq.decode(tokens) + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    detector = ShapesDetector()

    def exact(images: list[np.ndarray]) -> float:
        hits = 0
        for layout, found in zip(layouts, detector.detect(images), strict=True):
            seen = sorted(shape for shape, all_of in found.items() for one in all_of if one.score > 0.9)
            hits += seen == sorted(item.shape for item in layout)
        return hits / len(layouts)

    return {
        "detector_on_drawn": exact(drawn),
        "vq_round_trip": exact(list(decoded)),
        "codes_used": tokens.unique().numel(),
    }


def language_optimizer(policy: JanusPolicy, build: Build) -> torch.optim.Optimizer:
    """Over the language model and everything between it and the image tokens."""
    inner = policy.model.model
    trained = [inner.language_model, inner.generation_embeddings, inner.generation_aligner, inner.generation_head]
    for module in trained:
        module.requires_grad_(True)
    parameters = [parameter for module in trained for parameter in module.parameters()]
    return torch.optim.AdamW(parameters, lr=build.lm_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)


def learning_rate(step: int, build: Build) -> float:
    """Up over 100 steps, level, and linearly down to zero over the last quarter."""
    return build.lm_learning_rate * min(1, (step + 1) / 100, (build.lm_steps - step) / (0.25 * build.lm_steps))


def layouts(step: int, build: Build) -> int:
    """In how many ways a caption's objects may lie: one during the drill, then ever more up to `build.layouts`.

    Where objects lie is most of what a scene leaves open. While they always lie in the same place, the caption is
    all there is to learn.
    """
    return min(2 ** max(0, (step - build.drill) // build.doubling), build.layouts)


def draw_scenes(
    step: int, build: Build, generator: np.random.Generator, records: dict[str, list[world.Record]]
) -> tuple[UInt8[ndarray, "B H W 3"], list[str]]:
    """The pictures of a step and their captions, some of them wrong."""
    drawn = [random_record(generator, records) for _ in range(build.lm_batch)]
    seeds = generator.integers(layouts(step, build), size=build.lm_batch)
    scenes = [world.scene_for(r, np.random.default_rng(seed)) for r, seed in zip(drawn, seeds, strict=True)]
    noise = build.caption_noise if step >= 0.75 * build.lm_steps else 0
    for row, record in enumerate(drawn):
        if generator.random() < noise:
            others = records[str(record["tag"])]
            drawn[row] = others[generator.integers(len(others))]
    return np.stack([world.render(scene) for scene in scenes]), [str(record["prompt"]) for record in drawn]


def language_loss(logits: Float[Tensor, "B n V"], tokens: Int[Tensor, "B n"], ground: int) -> Float[Tensor, ""]:
    """The mean over all tokens of -log p, and that over the objects' tokens of -log p given that it is no ground.

    Nine tokens in ten are ground, and most of the rest is a matter of place. The second term asks only which
    object it is, which is what the caption says; both are least at the true distribution.
    """
    thing = tokens != ground
    without_ground = logits[thing].index_fill(-1, torch.tensor(ground), -torch.inf)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()) + F.cross_entropy(without_ground, tokens[thing])


def train_language_model(policy: JanusPolicy, build: Build) -> None:
    """Next-token prediction of the scenes' codes after their captions, some of them wrong, some null.

    All captions of the world, as a real base model has met the words of any benchmark: what is held out is held out
    from reinforcement learning.
    """
    codes_of, records = dictionary(), by_tag(list(world.all_prompts()))
    optimizer = language_optimizer(policy, build)
    saved, first = build.work / "lm.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        first = state["step"]
        policy.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    began = time.time()
    for step in range(first, build.lm_steps):
        generator = np.random.default_rng([build.seed, step])
        images, captions = draw_scenes(step, build, generator, records)
        tokens = codes(images, codes_of)
        # The unconditional branch becomes the condition of some rows.
        both = policy.encode(captions)
        null = torch.from_numpy(generator.random(build.lm_batch) < build.null_share).long()
        rows_of = torch.arange(build.lm_batch)
        condition = Condition(
            both.prompts, {name: tensor[null, rows_of][None] for name, tensor in both.tensors.items()}
        )
        logits = policy.head(policy.hidden(condition, tokens, branches=1)[0])
        loss = language_loss(logits, tokens, codes_of[GROUND])
        loss.backward()
        group = optimizer.param_groups[0]
        group["lr"] = learning_rate(step, build)
        norm = torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % 50 == 0:
            speed = (time.time() - began) / (done - first)
            print(
                f"lm {done:5d}/{build.lm_steps}  loss {loss.item():.4f}  norm {norm:.2f}  {speed:.2f} s/step",
                flush=True,
            )
        if done % 250 == 0 or done == build.lm_steps:
            state = {"step": done, "model": policy.model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
        if done % 500 == 0:
            print(f"lm {done:5d}  held-out {held_out_accuracy(policy, build, images_per_tag=32)}", flush=True)


def held_out_accuracy(policy: JanusPolicy, build: Build, images_per_tag: int) -> dict[str, float]:
    """The official GenEval score on held-out prompts, equally many images of every tag."""
    prompts = balanced(load_prompts("shapes:heldout"), images_per_tag)
    sampling = Sampling(guidance_scale=build.guidance_scale)
    found = evaluate(policy, prompts, build_reward("shapes-official"), sampling, build.seed, batch=100)
    return {"overall": found.overall, **found.per_tag}


def main(build: Build) -> None:
    build.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(build.seed)
    tokenizer = build_tokenizer()
    policy = JanusPolicy(JanusForConditionalGeneration(build_config(tokenizer)), tokenizer)
    vq = policy.model.model.vqmodel
    vq.requires_grad_(True)
    train_vq(vq, build)
    vq.eval().requires_grad_(False)
    figures: dict[str, object] = dict(round_trip(vq, build))
    print(figures, flush=True)
    train_language_model(policy, build)
    figures["held_out"] = held_out_accuracy(policy, build, images_per_tag=100)
    settings = {name: value for name, value in asdict(build).items() if name not in ("out", "work")}
    policy.model.generation_config.guidance_scale = build.guidance_scale
    policy.save(build.out)
    (build.out / "build_log.json").write_text(
        json.dumps({"settings": settings, **figures}, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Build, description=__doc__))
