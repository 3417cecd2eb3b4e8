"""What the two papers observe of image tokens before they build on it, measured on any model.

- Tokens that are drawn early decide the image (arXiv:2509.22485, fig. 1): `edited`.
- Policy and reference drift apart most at critical tokens (fig. 4 there): `observe`, by `classes`.
- The entropy of the subject is not that of the background (fig. 8 there), and the prompt changes the subject's tokens
  more than the background's (arXiv:2605.29198, fig. 3): `observe`, by `regions`.

The unit of every comparison is a prompt: the images of one group are alike, so counting them singly would promise more
than they know.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from models.policy import Condition, Policy, TokenLayout
from rewards.detectors.base import Detector
from t2i_rl.pictures.heatmaps import CRITICAL
from t2i_rl.rollout.distribution import block_guidance, mix
from t2i_rl.rollout.drawing import draw
from t2i_rl.rollout.groups import pixels
from t2i_rl.rollout.log_probs import micro_batches, replay
from t2i_rl.rollout.noise import Noise, occurrences, uniforms
from t2i_rl.rollout.sampler import encode, sample_group
from t2i_rl.rollout.sampling import Sampling

SUBJECT = 0.5  # of a token's area: covered so far it shows the subject, not covered at all the background
SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Setting:
    """What images are looked at: groups of these prompts. at_once: prompts in one batch; only memory depends on it."""

    prompts: Sequence[str]
    group_size: int
    sampling: Sampling
    seed: int
    at_once: int = 8

    def batches(self) -> Iterator[tuple[list[str], list[int]]]:
        """The prompts with their occurrences, some at a time."""
        numbers = occurrences(self.prompts)
        for rows in micro_batches(len(self.prompts), self.at_once):
            yield [*self.prompts[rows]], numbers[rows]


def windows(tokens: int, share: float) -> dict[str, slice]:
    """The first, the middle and the last share of the tokens; at least one each."""
    size = max(1, int(share * tokens))
    middle = (tokens - size) // 2
    return {
        "early": slice(0, size),
        "middle": slice(middle, middle + size),
        "late": slice(tokens - size, tokens),
    }


@torch.no_grad()
def redraw(
    policy: Policy,
    condition: Condition,
    group_size: int,
    sampling: Sampling,
    noise: Float[Tensor, "R N"],
    barred: Int[Tensor, "R N"] | None = None,
) -> Int[Tensor, "R N"]:
    """The tokens that this noise draws; equal noise gives equal tokens up to the first that is barred.

    barred: a token that must not be drawn at this place; -1 bars none.
    """
    guidance, sizes = block_guidance(policy, sampling), list(policy.layout.blocks)
    branches = 2 if bool((guidance != 1).any()) else 1
    state = policy.prefill(condition, group_size, branches)
    logits = policy.next_logits(state)
    if barred is None:
        barred = torch.full(noise.shape, -1)
    drawn: list[Tensor] = []
    for scale, uniform, out in zip(
        guidance, noise.to(logits.device).split(sizes, -1), barred.to(logits.device).split(sizes, -1), strict=True
    ):
        if drawn:
            policy.append(state, drawn[-1])
            logits = policy.next_logits(state)
        mixed = mix(logits[0], logits[1] if branches == 2 else None, scale)
        place = out.clamp(min=0)[..., None]
        left = mixed.gather(-1, place).masked_fill(out[..., None] >= 0, -math.inf)
        drawn.append(draw(mixed.scatter(-1, place, left), uniform, sampling)[0])
    return torch.cat(drawn, -1)


@dataclass(frozen=True)
class Edited:
    """What changes in P x G images when a window of their tokens is changed and all tokens after it follow.

    images: of the first group, under "as drawn" and each window's name.
    moved: mean absolute difference of the pixels, from 0 to 1.
    replaced: share of the window's own tokens that became others.
    followed: share of the tokens after the window that became others; NaN where none are left.
    """

    images: Mapping[str, UInt8[ndarray, "G H W 3"]]
    moved: Mapping[str, Float[Tensor, "P G"]]
    replaced: Mapping[str, Float[Tensor, "P G"]]
    followed: Mapping[str, Float[Tensor, "P G"]]


def edited(policy: Policy, setting: Setting, share: float, force: bool) -> Edited:
    """Change the early, the middle or the late tokens; those after them are drawn again with the noise that they had.

    force: every token of the window becomes another one, drawn from what else the model predicts: equally much is
        changed everywhere, but less likely images come out. Otherwise the window is drawn anew with other noise: the
        images stay likely, but where the model is sure most tokens stay as they were.
    """
    tokens = policy.layout.tokens
    places = windows(tokens, share)
    images: dict[str, ndarray] = {}
    found: dict[str, dict[str, list[Tensor]]] = {kind: {name: [] for name in places} for kind in ("m", "r", "f")}
    for prompts, numbers in setting.batches():
        condition, shape = encode(policy, prompts, setting.sampling.negative_prompt), (len(prompts), setting.group_size)
        own, other = (
            uniforms(setting.seed, step, prompts, numbers, setting.group_size, tokens).flatten(0, 1) for step in (0, 1)
        )
        before = redraw(policy, condition, setting.group_size, setting.sampling, own)
        drawn = pixels(policy, before)
        images.setdefault("as drawn", _shown(drawn[: setting.group_size]))
        for name, place in places.items():
            noise, barred = own.clone(), torch.full_like(before, -1)
            if force:
                barred[:, place] = before[:, place]
            else:
                noise[:, place] = other[:, place]
            after = redraw(policy, condition, setting.group_size, setting.sampling, noise, barred)
            new = pixels(policy, after)
            images.setdefault(name, _shown(new[: setting.group_size]))
            changed = (after != before).float()
            found["m"][name].append(((new.float() - drawn.float()).abs() / 255).mean((1, 2, 3)).cpu().view(shape))
            found["r"][name].append(changed[:, place].mean(1).cpu().view(shape))
            found["f"][name].append(changed[:, place.stop :].mean(1).cpu().view(shape))
    moved, replaced, followed = (
        {name: torch.cat(parts) for name, parts in kind.items()} for kind in (found["m"], found["r"], found["f"])
    )
    return Edited(images, moved, replaced, followed)


def _shown(images: UInt8[Tensor, "R 3 H W"]) -> UInt8[ndarray, "R H W 3"]:
    return images.permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class Observed:
    """Statistics of every token, and what the token is part of.

    statistics: `entropy` of the guided distribution, `kl` between the predictions with and without prompt and, with a
        reference, `divergence`: KL(policy || reference), exact over the vocabulary.
    classes: the critical tokens by kind, and `other`.
    regions: `subject`, `edge` and `background`; in images where nothing was found all is background.
    """

    statistics: Mapping[str, Float[Tensor, "P G N"]]
    classes: Mapping[str, Bool[Tensor, "P G N"]]
    regions: Mapping[str, Bool[Tensor, "P G N"]]


@torch.no_grad()
def observe(policy: Policy, setting: Setting, detector: Detector, reference: Policy | None = None) -> Observed:
    """Sample the groups and measure them. The detector's masks say where the subject is."""
    parts: list[Observed] = []
    for prompts, numbers in setting.batches():
        condition = encode(policy, prompts, setting.sampling.negative_prompt)
        names = ["entropy", "kl_cond_uncond"]
        rollout = sample_group(
            policy, condition, setting.group_size, setting.sampling, Noise(setting.seed, 0, numbers), names
        )
        tokens, shape = rollout.tokens.flatten(0, 1), rollout.tokens.shape[:2]
        statistics = {"entropy": rollout.statistics["entropy"], "kl": rollout.statistics["kl_cond_uncond"]}
        if reference is not None:
            drift = replay(policy, rollout.row_condition, tokens, reference=reference).kl
            assert drift is not None  # asked for
            statistics["divergence"] = drift.unflatten(0, shape)
        embeddings = policy.token_embeddings(tokens, CRITICAL.embedding).unflatten(0, shape)
        credit = CRITICAL(rollout, embeddings, policy.layout)
        covered = torch.stack([coverage(mask, policy.layout) for mask in masks(pixels(policy, tokens), detector)])
        parts.append(
            Observed(
                {name: values.cpu() for name, values in statistics.items()},
                {name: held.cpu() for name, held in {**credit.classes, "other": ~credit.mask}.items()},
                regions(covered.unflatten(0, shape)),
            )
        )

    def joined(field: str) -> dict[str, Tensor]:
        first: Mapping[str, Tensor] = getattr(parts[0], field)
        return {name: torch.cat([getattr(part, field)[name] for part in parts]) for name in first}

    return Observed(joined("statistics"), joined("classes"), joined("regions"))


