"""The demo at a size that a test can afford: everything it names at its end is there."""

import dataclasses
import json
from pathlib import Path

import pytest

from scripts import demo
from t2i_rl.configuration.config import EvaluationConfig, RolloutConfig
from t2i_rl.training.samples import Verdict


def test_the_demo_ends_with_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    rollout = RolloutConfig(prompts_per_step=1, group_size=2, sampling=demo.SETTINGS.rollout.sampling)
    evaluation = EvaluationConfig(every=1, images_per_tag=1)
    small = dataclasses.replace(demo.SETTINGS, steps=1, rollout=rollout, evaluation=evaluation)
    monkeypatch.setattr(demo, "SETTINGS", small)
    monkeypatch.setattr(demo, "IMAGES_PER_TAG", 1)
    demo.main()
    named = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  runs/")]
    assert len(named) == 5 and "runs/demo/report.html" in named
    assert all((tmp_path / name).stat().st_size for name in named)
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert summary["before"].keys() == summary["after"].keys() > {"overall", "counting"}
    page = (tmp_path / "runs/demo/report.html").read_text()
    assert "1 of 1" in page and page.count("<iframe") == 1


def test_what_the_demo_says_of_two_evaluations():
    """Tag a: two prompts of two samples each; tag b: two of one. The errors are over prompts."""

    def judged(*scores: int) -> list[Verdict]:
        places = [("a", 0), ("a", 0), ("a", 1), ("a", 1), ("b", 2), ("b", 3)]
        return [Verdict(tag, tag, n, score, None, "", None) for (tag, n), score in zip(places, scores, strict=True)]

    found = demo.summary(judged(0, 0, 1, 1, 0, 1), judged(1, 1, 1, 1, 0, 0))
    assert found["before"] == {"overall": 0.5, "a": 0.5, "b": 0.5} and found["after"] == {
        "overall": 0.5,
        "a": 1,
        "b": 0,
    }
    assert found["before_error"] == pytest.approx({"overall": 0.5**0.5 / 2, "a": 0.5, "b": 0.5})
    assert found["after_error"] == {"overall": 0, "a": 0, "b": 0} and found["prompts"] == {"overall": 4, "a": 2, "b": 2}
    assert found["paired"] == {"prompts": 4, "won": 1, "lost": 1, "error": pytest.approx(0.5**0.5 / 2)}
