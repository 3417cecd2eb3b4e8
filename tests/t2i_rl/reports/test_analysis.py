"""Observations of tokens: the maths on numbers made by hand, the measuring on small models."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from models.janus.policy import JanusPolicy
from models.policy import Policy, TokenLayout
from rewards.detectors.base import Detection
from rewards.detectors.shapes import ShapesDetector
from t2i_rl.prompts.shapes_world import Shape, render
from t2i_rl.reports.analysis import (
    Setting,
    coverage,
    edited,
    masks,
    mean,
    mean_where,
    observe,
    paired,
    redraw,
    regions,
    windows,
)
from t2i_rl.rollout.noise import Noise, uniforms
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.conftest import random_janus
from tests.models.small_star import random_star

SAMPLING = Sampling(guidance_scale=2.0)
PROMPTS = ["a photo of a ring", "a photo of two rings", "a photo of a ring"]
SETTING = Setting(PROMPTS, 2, SAMPLING, seed=3, at_once=2)


class LeftHalf:
    """Finds one object: the left half of every image."""

    name, classes, min_score = "left half", ("half",), 0.0

    def detect(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        mask = np.zeros(images[0].shape[:2], bool)
        mask[:, : mask.shape[1] // 2] = True
        return [{"half": [Detection(np.zeros(4, np.float32), 1.0, mask)]} for _ in images]


def test_windows_are_equally_large_and_apart():
    found = windows(144, 0.1)
    assert found == {"early": slice(0, 14), "middle": slice(65, 79), "late": slice(130, 144)}
    assert windows(4, 0.1) == {"early": slice(0, 1), "middle": slice(1, 2), "late": slice(3, 4)}


@pytest.mark.parametrize("make", [random_janus, random_star])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_redrawing_with_the_same_noise_is_sampling(make: type[Policy], scale: float):
    policy, sampling = make(), Sampling(guidance_scale=scale)
    condition = policy.encode(["a red ring", "a blue circle"])
    noise = uniforms(4, 0, condition.prompts, [0, 0], 2, policy.layout.tokens).flatten(0, 1)
    sampled = sample_group(policy, condition, 2, sampling, Noise(4)).tokens
    torch.testing.assert_close(redraw(policy, condition, 2, sampling, noise), sampled.flatten(0, 1))


@pytest.mark.parametrize("make", [random_janus, random_star])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_barred_token_becomes_another_and_those_before_stay(make: type[Policy], temperature: float):
    policy, sampling = make(), Sampling(guidance_scale=2.0, temperature=temperature)
    condition, tokens = policy.encode(["a red ring"]), policy.layout.tokens
    noise = uniforms(4, 0, condition.prompts, [0], 2, tokens).flatten(0, 1)
    before = redraw(policy, condition, 2, sampling, noise)
    start = tokens // 2
    barred = torch.full_like(before, -1)
    barred[:, start : start + 3] = before[:, start : start + 3]
    after = redraw(policy, condition, 2, sampling, noise, barred)
    assert torch.equal(after[:, :start], before[:, :start])
    assert (after != before)[:, start : start + 3].all()


def test_an_edit_leaves_what_came_before_and_nothing_follows_the_last(policy: JanusPolicy):
    found = edited(policy, SETTING, share=0.25, force=False)
    assert found.moved.keys() == {"early", "middle", "late"}
    assert all(values.shape == (3, 2) for values in found.moved.values())
    assert found.followed["late"].isnan().all() and not found.followed["early"].isnan().any()
    assert found.moved["early"].mean() > 0 and found.replaced["early"].mean() > 0
    forced = edited(policy, SETTING, share=0.25, force=True)
    assert all((values == 1).all() for values in forced.replaced.values())
    assert found.images.keys() == {"as drawn", "early", "middle", "late"}
    first = sample_group(policy, policy.encode(PROMPTS[:1]), 2, SAMPLING, Noise(3)).images(policy)[0]
    np.testing.assert_array_equal(found.images["as drawn"], first.permute(0, 2, 3, 1))
    # The last token's pixels, and those that its decoder blurs it into: the first rows stay as they were.
    last = edited(policy, SETTING, share=1 / 16, force=False)
    assert (last.moved["late"] < last.moved["early"].max()).all()


def test_batches_do_not_change_what_is_observed(policy: JanusPolicy):
    whole, parts = (observe(policy, Setting(PROMPTS, 2, SAMPLING, 3, size), LeftHalf()) for size in (3, 1))
    for field in ("statistics", "classes", "regions"):
        for name, values in getattr(whole, field).items():
            torch.testing.assert_close(getattr(parts, field)[name], values)


def test_what_is_observed(policy: JanusPolicy):
    reference = random_janus(seed=1)
    found = observe(policy, SETTING, LeftHalf(), reference)
    rollout = sample_group(policy, policy.encode(PROMPTS[:2]), 2, SAMPLING, Noise(3), ["entropy", "kl_cond_uncond"])
    torch.testing.assert_close(found.statistics["entropy"][:2], rollout.statistics["entropy"])
    torch.testing.assert_close(found.statistics["kl"][:2], rollout.statistics["kl_cond_uncond"])
    assert (found.statistics["divergence"] > 0).all()
    assert sum(held.int() for held in found.classes.values()).eq(1).all()
    assert found.regions["subject"][0, 0].view(4, 4).tolist() == [[True, True, False, False]] * 4
    assert not found.regions["edge"].any()
    itself = observe(policy, SETTING, LeftHalf(), policy.reference())
    assert itself.statistics["divergence"].abs().max() < 1e-6


def test_the_mask_of_a_scene_is_its_shapes():
    scene = [Shape("square", "red", 8, 8, 16), Shape("square", "blue", 28, 28, 12)]
    image = torch.from_numpy(render(scene)).permute(2, 0, 1)[None]
    (mask,) = masks(image, ShapesDetector())
    expected = torch.zeros(48, 48, dtype=torch.bool)
    expected[8:24, 8:24] = expected[28:40, 28:40] = True
    assert torch.equal(mask, expected)
    covered = coverage(mask, TokenLayout(maps=((1, 1), (6, 6)), blocks=(1, 36)))
    assert covered[0] == pytest.approx((256 + 144) / 48**2)
    grid = covered[1:].view(6, 6)
    assert (grid[1:3, 1:3] == 1).all() and grid[3, 3] == pytest.approx(16 / 64) and grid[0].eq(0).all()


def test_a_detector_without_masks_is_no_use():
    class Boxes(LeftHalf):
        def detect(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
            return [{"half": [Detection(np.zeros(4, np.float32), 1.0)]} for _ in images]

    with pytest.raises(ValueError, match="has no masks"):
        masks(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), Boxes())


def test_every_token_is_in_one_region():
    found = regions(torch.tensor([0.0, 0.1, 0.5, 1.0]))
    assert {name: held.tolist() for name, held in found.items()} == {
        "subject": [False, False, True, True],
        "edge": [False, True, False, False],
        "background": [True, False, False, False],
    }


def test_means_over_chosen_tokens():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    held = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    found = mean_where(values, held)
    assert found[0] == pytest.approx(8 / 3) and found[1].isnan()


def test_means_have_a_standard_error():
    found = mean(torch.tensor([1.0, 3.0, math.nan]))
    assert (found.value, found.error) == (2.0, pytest.approx(1.0))
    assert math.isnan(mean(torch.tensor([1.0])).error) and math.isnan(mean(torch.tensor([math.nan])).value)


def test_paired_differences_and_their_verdict():
    found = paired(torch.tensor([1.0, 2.0, 3.0, math.nan]), torch.tensor([0.0, 0.5, 3.0, 9.0]))
    assert (found.first, found.second, found.prompts) == (2.0, pytest.approx(3.5 / 3), 3)
    assert found.difference == pytest.approx(2.5 / 3)
    assert found.error == pytest.approx(np.std([1.0, 1.5, 0.0], ddof=1) / 3**0.5)
    assert found.verdict == "not settled by 3 prompts"
    clear, noise = torch.arange(20.0) + 5, torch.arange(20.0)
    noise[::2] += 1
    assert paired(clear, noise).verdict == "holds" and paired(noise, clear).verdict == "the opposite holds"
    assert "too few" in paired(clear[:1], noise[:1]).verdict
    assert paired(clear[:0], noise[:0]).prompts == 0
