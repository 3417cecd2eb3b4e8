"""Is a checkpoint what it says it is? What a user with real weights runs first: `t2i-rl check --model ...`.

Every check gives one line, `ok` or `WRONG`, with what was measured. They ask the model for the pictures of a few
prompts, or for answers to questions about a picture, and look at it from both sides: decoding through the cache and
teacher forcing, alone and in a batch.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.architectures import architecture
from models.janus.checkpoint import BEGIN_OF_IMAGE
from models.janus.policy import ROLES, JanusPolicy
from models.llamagen.policy import LlamaGenPolicy
from models.lora import LoraPolicy
from models.policy import Policy
from models.question import IMAGE, Question
from models.qwen_vl.policy import QwenVLPolicy
from models.qwen_vl.prompts import chat
from models.registry import MODELS
from models.star.policy import StarPolicy
from t2i_rl.errors import DivergenceError
from t2i_rl.outputs import aside_of
from t2i_rl.pictures.image_files import contact_sheet
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import log_probs
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling

PROMPTS = (
    "a photo of a red circle",
    "a photo of a bench",
    "a photo of two clocks",
    "a photo of a green cup to the left of a yellow bowl",
)
LONG = "a photo of three small blue ceramic vases in a row on a wooden table in front of a window with white curtains"
# What a model is asked that answers in text: each about a picture whose sides are not alike.
RAMP = np.indices((84, 140)).sum(0)[..., None].repeat(3, axis=2).astype(np.uint8)
QUESTIONS = [Question(f"{IMAGE} Which colour is {prompt}?", (RAMP,)) for prompt in PROMPTS]
LONG_QUESTION = Question(f"{IMAGE}{IMAGE} Is this {LONG}?", (RAMP, RAMP.swapaxes(0, 1).copy()))
ANSWER_TOKENS = 32
# The furthest that two ways of computing the same log-probability may be apart.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0, torch.float16: 0.25}
TYPICAL = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.01}  # their mean
JANUS_IDS = {  # of the released vocabulary
    "<｜begin▁of▁sentence｜>": 100000,
    "<｜end▁of▁sentence｜>": 100001,
    "<｜▁pad▁｜>": 100002,
    BEGIN_OF_IMAGE: 100016,
    "<image_placeholder>": 100581,
    "<end_of_image>": 100593,
}
RELEASED_VOCABULARY = 102400
WIDTH = 26  # of a finding's name


class Finding(NamedTuple):
    """One check: what was looked at, whether it is as it should be, what was seen."""

    name: str
    fine: bool
    seen: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.fine else 'WRONG'}  {self.name:<{WIDTH}}{self.seen}"


def findings(policy: Policy, name: str, sampling: Sampling, seed: int, sheet: Path) -> Iterator[Finding]:
    """The findings, one by one as they are made; the pictures go to `sheet`, answers into the line.

    name: as the model was asked for; a registered one is compared with its family's table.
    """
    yield prompts_read(policy)
    yield from shapes(policy, name)
    yield finite(policy)
    began = time.perf_counter()
    asked = QUESTIONS if policy.stop_tokens else PROMPTS
    limit = ANSWER_TOKENS if policy.stop_tokens else None
    try:
        rollout = sample_group(policy, policy.encode(asked), 1, sampling, Noise(seed), ["logp_cond"], limit)
    except DivergenceError as error:
        yield Finding("logits", False, str(error))
        return  # there is nothing to compare
    if rollout.tokens.is_cuda:
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    yield cached_is_forced(policy, rollout)
    yield alone_is_together(policy, rollout)
    yield answers(policy, rollout) if policy.stop_tokens else pictures(rollout.images(policy)[:, 0], sheet)
    yield speed(policy, rollout, spent)


def prompts_read(policy: Policy) -> Finding:
    """Token ids and template, or what the family has in their place."""
    readers: dict[type, Callable[..., Finding]] = {
        JanusPolicy: janus_prompts,
        LlamaGenPolicy: llamagen_prompts,
        StarPolicy: star_prompts,
        QwenVLPolicy: qwen_prompts,
    }
    whole = base(policy)
    return readers.get(type(whole), other_prompts)(whole)


def other_prompts(policy: Policy) -> Finding:
    """Of a family that was brought along: another prompt is read otherwise."""
    one, another = (policy.encode([asked]).tensors for asked in (QUESTIONS if policy.stop_tokens else PROMPTS)[:2])
    apart = any(one[name].shape != another[name].shape or not torch.equal(one[name], another[name]) for name in one)
    said = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in one.items())
    return Finding("prompts", apart, said if apart else f"two prompts are read alike: {said}")


def base(policy: Policy) -> Policy:
    """The policy without adapters."""
    return policy.base if isinstance(policy, LoraPolicy) else policy


def janus_prompts(policy: JanusPolicy) -> Finding:
    """One BOS, the roles, the prompt, begin-of-image last; PAD between the two in the unconditional branch."""
    condition = policy.encode([PROMPTS[0]])
    row, null = condition.tensors["ids"][:, 0].tolist()
    known = policy.tokenizer.get_vocab()
    bos, pad, image = policy.tokenizer.bos_token_id, policy.tokenizer.pad_token_id, known[BEGIN_OF_IMAGE]
    text = str(policy.tokenizer.decode(row))
    wrong = [
        f"{what} ({text!r})"
        for what, holds in {
            "the row does not begin with one BOS": row[0] == bos and row.count(bos) == 1,
            f"the row does not end with {BEGIN_OF_IMAGE}": row[-1] == image and row.count(image) == 1,
            "the prompt is not read word by word": PROMPTS[0].replace(" ", "") in text.replace(" ", ""),
            "the roles are missing": all(f"{role}:" in text.replace(" ", "") for role in ROLES[policy.prompt_style]),
            "the unconditional row is not BOS, PAD, begin-of-image": null == [bos, *[pad] * (len(row) - 2), image],
        }.items()
        if not holds
    ]
    if policy.language_model.config.vocab_size == RELEASED_VOCABULARY:
        others = {token: number for token, number in JANUS_IDS.items() if known.get(token) != number}
        wrong += [f"{token} is {known.get(token)}, not {number}" for token, number in others.items()]
    return Finding("token ids and template", not wrong, "; ".join(wrong) or repr(text))


def llamagen_prompts(policy: LlamaGenPolicy) -> Finding:
    """Caption features as wide as the projection, none of them empty, and the null caption as long."""
    condition = policy.encode([PROMPTS[0]])
    features, width = condition.tensors["features"], policy.transformer.captions.uncond_embedding.shape[1]
    rows = features.shape[2]
    whole = features.shape[-1] == width and bool(features.abs().sum(-1).gt(0).all())
    different = not torch.equal(features[0], features[1])
    said = f"{rows} features of {features.shape[-1]} channels for {PROMPTS[0]!r}"
    mend = "" if whole and different else f", which should be {width} wide, not zero and unlike the null caption"
    return Finding("caption features", whole and different, said + mend)


def star_prompts(policy: StarPolicy) -> Finding:
    """CLIP's features as wide as the transformer reads, the prompt's visible positions, and an empty prompt beside."""
    condition = policy.encode([PROMPTS[0]])
    hidden, visible = condition.tensors["hidden"], condition.tensors["visible"].sum(-1)[:, 0].tolist()
    width = policy.transformer.sizes.text_width
    fine = hidden.shape[-1] == width and visible[0] > visible[1] >= 2 and bool(hidden.isfinite().all())
    said = f"{visible[0]} tokens of {hidden.shape[2]}, {visible[1]} without a prompt, {hidden.shape[-1]} channels"
    mend = "" if fine else f"; expected {width} channels, and fewer tokens without a prompt"
    return Finding("text features", fine, said + mend)


def qwen_prompts(policy: QwenVLPolicy) -> Finding:
    """The question in the template, up to where the answer begins; a token and a place for each cell of the picture."""
    question = QUESTIONS[0]
    condition = policy.encode([question])
    ids, places = condition.tensors["ids"][0, 0].tolist(), condition.tensors["positions"][0, 0]
    (picture,) = condition.pictures[0][0]
    rows, columns = (side // policy.processor.image_processor.merge_size for side in picture.grid)
    held = [place for place, token in enumerate(ids) if token == policy.model.config.image_token_id]
    text = chat(policy.processor, question.text)
    wrong = [
        what
        for what, holds in {
            "the template does not end where the answer begins": text.rstrip().endswith("assistant"),
            "the question is not in the template": question.text.removeprefix(IMAGE) in text,
            f"the picture has {len(held)} tokens, not {rows} x {columns}": len(held) == rows * columns,
            "the picture's tokens do not stand in its grid": places[:, held].amax(-1).diff().tolist()
            == [rows - 1, columns - rows],
        }.items()
        if not holds
    ]
    said = f"{len(ids)} tokens, {len(held)} of them for the picture's {rows} x {columns} cells: {text!r}"
    return Finding("token ids and template", not wrong, "; ".join(wrong) or said)


def shapes(policy: Policy, name: str) -> Iterator[Finding]:
    """Every tensor against the family's table, where the model is in it."""
    if name not in MODELS:
        yield Finding("shapes", True, f"as config and weights agree; there is no table for {name}")
        return
    table = architecture(name).shapes()
    found = {key: tuple(tensor.shape) for key, tensor in policy.module.state_dict().items()}
    # A checkpoint may come without the understanding tower.
    missing = [key for key in table if key not in found and "vision_model" not in key and "model.aligner" not in key]
    other = [key for key, shape in found.items() if table.get(key) != shape]
    said = f"{len(found)} tensors as in the table of {name}"
    if missing:
        said = f"{len(missing)} tensors of the table of {name} are missing, such as {missing[0]}"
    elif other:
        said = f"{len(other)} tensors differ, such as {other[0]}: {found[other[0]]}, not {table.get(other[0])}"
    yield Finding("shapes", not (missing or other), said)


