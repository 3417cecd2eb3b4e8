"""Token maps of one prompt's group: what every token statistic and credit is at each place of the images.

`token_maps` samples a group and measures it; `t2i_rl.reports.revisit` hands a training step's own group to `maps_of`.
`t2i_rl.pictures.heatmap_files` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from numpy import ndarray
from torch import Tensor

from models.policy import Policy, TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.method import Method
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import CONDITIONAL, TokenDistribution, log_probs
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import encode, sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.tokenmaps import entropy_gradient, similarity

CLASSES = ("not critical", "initial", "structure", "similarity")  # the codes of the map `critical`
CONTRAST, CRITICAL = GuidanceContrast(), CriticalTokens()  # what their two maps show, whatever the method
MOST = 0.98  # of a map's values span its colours: a few extreme tokens would leave one colour for all others


@dataclass(frozen=True)
class Look:
    """How a map is shown.

    scale: which values the colours span, one scale for the whole group: `range` from the least up, `unit` 0 to 1,
    `around` symmetric about `centre`, `classes` one of `colors` for each of the names. `range` and `around` end where
    `MOST` of the values lie; what lies beyond has the colour of the end.
    """

    title: str
    meaning: str
    colors: str | tuple[str, ...] = "viridis"
    scale: Literal["range", "unit", "around", "classes"] = "range"
    centre: float = 0.0
    classes: tuple[str, ...] = ()

    def limits(self, values: Float[ndarray, "..."]) -> tuple[float, float]:
        """The values at the ends of the colours."""
        if self.scale == "unit":
            return 0.0, 1.0
        if self.scale == "classes":
            return -0.5, len(self.classes) - 0.5
        if self.scale == "around":
            distances = np.abs(values - self.centre)
            reach = float(np.quantile(distances, MOST)) or float(distances.max()) or 1.0
            return self.centre - reach, self.centre + reach
        low, high, greatest = float(values.min()), float(np.quantile(values, MOST)), float(values.max())
        return low, next((end for end in (high, greatest) if end > low), low + 1.0)

    @property
    def palette(self) -> ListedColormap:
        """The colours from the lowest value to the highest."""
        if isinstance(self.colors, str):
            return ListedColormap(colormaps[self.colors](np.linspace(0, 1, 256)))
        return ListedColormap(list(self.colors))


LOOKS = {
    "kl": Look("KL(cond || uncond), nats", "what the prompt changes in the prediction of each token"),
    "cfg": Look("cfg weight (rank of KL)", "the method cfg: the rank of that KL in its image", scale="unit"),
    "entropy": Look("entropy, nats", "how open the guided distribution was", "magma"),
    "entropy_edges": Look("entropy gradient", "how fast the entropy changes from token to token", "magma"),
    "entropy_gradient": Look(
        "smoothed entropy gradient", "how fast the entropy's local mean changes: high at edges", "magma"
    ),
    "similarity": Look("similarity in the group", "mean cosine of the group's tokens at this place", "cividis"),
    "critical": Look(
        "critical tokens",
        "the method critical: its three sets of tokens",
        ("#303030", "#56b4e9", "#e69f00", "#cc79a7"),
        "classes",
        classes=CLASSES,
    ),
    "mask": Look(
        "updated tokens",
        "those that the method updates",
        ("#303030", "#f0e442"),
        "classes",
        classes=("not updated", "updated"),
    ),
    "credit": Look("token credit", "the method's weight of each token; 0 where it is not updated"),
    "advantage": Look(
        "token advantage", "where the method gives the tokens advantages of their own", "RdBu_r", "around"
    ),
    "divergence": Look(
        "log p - log p(ref), nats",
        "how much likelier the policy makes the token than the reference",
        "RdBu_r",
        "around",
    ),
    "running_weight": Look(
        "running weight", "the method critical: the divergence so far", "RdBu_r", "around", centre=1.0
    ),
}


@dataclass(frozen=True)
class TokenMaps:
    """The maps of one group of images; the names are those of `LOOKS`, in the layout's token order.

    source: which policy and method they show, in one sentence.
    labels: what is known of each image.
    own: the maps that say what the method does (`own_maps`); the page folds the others.
    before: those of the reference for the same prompt and noise, where there is one.
    """

    prompt: str
    images: UInt8[ndarray, "G H W 3"]
    tokens: Int[ndarray, "G N"]
    layout: TokenLayout
    maps: Mapping[str, Float[ndarray, "G N"]]
    source: str
    labels: tuple[str, ...]
    own: tuple[str, ...] = ()
    before: "TokenMaps | None" = None

    def pictures(self, name: str) -> list[Float[ndarray, "G h w"]]:
        """One map, split into the layout's two-dimensional ones."""
        return [part.numpy() for part in self.layout.split(torch.from_numpy(self.maps[name]))]

    def only(self, names: Sequence[str]) -> "TokenMaps":
        """These maps alone, in this order; UserError for one that was not measured."""
        for name in names:
            if name not in self.maps:
                raise UserError(f"there is no map {name!r} here: choose from {', '.join(self.maps)}")
        before = self.before and self.before.only([name for name in names if name in self.before.maps])
        return replace(self, maps={name: self.maps[name] for name in names}, own=tuple(names), before=before)


