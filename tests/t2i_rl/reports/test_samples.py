"""The samples of runs as a page has them: of today's runs, of earlier ones, of those that lost something."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_rl.configuration.config import TrainConfig
from t2i_rl.pictures.answers import answers_path, save_answers
from t2i_rl.pictures.pages import data_uri, pixels
from t2i_rl.pictures.strips import save_strip, strip_path
from t2i_rl.prompts.prompt import balanced
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.reports.samples import KEPT_BEFORE, SMALL, Shown, picture_uri, read_samples
from t2i_rl.training.evaluation import Evaluation, Judged
from t2i_rl.training.samples import SAMPLES, kept, read_verdicts, save_samples

CONFIG = replace(TrainConfig(), heldout="shapes:heldout")


def pictures(number: int, shade: int) -> list[np.ndarray]:
    return [np.full((6, 6, 3), shade + place, np.uint8) for place in range(number)]


def evaluated(run: Path, step: int, shade: int, reason: str) -> None:
    """As a run keeps it: the first tag is right."""
    judged = balanced(load_prompts(CONFIG.heldout), CONFIG.evaluation.images_per_tag)
    shown = dict(zip(kept(judged), pictures(12, shade), strict=True))
    found = [Judged(n, 0.0, n < 50, "" if n < 50 else reason, shown.get(n)) for n in range(len(judged))]
    save_samples(run / SAMPLES, step, judged, Evaluation({}, 0, len(found), {}, found))


def test_before_and_now_with_what_was_thought_of_them(tmp_path: Path):
    for step, reason in ((0, "no ring"), (30, "two rings")):
        evaluated(tmp_path, step, step, reason)
    verdicts = {step: read_verdicts(tmp_path / SAMPLES, step) for step in (0, 30)}
    found = read_samples(tmp_path, CONFIG, [0, 30, 60], verdicts)
    assert found is not None and found.side == 6 and list(found.steps) == [0, 30]
    first, last = found.steps.values()
    tags = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    assert [asked.tag for asked in found.asked] == [tag for tag in tags for _ in range(2)]
    assert all(asked.text.startswith("a photo of") for asked in found.asked)
    assert first[1] == Shown(data_uri(pictures(2, 0)[1]), "right", True)
    assert first[11] == Shown(data_uri(pictures(12, 0)[11]), "wrong: no ring", False)
    assert last[11] == Shown(data_uri(pictures(12, 30)[11]), "wrong: two rings", False)


def test_earlier_runs_have_fewer_samples_without_verdicts(tmp_path: Path):
    save_strip(strip_path(tmp_path / SAMPLES, 0), pictures(KEPT_BEFORE, 0))
    found = read_samples(tmp_path, CONFIG, [0], {0: []})
    assert found is not None and len(found.steps[0]) == 8
    assert {asked.tag for asked in found.asked} == {"single_object", "two_object", "counting", "colors"}
    assert all(one.said == "" and one.right is None for one in found.steps[0])
    evaluated(tmp_path, 30, 0, "")  # resumed with today's code
    found = read_samples(tmp_path, CONFIG, [0, 30], {30: read_verdicts(tmp_path / SAMPLES, 30)})
    assert found is not None and list(found.steps) == [30] and len(found.asked) == 12


def test_prompts_that_are_gone(tmp_path: Path):
    gone = replace(CONFIG, heldout=str(tmp_path / "gone.txt"))
    evaluated(tmp_path, 0, 0, "")
    found = read_samples(tmp_path, gone, [0], {0: read_verdicts(tmp_path / SAMPLES, 0)})
    assert found is not None and [asked.tag for asked in found.asked][::6] == ["single_object", "colors"]
    found = read_samples(tmp_path, gone, [0], {0: []})
    assert found is not None and [asked.text for asked in found.asked] == [""] * 12
    assert pixels(found.steps[0][0].content).shape == (6, 6, 3)
    assert read_samples(tmp_path, gone, [9], {}) is None


def test_answers_stand_beside_the_pictures_of_their_questions(tmp_path: Path):
    config = replace(CONFIG, heldout="questions:heldout")
    judged = balanced(load_prompts(config.heldout), config.evaluation.images_per_tag)
    for step in (0, 4):
        found = [Judged(n, 0.0, n == 0, "", f"step {step}" if n in kept(judged) else None) for n in range(len(judged))]
        save_samples(tmp_path / SAMPLES, step, judged, Evaluation({}, 0, len(found), {}, found))
    verdicts = {step: read_verdicts(tmp_path / SAMPLES, step) for step in (0, 4)}
    samples = read_samples(tmp_path, config, [0, 4], verdicts)
    assert samples is not None and samples.side == 0 and len(samples.asked) == 15
    asked, (before, *_), (now, *_) = samples.asked[0], *samples.steps.values()
    assert asked.tag == "count" and "<image>" not in asked.text and asked.picture.startswith("data:image/png")
    assert (before, now) == (Shown("step 0", "right", True), Shown("step 4", "right", True))
    save_answers(answers_path(tmp_path / SAMPLES, 4), ["fewer"])
    samples = read_samples(tmp_path, config, [0, 4], verdicts)
    assert samples is not None and list(samples.steps) == [4] and samples.asked[0].text == ""


@pytest.mark.parametrize(
    ("side", "whole", "stored", "kind"),
    [(SMALL, False, SMALL, "png"), (2 * SMALL, False, SMALL, "jpeg"), (2 * SMALL, True, 2 * SMALL, "jpeg")],
)
def test_the_first_samples_and_the_last_keep_their_size(side: int, whole: bool, stored: int, kind: str):
    head, _, data = picture_uri(np.zeros((side, side, 3), np.uint8), whole).partition(",")
    assert head == f"data:image/{kind};base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (stored, stored)