def masks(pixels: UInt8[Tensor, "R 3 H W"], detector: Detector) -> list[Bool[Tensor, "H W"]]:
    """Where any object was found. Raises ValueError for a detector without masks."""
    images = list(_shown(pixels))
    found = []
    for image, objects in zip(images, detector.detect(images), strict=True):
        union = np.zeros(image.shape[:2], dtype=bool)
        for detection in (one for several in objects.values() for one in several):
            if detection.mask is None:
                raise ValueError(f"the detector {detector.name} has no masks: the subject's place is unknown")
            union |= detection.mask
        found.append(torch.from_numpy(union))
    return found


def coverage(mask: Bool[Tensor, "H W"], layout: TokenLayout) -> Float[Tensor, " N"]:
    """The share of each token's part of the image that the mask covers; every scale's map spans the whole image."""
    picture = mask.float()[None, None]
    return torch.cat([F.adaptive_avg_pool2d(picture, size).flatten() for size in layout.maps])


def regions(covered: Float[Tensor, "... N"]) -> dict[str, Bool[Tensor, "... N"]]:
    """Tokens of the subject, of its edge, and of the background."""
    subject, background = covered >= SUBJECT, covered == 0
    return {"subject": subject, "edge": ~subject & ~background, "background": background}


def mean_where(values: Float[Tensor, "P G N"], held: Bool[Tensor, "P G N"]) -> Float[Tensor, " P"]:
    """The mean over a prompt's tokens that are held; NaN for a prompt that has none."""
    return (values * held).sum((1, 2)) / held.sum((1, 2))