def finite(policy: Policy) -> Finding:
    """No weight is NaN or infinite, and no matrix of the layers is constant."""
    named = dict(policy.module.named_parameters())
    broken = [key for key, value in named.items() if not bool(value.isfinite().all())]
    layers = {id(parameter) for parameter in base(policy).layers.parameters() if parameter.ndim == 2}
    flat = [key for key, value in named.items() if id(value) in layers and bool((value == value[0, 0]).all())]
    said = f"{sum(value.numel() for value in named.values()) / 1e6:,.1f} million, all finite"
    if broken:
        said = f"{len(broken)} tensors hold NaN or infinity, such as {broken[0]}: copy the checkpoint again"
    elif flat:
        said = f"{len(flat)} matrices hold one number only, such as {flat[0]}: they were never filled"
    return Finding("weights", not (broken or flat), said)


def apart(name: str, one: Float[Tensor, "..."], other: Float[Tensor, "..."], policy: Policy) -> Finding:
    """Two ways to the same log-probabilities; NaN is as far apart as can be."""
    gap, dtype = (one - other).abs(), next(policy.module.parameters()).dtype
    most, mean = gap.max().item(), gap.mean().item()
    fine = most <= TOLERANCE[dtype] and mean <= TYPICAL[dtype]
    said = f"log-probabilities differ by {most:.1e} at most, {mean:.1e} on average"
    said += "" if fine else f"; up to {TOLERANCE[dtype]:g} and {TYPICAL[dtype]:g} is rounding"
    return Finding(name, fine, said)


