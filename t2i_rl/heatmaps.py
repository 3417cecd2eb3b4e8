"""Token maps as pictures: for one prompt's group, what every token statistic and credit looks like on the images.

Three files: `maps.npz` (the numbers), `heatmap.png` (a figure) and `heatmap.html` (one page that needs nothing
else: the value under the pointer, an opacity slider).
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure
from numpy import ndarray
from PIL import Image
from torch import Tensor

from models.policy import Policy, TokenLayout
from t2i_rl.config import Sampling
from t2i_rl.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.credit.guidance import GuidanceContrast
from t2i_rl.errors import UserError
from t2i_rl.logprobs import score
from t2i_rl.outputs import whole_folder
from t2i_rl.sampler import Noise, encode, sample_group
from t2i_rl.tokenmaps import entropy_gradient, similarity

CLASSES = ("not updated", "initial", "structure", "similarity")  # the codes of the map `critical`
CLASS_COLORS = ListedColormap(["#303030", "#4c9be8", "#f2a33a", "#d64fa0"])

PANEL = 1.75  # inches
HEAT = 0.68  # opacity of the map over the image


@dataclass(frozen=True)
class Look:
    """How a map is shown.

    scale: which values the colours span, one scale for the whole group: `range` from the least to the greatest,
    `unit` 0 to 1, `around` symmetric about `centre`, `classes` one colour each.
    """

    title: str
    meaning: str
    colors: str = "viridis"
    scale: Literal["range", "unit", "around", "classes"] = "range"
    centre: float = 0.0

    def limits(self, values: Float[ndarray, "..."]) -> tuple[float, float]:
        """The values at the ends of the colours."""
        if self.scale == "unit":
            return 0.0, 1.0
        if self.scale == "classes":
            return -0.5, len(CLASSES) - 0.5
        if self.scale == "around":
            reach = float(np.abs(values - self.centre).max()) or 1.0
            return self.centre - reach, self.centre + reach
        low, high = float(values.min()), float(values.max())
        return low, high if high > low else low + 1.0


LOOKS = {
    "kl": Look("KL(cond || uncond), nats", "what the prompt changes in the prediction of each token"),
    "cfg": Look("cfg weight (rank of KL)", "the method cfg: the rank of that divergence in its image", scale="unit"),
    "entropy": Look("entropy, nats", "how open the guided distribution was", "magma"),
    "entropy_gradient": Look("entropy gradient", "length of the gradient of the locally averaged entropy", "magma"),
    "similarity": Look("similarity in the group", "mean cosine of the group's tokens at this place", "cividis"),
    "critical": Look("critical tokens", "the method critical: which tokens it updates, and why", scale="classes"),
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
    """The maps of one group of images; the names are those of `LOOKS`, in the layout's token order."""

    prompt: str
    images: UInt8[ndarray, "G H W 3"]
    tokens: Int[ndarray, "G N"]
    layout: TokenLayout
    maps: Mapping[str, Float[ndarray, "G N"]]

    def pictures(self, name: str) -> list[Float[ndarray, "G h w"]]:
        """One map, split into the layout's two-dimensional ones."""
        return [part.numpy() for part in self.layout.split(torch.from_numpy(self.maps[name]))]


@torch.no_grad()
def token_maps(
    policy: Policy, prompt: str, group_size: int, sampling: Sampling, seed: int, reference: Policy | None = None
) -> TokenMaps:
    """Sample one group and measure every map of `LOOKS`; the last two only with a reference policy.

    Raises UserError for an empty prompt, a group of one image, and a reference with another token layout.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the images show")
    if group_size < 2:
        raise UserError(f"the group size is {group_size}: similarity compares images, so ask for at least 2")
    if reference is not None and reference.layout != policy.layout:
        raise UserError(
            f"the reference has the token maps {reference.layout.maps}, the model {policy.layout.maps}: "
            "compare checkpoints of one model"
        )
    contrast, critical, layout = GuidanceContrast(), CriticalTokens(), policy.layout
    names = (*contrast.statistics, *critical.statistics)
    condition = encode(policy, [prompt], sampling.negative_prompt)
    rollout = sample_group(policy, condition, group_size, sampling, Noise(seed), names)
    embeddings = policy.token_embeddings(rollout.tokens[0], "lm_input")[None]
    entropy = rollout.statistics["entropy"]
    found = {
        "kl": rollout.statistics["kl_cond_uncond"],
        "cfg": contrast(rollout, None, layout).weight,
        "entropy": entropy,
        "entropy_gradient": entropy_gradient(entropy, layout),
        "similarity": similarity(embeddings)[:, None].expand_as(entropy),
        "critical": class_codes(critical(rollout, embeddings, layout).classes),
    }
    if reference is not None:
        lp, ref = (score(model, rollout.row_condition, rollout.tokens[0])[None] for model in (policy, reference))
        found |= {"divergence": lp - ref, "running_weight": DynamicWeight()(lp, ref)}
    images = rollout.images(policy)[0].permute(0, 2, 3, 1)
    maps = {name: values[0].float().cpu().numpy().copy() for name, values in found.items()}
    return TokenMaps(prompt, images.cpu().numpy(), rollout.tokens[0].cpu().numpy(), layout, maps)


def class_codes(classes: Mapping[str, Tensor]) -> Tensor:
    """Disjoint sets of tokens as one number per token: the set's place in `CLASSES`, 0 outside of all."""
    return torch.stack([CLASSES.index(name) * held.float() for name, held in classes.items()]).sum(0)


