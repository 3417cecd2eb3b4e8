"""The token maps of a group, and the files that show them."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.janus.policy import JanusPolicy
from models.policy import TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.pictures.heatmap_files import COLUMNS, ROWS, draw, page, save
from t2i_rl.pictures.heatmaps import CLASSES, LOOKS, TokenMaps, token_maps
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.conftest import random_janus
from tests.models.small_star import random_star

PROMPT = "a photo of a red ring"
SAMPLING = Sampling(guidance_scale=3.0)
WITH_REFERENCE = {"divergence", "running_weight"}
OF_FEW_METHODS = {"advantage"}


@pytest.fixture
def maps(policy: JanusPolicy) -> TokenMaps:
    return token_maps(policy, PROMPT, 3, SAMPLING, seed=2, reference=random_janus(seed=1))


def test_the_maps_of_a_group(policy: JanusPolicy, maps: TokenMaps):
    assert maps.maps.keys() == LOOKS.keys() - OF_FEW_METHODS
    assert all(values.shape == (3, 16) and values.dtype == np.float32 for values in maps.maps.values())
    rollout = sample_group(policy, policy.encode([PROMPT]), 3, SAMPLING, Noise(2), ["kl_cond_uncond", "entropy"])
    np.testing.assert_array_equal(maps.tokens, rollout.tokens[0])
    np.testing.assert_array_equal(maps.images.transpose(0, 3, 1, 2), rollout.images(policy)[0])
    np.testing.assert_array_equal(maps.maps["kl"], rollout.statistics["kl_cond_uncond"][0])
    np.testing.assert_array_equal(maps.maps["entropy"], rollout.statistics["entropy"][0])
    order = maps.maps["kl"].argsort(-1)
    np.testing.assert_allclose(np.take_along_axis(maps.maps["cfg"], order, -1), np.tile(np.arange(16) / 15, (3, 1)))
    assert (maps.maps["similarity"] == maps.maps["similarity"][0]).all()


def test_the_critical_classes_are_as_large_as_one_another(maps: TokenMaps):
    share = int(0.1 * 16)
    for row in maps.maps["critical"]:
        assert [(row == code).sum() for code in range(len(CLASSES))] == [16 - 3 * share, share, share, share]
    assert (maps.maps["critical"][:, :share] == CLASSES.index("initial")).all()


def test_the_default_method_updates_the_critical_tokens_with_the_running_weight(maps: TokenMaps):
    np.testing.assert_array_equal(maps.maps["mask"], maps.maps["critical"] > 0)
    np.testing.assert_array_equal(maps.maps["credit"], maps.maps["mask"] * maps.maps["running_weight"])
    assert not np.array_equal(maps.maps["entropy_edges"], maps.maps["entropy_gradient"])


def test_what_the_reference_draws_from_the_same_noise_stands_before(maps: TokenMaps):
    alone = token_maps(random_janus(seed=1), PROMPT, 3, SAMPLING, seed=2)
    assert maps.before is not None and maps.before.maps.keys() == alone.maps.keys()
    np.testing.assert_array_equal(maps.before.images, alone.images)
    for name, values in alone.maps.items():
        np.testing.assert_array_equal(maps.before.maps[name], values)
    assert not np.array_equal(maps.images, alone.images)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("critical", ("critical", "entropy_gradient", "similarity", "mask", "credit", "divergence", "running_weight")),
        ("cfg", ("kl", "credit", "divergence")),
        ("grpo", ("divergence",)),
    ],
)
def test_the_maps_of_the_method_itself(policy: JanusPolicy, method: str, own: tuple[str, ...]):
    chosen = find_method(method)
    assert token_maps(policy, PROMPT, 2, SAMPLING, 0, random_janus(seed=1), chosen).own == own
    alone = token_maps(policy, PROMPT, 2, SAMPLING, 0, None, chosen).own
    assert alone == (tuple(name for name in own if name not in WITH_REFERENCE) or ("kl", "entropy"))


def test_the_credit_of_another_method(policy: JanusPolicy):
    maps = token_maps(policy, PROMPT, 3, SAMPLING, seed=2, method=find_method("cfg[credit.normalize=topk]"))
    assert (maps.maps["mask"] == 1).all() and set(maps.maps["credit"].flat) == {0.0, 1.0}
    with pytest.raises(UserError, match="--from-run"):
        token_maps(policy, PROMPT, 3, SAMPLING, seed=2, method=find_method("stage"))


def test_a_choice_of_maps(maps: TokenMaps):
    chosen = maps.only(["divergence", "kl"])
    assert [*chosen.maps] == [*chosen.own] == ["divergence", "kl"]
    assert chosen.before is not None and [*chosen.before.maps] == ["kl"]
    assert inline_data(page(chosen))["maps"][1]["before"] is not None
    with pytest.raises(UserError, match="no map 'kk' here: choose from kl, cfg"):
        maps.only(["kk"])


def test_a_next_scale_model_has_a_running_weight_per_scale():
    policy = random_star()
    maps = token_maps(policy, "a red ring", 2, SAMPLING, seed=0, reference=random_star(seed=1))
    assert [picture.shape[1:] for picture in maps.pictures("kl")] == list(policy.layout.maps)
    for scale in maps.pictures("running_weight"):
        assert (scale == scale[:, :1, :1]).all()
    assert page(maps).count('<section class="row">') == 2 * len(policy.layout.maps)


def test_a_policy_does_not_diverge_from_itself(policy: JanusPolicy):
    maps = token_maps(policy, PROMPT, 2, SAMPLING, seed=0, reference=policy.reference())
    assert (maps.maps["divergence"] == 0).all() and (maps.maps["running_weight"] == 1).all()


def test_without_a_reference_its_maps_are_absent(policy: JanusPolicy):
    assert token_maps(policy, PROMPT, 2, SAMPLING, seed=0).maps.keys() == LOOKS.keys() - WITH_REFERENCE - OF_FEW_METHODS


def test_what_cannot_be_mapped(policy: JanusPolicy):
    with pytest.raises(UserError, match="group size is 1"):
        token_maps(policy, PROMPT, 1, SAMPLING, seed=0)
    with pytest.raises(UserError, match="prompt is empty"):
        token_maps(policy, " ", 2, SAMPLING, seed=0)
    with pytest.raises(UserError, match="token maps"):
        token_maps(policy, PROMPT, 2, SAMPLING, seed=0, reference=random_janus(grid=6))


def inline_data(html: str) -> dict:
    found = re.search(r"^const data = (.*);$", html, re.MULTILINE)
    assert found
    return json.loads(found[1])


def test_the_files(maps: TokenMaps, tmp_path: Path):
    save(maps, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"maps.npz", "heatmap.png", "heatmap.html"}
    with np.load(tmp_path / "out/maps.npz", allow_pickle=False) as saved:
        assert str(saved["prompt"]) == PROMPT and saved["layout"].tolist() == [[4, 4]]
        np.testing.assert_array_equal(saved["tokens"], maps.tokens)
        np.testing.assert_array_equal(saved["images"], maps.images)
        for name, values in maps.maps.items():
            np.testing.assert_array_equal(saved[name], values)
        assert maps.before is not None
        np.testing.assert_array_equal(saved["before_images"], maps.before.images)
        np.testing.assert_array_equal(saved["before_kl"], maps.before.maps["kl"])
    with Image.open(tmp_path / "out/heatmap.png") as figure:
        pixels = np.asarray(figure.convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_folder_in_use_is_left_alone(maps: TokenMaps, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        save(maps, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_page_needs_nothing_else_and_holds_every_value(maps: TokenMaps):
    html = page(maps)
    assert not re.search(r"https?://|<link|<script src|url\(", html)
    assert html.count("data:image/png;base64,") == 6
    data, before = inline_data(html), maps.before
    assert before is not None
    assert data["tokens"] == maps.tokens.tolist() and data["before"] == before.tokens.tolist()
    assert [shown["name"] for shown in data["maps"] if shown["own"]] == [*maps.own]
    for number, shown in enumerate(data["maps"]):
        (low, high), values, name = shown["limits"], maps.maps[shown["name"]], shown["name"]
        assert shown["own"] == (number < len(maps.own))
        np.testing.assert_allclose(shown["values"], values, rtol=1e-3)
        assert (shown["before"] is None) == (name in WITH_REFERENCE)
        if shown["before"] is not None:  # one scale for both
            np.testing.assert_allclose(shown["before"], before.maps[name], rtol=1e-3)
            values = np.concatenate([values, before.maps[name]])
        assert [values.min() < low, values.max() > high] == shown["beyond"]
        assert ((low <= values) & (values <= high)).mean() >= 0.95


def test_a_prompt_cannot_break_out_of_the_page(maps: TokenMaps):
    html = page(dataclasses.replace(maps, prompt="</script><script>alert(1)</script>"))
    assert "<script>alert" not in html


def test_layouts_of_several_maps_have_a_row_each(maps: TokenMaps, tmp_path: Path):
    layout = TokenLayout(maps=((2, 2), (3, 4)), blocks=(4, 12))
    several = dataclasses.replace(maps, layout=layout)
    assert [picture.shape for picture in several.pictures("kl")] == [(3, 2, 2), (3, 3, 4)]
    np.testing.assert_array_equal(several.pictures("kl")[1].reshape(3, 12), maps.maps["kl"][:, 4:])
    assert page(several).count('<section class="row">') == 6
    save(several, tmp_path / "several")
    save(maps, tmp_path / "one")
    heights = [Image.open(tmp_path / name / "heatmap.png").height for name in ("several", "one")]
    assert heights[0] > 1.5 * heights[1]


def test_the_panels_of_the_figure_line_up_and_their_number_is_bounded(maps: TokenMaps):
    layout = TokenLayout(maps=((1, 1),) * 12 + ((2, 2),), blocks=(1,) * 12 + (4,))
    few = -(-len(maps.maps) // COLUMNS)
    for shown, rows, bands in ((maps, 3, few), (dataclasses.replace(maps, layout=layout), 13, 1)):
        figure = draw(shown)
        panels = [axes.get_position() for axes in figure.axes if axes.images]
        assert len(panels) == rows * (len(shown.maps) + bands)
        assert len({round(box.y0, 4) for box in panels}) == rows * bands
        assert len({round(box.x0, 4) for box in panels}) == 1 + -(-len(shown.maps) // bands)
    assert rows > ROWS and "1 of 3 images" in figure.texts[1].get_text()


def test_long_headings_stay_inside_the_figure_and_above_its_panels(maps: TokenMaps):
    figure = draw(dataclasses.replace(maps, prompt="a photo of " + "rings and " * 40).only(["kl"]))
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert boxes[0].y0 >= boxes[1].y1 and boxes[1].y0 >= max(box.y1 for box in titles)


def test_a_few_extreme_values_do_not_take_the_colours_of_the_others(maps: TokenMaps):
    values = np.linspace(0, 1, 200, dtype=np.float32)
    values[-1] = 50.0
    low, high = LOOKS["kl"].limits(values)
    assert low == 0 and 0.9 < high <= 1
    reach = LOOKS["divergence"].limits(values)[1]
    assert LOOKS["divergence"].limits(values) == (-reach, reach) and 0.9 < reach <= 1
    rare = np.eye(1, 200, dtype=np.float32)  # so few that no share of the values shows them: then all of the range
    assert LOOKS["kl"].limits(rare) == (0, 1) and LOOKS["divergence"].limits(rare) == (-1, 1)


def test_constant_maps_have_a_scale():
    for look in LOOKS.values():
        low, high = look.limits(torch.zeros(2, 4).numpy())
        assert low < high