@torch.no_grad()
def cached_is_forced(policy: Policy, rollout: Rollout) -> Finding:
    """What the sampler saw, token by token through its cache, is what one teacher-forced pass sees."""
    valid = rollout.valid.flatten(0, 1)
    forced = log_probs(policy, rollout.row_condition, rollout.tokens.flatten(0, 1), valid=valid)
    return apart("cached = one pass", rollout.statistics["logp_cond"].flatten(0, 1), forced, policy)


@torch.no_grad()
def alone_is_together(policy: Policy, rollout: Rollout) -> Finding:
    """A prompt beside a much longer one is what it is alone."""
    tokens = rollout.tokens[0]
    asked: list[str | Question] = [QUESTIONS[0], LONG_QUESTION] if policy.stop_tokens else [PROMPTS[0], LONG]
    alone = log_probs(policy, policy.encode(asked[:1]), tokens)
    together = log_probs(policy, policy.encode(asked), tokens.repeat(2, 1))[:1]
    return apart("alone = in a batch", alone, together, policy)


def pictures(images: UInt8[Tensor, "P 3 H W"], sheet: Path) -> Finding:
    """One per prompt, on a sheet; none is blank and no two are alike."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    drawn = contact_sheet([(prompt, [array]) for prompt, array in zip(PROMPTS, arrays, strict=True)])
    with aside_of(sheet) as aside:
        drawn.save(aside, format="PNG")
    blank = [prompt for prompt, image in zip(PROMPTS, arrays, strict=True) if image.std() < 1]
    alike = len({array.tobytes() for array in arrays}) < len(arrays)
    size = f"{images.shape[-1]}x{images.shape[-2]} pixels, see {sheet}"
    wrong = f"{len(blank)} of {len(PROMPTS)} are of one colour" if blank else "two are the same" if alike else ""
    return Finding("pictures", not wrong, f"{wrong}; {size}" if wrong else size)


def answers(policy: Policy, rollout: Rollout) -> Finding:
    """How many came to their end, and the first of them: it is for a person to read."""
    ended = int((rollout.lengths < ANSWER_TOKENS).sum())
    first = policy.decode(rollout.tokens[0])[0]
    said = f"{ended} of {len(rollout.prompts)} ended within {ANSWER_TOKENS} tokens; the first: {first!r}"
    return Finding("answers", True, said)


def speed(policy: Policy, rollout: Rollout, seconds: float) -> Finding:
    """Seconds per image or answer, and the weights that were read meanwhile: all layers once per decoding step."""
    weights = sum(parameter.nbytes for parameter in policy.layers.parameters())
    steps = rollout.tokens.shape[-1] if policy.stop_tokens else len(policy.layout.blocks)
    read, made = weights * steps / seconds / 1e9, len(rollout.prompts)
    what = "answers" if policy.stop_tokens else "images"
    said = f"{seconds:.2f} s for {made} {what}, {made / seconds:.2f} {what}/s, {read:.2f} GB/s of weights"
    return Finding("speed", True, said)