@dataclass(frozen=True)
class Mean:
    """A mean over prompts and its standard error; NaN for no prompts, and the error for fewer than two."""

    value: float
    error: float


def mean(values: Float[Tensor, " P"]) -> Mean:
    """Prompts without a value (NaN) are left out."""
    there = values[~values.isnan()].double()
    error = (there.std() / len(there) ** 0.5).item() if len(there) > 1 else math.nan
    return Mean(there.mean().item() if len(there) else math.nan, error)


@dataclass(frozen=True)
class Paired:
    """Two means over the same prompts, and how sure their difference is.

    error: the standard error of the mean difference; NaN for fewer than two prompts.
    prompts: how many have both values.
    """

    first: float
    second: float
    difference: float
    error: float
    prompts: int

    @property
    def verdict(self) -> str:
        """Whether the first is larger: holds, the opposite, or not settled."""
        if math.isnan(self.error):
            return "not settled: too few prompts"
        if abs(self.difference) <= SURE * self.error:
            return f"not settled by {self.prompts} prompts"
        return "holds" if self.difference > 0 else "the opposite holds"


def paired(first: Float[Tensor, " P"], second: Float[Tensor, " P"]) -> Paired:
    """Compare two values of every prompt; prompts that lack one (NaN) are left out."""
    both = ~(first.isnan() | second.isnan())
    difference = mean(first[both].double() - second[both].double())
    firsts, seconds = mean(first[both]), mean(second[both])
    return Paired(firsts.value, seconds.value, difference.value, difference.error, int(both.sum()))