@torch.no_grad()
def token_maps(
    policy: Policy,
    prompt: str,
    group_size: int,
    sampling: Sampling,
    seed: int,
    reference: Policy | None = None,
    method: Method | None = None,
    source: str = "",
) -> TokenMaps:
    """Sample one group and measure every map of `LOOKS`; those about a reference only with a reference policy, which
    then draws a group of its own for comparison.

    method: whose updated tokens and credit are shown; `critical` if not given, for a next-scale model with its running
        weight over scales.

    Raises UserError for an empty prompt, a group of one image, a reference with another token layout, and a method
    that credits tokens by the rewards of their images.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the images show")
    if group_size < 2:
        raise UserError(f"the group size is {group_size}: similarity compares images, so ask for at least 2")
    layout, sampling = policy.layout, sampling.of(policy.default_guidance)
    if reference is not None and reference.layout != layout:
        raise UserError(
            f"the reference has the token maps {reference.layout.maps}, the model {layout.maps}: "
            "compare checkpoints of one model"
        )
    chosen = method or find_method("critical" if len(layout.maps) == 1 else "critical[dynamic.over=scales]")
    names = dict.fromkeys((*CONTRAST.statistics, *CRITICAL.statistics, *chosen.credit.statistics))
    condition = encode(policy, [prompt], sampling.negative_prompt)
    rollout = sample_group(policy, condition, group_size, sampling, Noise(seed), [*names])
    kind = chosen.credit.embeddings
    embeddings = None if kind is None else policy.token_embeddings(rollout.tokens[0], kind)[None]
    try:
        credit = chosen.credit(rollout, embeddings, layout)
    except ValueError as error:  # of rules that look at advantages
        raise UserError(f"{error}: show it in a training run instead, with --from-run") from error
    labels = [f"image {number}" for number in range(group_size)]
    shown = f"{source} · guidance {sampling.guidance_scale:g}, seed {seed} · method {chosen.name}"
    found = maps_of(policy, rollout, credit, chosen, reference, shown, labels)
    if reference is None:
        return found
    return replace(found, before=token_maps(reference, prompt, group_size, sampling, seed, None, chosen, source))


@torch.no_grad()
def maps_of(
    policy: Policy,
    rollout: Rollout,
    credit: TokenCredit,
    method: Method,
    reference: Policy | None,
    source: str,
    labels: Sequence[str],
    distribution: TokenDistribution = CONDITIONAL,
) -> TokenMaps:
    """The maps of a rollout of one prompt, which holds the statistics `kl_cond_uncond` and `entropy`.

    credit: what the method made of it.
    distribution: which log-probability is compared with the reference's.
    """
    layout, entropy = policy.layout, rollout.statistics["entropy"]
    embeddings = policy.token_embeddings(rollout.tokens[0], CRITICAL.embedding)[None]
    weight = credit.weight * credit.mask
    found = {
        "kl": rollout.statistics["kl_cond_uncond"],
        "cfg": CONTRAST(rollout, None, layout).weight,
        "entropy": entropy,
        "entropy_edges": entropy_gradient(entropy, layout, smooth=False),
        "entropy_gradient": entropy_gradient(entropy, layout),
        "similarity": similarity(embeddings)[:, None].expand_as(entropy),
        "critical": class_codes(CRITICAL(rollout, embeddings, layout).classes),
        "mask": credit.mask,
        "credit": weight,
    }
    if credit.advantages is not None:
        found["advantage"] = credit.advantages
    if reference is not None:
        lp, ref = (
            log_probs(model, rollout.row_condition, rollout.tokens[0], distribution)[None]
            for model in (policy, reference)
        )
        running = (method.dynamic or DynamicWeight())(lp, ref, layout)
        found |= {"divergence": lp - ref, "running_weight": running}
        if method.dynamic is not None:
            found["credit"] = weight * running
    images = rollout.images(policy)[0].permute(0, 2, 3, 1)
    maps = {name: values[0].float().cpu().numpy().copy() for name, values in found.items()}
    tokens = rollout.tokens[0].cpu().numpy()
    own = own_maps(method, maps)
    return TokenMaps(rollout.prompts[0], images.cpu().numpy(), tokens, layout, maps, source, tuple(labels), own)


def own_maps(method: Method, maps: Mapping[str, Float[ndarray, "G N"]]) -> tuple[str, ...]:
    """Which of the maps say what the method does: what its credit looks at, and what it makes of that, where that
    differs between tokens; and how far the policy is from the reference.
    """
    statistics, made = method.credit.statistics, [name for name in ("mask", "credit") if np.ptp(maps[name]) > 0]
    names = ["kl"] * ("kl_cond_uncond" in statistics)
    if isinstance(method.credit, CriticalTokens):
        names += ["critical", "entropy_gradient", "similarity"]
    elif "entropy" in statistics:
        names += ["entropy"]
    names += [*made, "advantage", "divergence", *["running_weight"] * (method.dynamic is not None)]
    return tuple(name for name in names if name in maps) or ("kl", "entropy")


def class_codes(classes: Mapping[str, Tensor]) -> Tensor:
    """Disjoint sets of tokens as one number per token: the set's place in `CLASSES`, 0 outside of all."""
    return torch.stack([CLASSES.index(name) * held.float() for name, held in classes.items()]).sum(0)
