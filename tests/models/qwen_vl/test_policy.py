"""Qwen-VL as a policy: transformers' own numbers, and what batching, caching, saving and freezing must not change."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from models.errors import ModelError
from models.lora import adapt
from models.question import Question
from models.qwen_vl import policy as qwen_vl
from models.qwen_vl.policy import QwenVLPolicy
from tests.models.small_qwen_vl import KINDS, picture, random_qwen

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SHAPES = picture(0, 16, 24)
QUESTIONS = (
    Question("<image> how many circle are there ?", (SHAPES,)),
    Question("how many is one and two ?"),
    Question("is <image> left of <image> ? the blue", (picture(1, 8, 16), picture(2, 24, 16))),
)
NEGATIVES = (
    Question("<image> how many ? . . .", (SHAPES,)),
    Question("a"),
    Question("<image> <image> count", QUESTIONS[2].pictures),
)
ANSWER = 6


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    random_qwen(request.param, folder).save(folder)
    return folder


@pytest.fixture
def policy(saved: Path) -> QwenVLPolicy:
    return QwenVLPolicy.load(saved)


def tokens_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 25, (rows, ANSWER), generator=torch.Generator().manual_seed(seed))


def forced_logits(policy: QwenVLPolicy, rows: slice, tokens: Tensor) -> Tensor:
    """Teacher-forced logits `[2, R, N, V]`."""
    condition = policy.encode(QUESTIONS[rows], NEGATIVES[rows])
    return policy.head(policy.hidden(condition, tokens, branches=2))


def decoded_logits(policy: QwenVLPolicy, rows: slice, tokens: Tensor) -> Tensor:
    """Logits `[2, R, N, V]` on the way through the cache, fed with the given tokens."""
    state = policy.prefill(policy.encode(QUESTIONS[rows], NEGATIVES[rows]), 1, branches=2)
    logits = [policy.next_logits(state)]
    for token in tokens[:, :-1].split(1, dim=1):
        policy.append(state, token)
        logits.append(policy.next_logits(state))
    return torch.cat(logits, dim=2)


def original_logits(folder: Path, question: Question, tokens: Tensor) -> Tensor:
    """Logits `[N, V]` of transformers alone, with all that it wants to be told."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    content = []
    for index, piece in enumerate(question.text.split("<image>")):
        content += [{"type": "image"}] * (index > 0) + [{"type": "text", "text": piece}] * bool(piece)
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    read = processor(
        text=[chat], images=[Image.fromarray(pixels) for pixels in question.pictures] or None, return_tensors="pt"
    )
    ids = torch.cat([read.pop("input_ids"), tokens[None]], dim=1)
    read.pop("attention_mask")
    if (types := read.pop("mm_token_type_ids", None)) is not None:
        read["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, len(tokens)))
    with torch.no_grad():
        return model(input_ids=ids, **read).logits[0, -len(tokens) - 1 : -1]


def test_the_logits_of_transformers(saved: Path, policy: QwenVLPolicy):
    """A picture at the start, none, two in the middle: positions, pictures and template are the original's."""
    tokens = tokens_of(len(QUESTIONS))
    for branch, asked in zip(forced_logits(policy, slice(None), tokens), (QUESTIONS, NEGATIVES), strict=True):
        for found, question, row in zip(branch, asked, tokens, strict=True):
            torch.testing.assert_close(found, original_logits(saved, question, row), atol=5e-5, rtol=1e-4)


def test_a_picture_that_has_to_be_resized(saved: Path, policy: QwenVLPolicy):
    for seed, size in enumerate([(19, 45), (3, 40), (50, 50), (9, 8)]):
        question, tokens = Question("<image> ?", (picture(seed, *size),)), tokens_of(1)
        found = policy.head(policy.hidden(policy.encode([question]), tokens, 1))[0, 0]
        torch.testing.assert_close(found, original_logits(saved, question, tokens[0]), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("logits_of", [forced_logits, decoded_logits])
def test_a_question_alone_and_in_a_mixed_batch(policy: QwenVLPolicy, logits_of):
    tokens = tokens_of(len(QUESTIONS))
    together = logits_of(policy, slice(None), tokens)
    for row in range(len(QUESTIONS)):
        alone = logits_of(policy, slice(row, row + 1), tokens[row : row + 1])
        torch.testing.assert_close(together[:, row], alone[:, 0], atol=5e-5, rtol=1e-4)


def test_the_cached_steps_equal_one_teacher_forced_pass(policy: QwenVLPolicy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qwen_vl, "CACHE_SLOTS", 2)  # so that it grows, twice
    tokens, group = tokens_of(2 * len(QUESTIONS)), 2
    condition = policy.encode(QUESTIONS, NEGATIVES)
    state = policy.prefill(condition, group, branches=2)
    logits = [policy.next_logits(state)]
    for token in tokens[:, :-1].split(1, dim=1):
        policy.append(state, token)
        logits.append(policy.next_logits(state))
    forced = policy.head(policy.hidden(condition.repeat(group), tokens, branches=2))
    torch.testing.assert_close(torch.cat(logits, dim=2), forced, atol=5e-5, rtol=1e-4)


def test_what_stands_behind_an_end_reaches_nothing_before(policy: QwenVLPolicy):
    tokens, other = tokens_of(len(QUESTIONS)), tokens_of(len(QUESTIONS), seed=1)
    other[:, :4] = tokens[:, :4]
    other[:, 4:] = policy.model.config.image_token_id  # that of a picture, too
    found, garbage = (forced_logits(policy, slice(None), row)[:, :, :5] for row in (tokens, other))
    assert torch.equal(found, garbage)


def test_the_tower_reads_a_picture_once(policy: QwenVLPolicy):
    read: list[int] = []
    policy.tower.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    condition = policy.encode([*QUESTIONS, QUESTIONS[0]], [*NEGATIVES, NEGATIVES[0]])
    patches = 4 * 6 + 2 * 4 + 6 * 4
    policy.prefill(condition, group_size=3, branches=2)
    policy.hidden(condition.repeat(3), tokens_of(12), branches=2)
    policy.hidden(condition.take([1]), tokens_of(1), branches=2)  # no picture, no tower
    assert read == [patches, patches]


def gradients(policy: QwenVLPolicy, rows: list[int], tokens: Tensor) -> dict[str, Tensor]:
    policy.module.zero_grad()
    condition = policy.encode(QUESTIONS, NEGATIVES).take(rows)
    logits = policy.head(policy.hidden(condition, tokens, branches=2))
    logits.log_softmax(-1)[..., 0].sum().backward()
    return {name: value.grad.clone() for name, value in policy.module.named_parameters() if value.grad is not None}


def test_the_gradient_of_answers_that_share_a_picture(policy: QwenVLPolicy):
    tokens = tokens_of(4)
    together = gradients(policy, [0, 0, 1, 2], tokens)
    assert together.keys() == {name for name, _ in policy.module.named_parameters()}
    assert all(value.abs().sum() > 0 for value in together.values())
    alone = [gradients(policy, [row], tokens[[place]]) for place, row in enumerate([0, 0, 1, 2])]
    for name, value in together.items():
        total = sum(part[name] for part in alone if name in part)
        torch.testing.assert_close(value, total, atol=1e-4 * value.abs().max().item(), rtol=1e-3)


def test_recomputed_layers_of_the_tower_too(policy: QwenVLPolicy):
    kept: dict[bool, int] = {}
    found = {}
    for recompute in (False, True):
        policy.gradient_checkpointing, sizes = recompute, []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            policy._features(policy.encode(QUESTIONS[:1]).pictures[0][0])
        kept[recompute], found[recompute] = sum(sizes), gradients(policy, [0, 2], tokens_of(2))
    assert all(torch.equal(found[True][name], value) for name, value in found[False].items())
    assert kept[True] < 0.6 * kept[False]
    assert not any("forward" in vars(block) for block in policy.tower.blocks)


def test_adapters_leave_the_tower_and_the_base_alone(saved: Path, policy: QwenVLPolicy):
    before = forced_logits(policy, slice(None), tokens_of(3))
    adapted = adapt(policy, str(saved), rank=2, alpha=4.0)
    condition, tokens = adapted.encode(QUESTIONS, NEGATIVES), tokens_of(3)
    assert torch.equal(adapted.head(adapted.hidden(condition, tokens, 2)), before)
    adapted.head(adapted.hidden(condition, tokens, 2)).square().sum().backward()
    moved = {name for name, value in adapted.module.named_parameters() if value.grad is not None}
    assert moved and all("language_model.layers" in name and "lora_" in name for name in moved)
    assert (adapted.stop_tokens, adapted.never) == (policy.stop_tokens, policy.never)
    assert adapted.decode(tokens) == policy.decode(tokens)


def test_plain_transformers_reads_what_is_saved(policy: QwenVLPolicy, tmp_path: Path):
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.05)
    policy.save(tmp_path)
    tokens = tokens_of(1)
    found = policy.head(policy.hidden(policy.encode(QUESTIONS[:1]), tokens, 1))[0, 0]
    torch.testing.assert_close(original_logits(tmp_path, QUESTIONS[0], tokens[0]), found, atol=5e-5, rtol=1e-4)
    again = QwenVLPolicy.load(tmp_path)
    assert torch.equal(again.head(again.hidden(again.encode(QUESTIONS[:1]), tokens, 1))[0, 0], found)
    assert (again.stop_tokens, again.layout) == (policy.stop_tokens, policy.layout)


def test_the_reference_stays_as_it_was(policy: QwenVLPolicy):
    reference, tokens = policy.reference(), tokens_of(3)
    before = forced_logits(policy, slice(None), tokens)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    assert torch.equal(forced_logits(reference, slice(None), tokens), before)
    assert not torch.equal(forced_logits(policy, slice(None), tokens), before)
    assert not list(reference.trainable_parameters())


def test_answers_are_read_up_to_their_stop_token(policy: QwenVLPolicy):
    known = policy.processor.tokenizer.get_vocab()
    end, other = policy.stop_tokens
    rows = [
        [known["two"], known["red"], end, known["blue"]],
        [known["two"], known["<|im_start|>"], known["circle"], known["one"]],
        [other, known["two"], end, end],
    ]
    assert policy.decode(torch.tensor(rows)) == ["two red", "two circle one", ""]
    assert set(policy.never) == {
        known[f"<|{mark}|>"] for mark in ("image_pad", "video_pad", "vision_start", "vision_end")
    }


def test_questions_are_known_by_text_and_pictures(policy: QwenVLPolicy):
    condition = policy.encode(["how many", *QUESTIONS])
    assert condition.prompts == ("how many", *(question.key for question in QUESTIONS))
    assert condition.take([2, 0]).pictures == ((condition.pictures[0][2], condition.pictures[0][0]),)


def test_there_is_no_branch_without_a_prompt(policy: QwenVLPolicy):
    with pytest.raises(ModelError, match="no branch without a prompt: give a negative prompt, or guidance 1"):
        policy.prefill(policy.encode(QUESTIONS), 1, branches=2)
    assert policy.default_guidance == 1 and bool((policy.guidance(1.0) == 1).all())
    with pytest.raises(ModelError, match="have no codebook"):
        policy.token_embeddings(tokens_of(1), "codebook")
    assert policy.token_embeddings(tokens_of(1), "lm_input").shape == (1, ANSWER, 32)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question("how many ?", (SHAPES,)), r"'how many \?' has 0 mark\(s\) <image> and 1 picture\(s\)"),
        (Question("<image> <image>", (SHAPES,)), r"2 mark\(s\) <image> and 1 picture"),
        (Question("a <|image_pad|> <image>", (SHAPES,)), r"holds <\|image_pad\|>, which stands for pictures"),
        (Question("<image>", (SHAPES.astype("float32"),)), r"float32 \[16, 24, 3\]: it has to be uint8"),
        (Question("<image>", (SHAPES[..., 0],)), r"uint8 \[16, 24\]: it has to be uint8 of height, width"),
        (Question("<image>", (picture(0, 1, 201),)), r"201x1 pixels: no side may be over 200 times the other"),
    ],
)
def test_what_cannot_be_asked_is_refused(policy: QwenVLPolicy, question: Question, says: str):
    with pytest.raises(ModelError, match=says):
        policy.encode([question])
