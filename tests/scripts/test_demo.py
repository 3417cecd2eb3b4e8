"""The demo at a size that a test can afford: everything it names at its end is there."""

import dataclasses
import json
from pathlib import Path

import pytest

from scripts import demo
from t2i_rl.configuration.config import EvaluationConfig, RolloutConfig


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