def save(maps: TokenMaps, folder: Path) -> None:
    """Write the three files into a new folder, which appears when they are complete. UserError if it is in use."""
    with whole_folder(folder) as aside:
        arrays = {"prompt": np.array(maps.prompt), "images": maps.images, "tokens": maps.tokens}
        np.savez_compressed(
            aside / "maps.npz", allow_pickle=False, layout=np.array(maps.layout.maps), **arrays, **maps.maps
        )
        draw(maps).savefig(aside / "heatmap.png", dpi=200)
        (aside / "heatmap.html").write_text(page(maps), encoding="utf-8")


def palette(look: Look) -> ListedColormap:
    """The colours from the lowest value to the highest."""
    if look.scale == "classes":
        return CLASS_COLORS
    return ListedColormap(colormaps[look.colors](np.linspace(0, 1, 256)))


def draw(maps: TokenMaps) -> Figure:
    """One column per map, one row per image (and per two-dimensional map, where the layout has several).

    Each token is one cell of flat colour over the image in grey; a column has one scale, its bar below.
    """
    levels = len(maps.layout.maps)
    rows, columns = len(maps.images) * levels, 1 + len(maps.maps)
    figure = Figure(figsize=(PANEL * columns, PANEL * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"“{maps.prompt}”", fontsize=12)
    *axes, bars = figure.subplots(rows + 1, columns, height_ratios=[*[PANEL] * rows, 0.1])
    axes = np.array(axes)
    bars[0].set_axis_off()
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    height, width = maps.images.shape[1:3]
    extent = (0, width, height, 0)
    for row, panel in enumerate(axes[:, 0]):
        image, level = divmod(row, levels)
        panel.imshow(maps.images[image], extent=extent, interpolation="nearest")
        size = "x".join(map(str, maps.layout.maps[level]))
        panel.set_ylabel(f"image {image}" if levels == 1 else f"image {image}, {size}", fontsize=9)
    axes[0, 0].set_title("image", fontsize=9)
    for column, name in enumerate(maps.maps, start=1):
        look, pictures = LOOKS[name], maps.pictures(name)
        low, high = look.limits(maps.maps[name])
        for row, panel in enumerate(axes[:, column]):
            image, level = divmod(row, levels)
            grey = maps.images[image].mean(-1)
            panel.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
            heat = panel.imshow(
                pictures[level][image],
                cmap=palette(look),
                vmin=low,
                vmax=high,
                alpha=HEAT,
                extent=extent,
                interpolation="nearest",
            )
        axes[0, column].set_title(look.title, fontsize=9)
        bar = figure.colorbar(heat, cax=bars[column], orientation="horizontal")
        bar.ax.tick_params(labelsize=7)
        if look.scale == "classes":
            bar.set_ticks(range(len(CLASSES)), labels=["none", *CLASSES[1:]])
            bar.ax.tick_params(rotation=40)
    return figure


def page(maps: TokenMaps) -> str:
    """The HTML page: images as data URIs, maps as numbers that its own script draws."""
    shown = []
    for name, values in maps.maps.items():
        look = LOOKS[name]
        colors = np.round(255 * to_rgba_array(palette(look).colors)[:, :3]).astype(int)
        shown.append(
            {
                "name": name,
                "title": look.title,
                "meaning": look.meaning,
                "limits": look.limits(values),
                "colors": colors.tolist(),
                "classes": CLASSES if look.scale == "classes" else None,
                "values": [[float(f"{value:.4g}") for value in row] for row in values],
            }
        )
    # The values are rounded for the page; maps.npz has them in full.
    data = {"layout": maps.layout.maps, "tokens": maps.tokens.tolist(), "maps": shown}
    template = Path(__file__).with_name("heatmap.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    images = [data_uri(image) for image in maps.images]
    return environment.from_string(template).render(prompt=maps.prompt, images=images, data=data)


def data_uri(image: UInt8[ndarray, "H W 3"]) -> str:
    """The image as a PNG inside a URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
