"""Token maps as files: `maps.npz` (the numbers), `heatmap.png` (a figure), `heatmap.html` (one page that needs
nothing else: the value under the pointer, an opacity slider, the token grid).
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from t2i_rl.outputs import whole_folder
from t2i_rl.pictures.figures import new_figure, ornament, save_figure
from t2i_rl.pictures.heatmaps import LOOKS, Look, TokenMaps
from t2i_rl.pictures.pages import data_uri, render

# Inches: of a panel, between panels, above a band's panels, below them, left of them, above and below the headings.
PANEL, GAP, TITLE, BAR, LEFT, EDGE = 1.7, 0.1, 0.3, 0.45, 0.6, 0.12
HEAT = 0.68  # opacity of the map over the image
COLUMNS = 6  # maps side by side in a figure of at most as many rows; more go below
ROWS = 12  # of the figure, one per image and scale; the page has them all
SIDE, LARGE, LARGE_SIDE = 168, 192, 264  # of a panel of the page, pixels; of one whose image is above LARGE


def save(maps: TokenMaps, folder: Path) -> None:
    """Write the three files into a new folder, which appears when they are complete. UserError if it is in use."""
    with whole_folder(folder) as aside:
        arrays = {"prompt": np.array(maps.prompt), "images": maps.images, "tokens": maps.tokens}
        arrays |= {"source": np.array(maps.source), "labels": np.array(maps.labels)}
        if maps.before is not None:
            found = {"images": maps.before.images, "tokens": maps.before.tokens, **maps.before.maps}
            arrays |= {f"before_{name}": values for name, values in found.items()}
        np.savez_compressed(
            aside / "maps.npz", allow_pickle=False, layout=np.array(maps.layout.maps), **arrays, **maps.maps
        )
        (aside / "heatmap.html").write_text(page(maps), encoding="utf-8")
        with ornament("heatmap.png"):
            save_figure(draw(maps), aside / "heatmap.png", 200)


def draw(maps: TokenMaps) -> Figure:
    """One column per map, one row per image (and per two-dimensional map, where the layout has several).

    Each token is one cell of flat colour over the image in grey; a column has one scale, its bar below, with an arrow
    where values lie beyond it. Columns beyond `COLUMNS` go into a band below (a high figure has one band), and images
    beyond `ROWS` rows are left out.
    """
    names, levels = list(maps.maps), len(maps.layout.maps)
    images = min(len(maps.images), max(1, ROWS // levels))
    rows = images * levels
    in_bands = np.array_split(names, 1 if rows > COLUMNS else -(-len(names) // COLUMNS))
    bands = [list(map(str, band)) for band in in_bands]
    columns = 1 + len(bands[0])
    band_height = TITLE + rows * (PANEL + GAP) + BAR
    width = LEFT + columns * (PANEL + GAP)
    left_out = f" · {images} of {len(maps.images)} images" if images < len(maps.images) else ""
    title, source = _wrapped(f"“{maps.prompt}”", 13, width - LEFT), _wrapped(maps.source + left_out, 8, width - LEFT)
    below_title = EDGE + _high(title, 13)
    top = below_title + _high(source, 8) + EDGE
    height = top + len(bands) * band_height
    figure = new_figure(width, height)
    figure.text(LEFT / width, 1 - EDGE / height, title, va="top", fontsize=13)
    figure.text(LEFT / width, 1 - below_title / height, source, va="top", fontsize=8, color="0.35")

    def axes(band: int, row: int, column: int, high: float = PANEL) -> Axes:
        """The panel at this place, everything in inches so that bands and rows line up."""
        left, above = LEFT + column * (PANEL + GAP), top + band * band_height + TITLE + row * (PANEL + GAP)
        made = figure.add_axes((left / width, 1 - (above + high) / height, PANEL / width, high / height))
        made.set(xticks=[], yticks=[])
        return made

    for number, band in enumerate(bands):
        for row in range(rows):
            image, level = divmod(row, levels)
            panel = axes(number, row, 0)
            panel.imshow(maps.images[image], extent=_extent(maps), interpolation="nearest")
            scale = "" if levels == 1 else "\n{} x {} tokens".format(*maps.layout.maps[level])
            panel.set_ylabel(maps.labels[image].replace(" · ", "\n") + scale, fontsize=8)
            if row == 0:
                panel.set_title("image", fontsize=9)
        for column, name in enumerate(band, start=1):
            panels = [axes(number, row, column) for row in range(rows)]
            heat = _draw_map(panels, maps, name)
            _draw_scale(axes(number, rows, column, high=0.1), LOOKS[name], heat, beyond(LOOKS[name], maps.maps[name]))
    return figure


def _wrapped(text: str, points: float, inches: float) -> str:
    """In lines of at most this length; a character of a font is about 0.6 of its height wide."""
    return textwrap.fill(text, max(1, int(72 * inches / (0.6 * points))))


def _high(text: str, points: float) -> float:
    """The inches that the lines need."""
    return 1.5 * points / 72 * len(text.splitlines())


def _extent(maps: TokenMaps) -> tuple[int, int, int, int]:
    return 0, maps.images.shape[2], maps.images.shape[1], 0


def _draw_map(panels: Sequence[Axes], maps: TokenMaps, name: str) -> AxesImage:
    """One map over the images in grey, a panel for each image and scale."""
    look, pictures, levels = LOOKS[name], maps.pictures(name), len(maps.layout.maps)
    low, high = look.limits(maps.maps[name])
    place: dict[str, Any] = {"extent": _extent(maps), "interpolation": "nearest"}
    for row, panel in enumerate(panels):
        image, level = divmod(row, levels)
        panel.imshow(maps.images[image].mean(-1), cmap="gray", vmin=0, vmax=255, **place)
        heat = panel.imshow(pictures[level][image], cmap=look.palette, vmin=low, vmax=high, alpha=HEAT, **place)
        _draw_grid(panel, maps.layout.maps[level], _extent(maps))
    panels[0].set_title(look.title, fontsize=9)
    return heat


def beyond(look: Look, values: Float[ndarray, "..."]) -> tuple[bool, bool]:
    """Whether a map has values below and above those that its colours span."""
    low, high = look.limits(values)
    return bool(values.min() < low), bool(values.max() > high)


def _draw_scale(bar: Axes, look: Look, heat: AxesImage, cut: tuple[bool, bool]) -> None:
    """The colour bar of a column, or what its colours are called."""
    if look.scale == "classes":
        bar.set_axis_off()
        keys = [Patch(facecolor=color, label=name) for name, color in zip(look.classes, look.colors, strict=True)]
        bar.legend(handles=keys, ncols=2, fontsize=7, frameon=False, loc="upper left", borderpad=0, handlelength=1)
        return
    box = bar.get_position()  # a little narrower than the panel, so that the numbers at its ends do not meet others
    bar.set_position((box.x0 + 0.07 * box.width, box.y0, 0.86 * box.width, box.height))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[cut]
    made = bar.figure.colorbar(heat, cax=bar, orientation="horizontal", extend=extend)
    made.ax.tick_params(labelsize=8)
    made.locator = MaxNLocator(4)
    made.update_ticks()


def _draw_grid(panel: Axes, size: tuple[int, int], extent: tuple[int, int, int, int]) -> None:
    """Thin lines between the tokens."""
    (height, width), (_, right, bottom, _) = size, extent
    style: dict[str, Any] = {"colors": "white", "linewidth": 0.3, "alpha": 0.5}
    panel.hlines(np.arange(1, height) * bottom / height, 0, right, **style)
    panel.vlines(np.arange(1, width) * right / width, 0, bottom, **style)


def page(maps: TokenMaps) -> str:
    """The HTML page: images as data URIs, maps as numbers that its own script draws; the method's own come first.

    A map has one scale before and after.
    """
    shown = []
    for name in [*maps.own, *(name for name in maps.maps if name not in maps.own)]:
        look, values = LOOKS[name], maps.maps[name]
        before = None if maps.before is None else maps.before.maps.get(name)
        both = values if before is None else np.concatenate([before, values])
        colors = np.round(255 * to_rgba_array(look.palette.colors)[:, :3]).astype(int)
        shown.append(
            {
                "name": name,
                "title": look.title,
                "meaning": look.meaning,
                "own": name in maps.own,
                "limits": look.limits(both),
                "beyond": beyond(look, both),
                "colors": colors.tolist(),
                "classes": look.classes or None,
                "values": _rounded(values),
                "before": None if before is None else _rounded(before),
            }
        )
    # The values are rounded for the page; maps.npz has them in full.
    data = {"layout": maps.layout.maps, "tokens": maps.tokens.tolist(), "maps": shown}
    data["before"] = maps.before and maps.before.tokens.tolist()
    earlier = [None] * len(maps.images) if maps.before is None else [*map(data_uri, maps.before.images)]
    rows = list(zip(earlier, map(data_uri, maps.images), maps.labels, strict=True))
    side = SIDE if maps.images.shape[1] <= LARGE else LARGE_SIDE
    return render("heatmap.html.j2", prompt=maps.prompt, source=maps.source, rows=rows, data=data, side=side)


def _rounded(values: Float[ndarray, "G N"]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values]
