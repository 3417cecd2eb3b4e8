"""The script about tokens, on a random model and a run of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.analyse_tokens import edit_table, main, region_table, sentence
from t2i_rl import cli
from t2i_rl.reports.analysis import Edited, Observed, Paired
from tests.rewards.tiny_scorers import save_detector
from tests.t2i_rl.small_runs import train_words


def test_a_run_through_training(model: Path, tmp_path: Path, brightness: None, capsys: pytest.CaptureFixture[str]):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a ring\na photo of two crosses\n")
    words = ["--prompts", str(prompts), "--per-tag", "2", "--group-size", "2", "--out", str(tmp_path / "found")]
    assert cli.main(train_words(model, tmp_path / "run", "grpo", "--steps", "2")) == 0
    assert main(["--run", str(tmp_path / "run"), *words]) == 0
    found = tmp_path / "found"
    assert {path.name for path in found.iterdir()} == {"analysis.md", "analysis.json", "analysis.png", "edits.png"}
    tables = json.loads((found / "analysis.json").read_text())["tables"]
    assert len(tables) == 5 and tables[0]["rows"][2][3] == [None, None]
    assert all([row[0] for row in table["rows"]] == ["step 0", "step 2"] for table in tables[2:])
    assert all(abs(value) < 1e-6 for value, _ in tables[2]["rows"][0][1:])  # the policy is the reference still
    text = (found / "analysis.md").read_text()
    assert "2 prompts of" in text and all(each in text for table in tables for each in table["sentences"])
    assert Image.open(found / "analysis.png").width > 1000
    capsys.readouterr()
    assert main(["--run", str(tmp_path), *words[:-1], str(tmp_path / "other")]) == 2
    assert "is not a run folder" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert main(["--share", "0.5"]) == 2 and "at most a third" in capsys.readouterr().err


def test_photos_are_looked_at_by_genevals_detector(model: Path, tmp_path: Path):
    """A random one, which finds objects in noise."""
    prompts, found = tmp_path / "prompts.txt", tmp_path / "found"
    prompts.write_text("a photo of a bench\n")
    detector = save_detector(tmp_path / "detector.safetensors")
    words = ["--model", str(model), "--prompts", str(prompts), "--group-size", "2", "--detector", str(detector)]
    assert main([*words, "--out", str(found)]) == 0
    subject = json.loads((found / "analysis.json").read_text())["tables"][2]["rows"][0][1]
    assert subject[0] is not None


def test_sentences_follow_the_numbers():
    def said(difference: float, error: float) -> str:
        return sentence("A is more", Paired(1.0, 1.0 - difference, difference, error, 9), "nats")

    assert said(0.5, 0.1).startswith("A is more: holds (1 against 0.5 nats, difference +0.5 with standard error 0.1")
    assert said(-0.5, 0.1).startswith("A is more: the opposite holds")
    assert said(0.1, 0.1).startswith("A is more: not settled by 9 prompts")


def test_tables_hold_the_means():
    def spread(value: float) -> torch.Tensor:
        return value + torch.tensor([[0.0, 0.01], [0.02, 0.0], [0.0, 0.03]])

    moved = {"early": spread(0.5), "middle": spread(0.2), "late": spread(0.1)}
    nothing = {**moved, "late": torch.full((3, 2), torch.nan)}
    table = edit_table(Edited({"as drawn": np.zeros((2, 4, 4, 3), np.uint8)}, moved, moved, nothing), "drawn anew")
    assert [label for label, _ in table.rows] == ["early", "middle", "late"]
    assert table.rows[0][1][0].value == pytest.approx(0.51)
    assert table.rows[0][1][0].error == pytest.approx(np.std([0.505, 0.51, 0.515], ddof=1) / 3**0.5)
    assert (
        "| early | 0.51 ± 0.003 | 0.51 ± 0.003 |" in table.markdown()
        and "|  |" in table.markdown()
        and table.steps is None
    )
    values = torch.tensor([2.0, 2.0, 1.0]).expand(3, 2, 3)
    held = {name: torch.eye(3, dtype=torch.bool)[row].expand(3, 2, 3) for row, name in enumerate(("subject", "edge"))}
    held["background"] = torch.tensor([False, False, True]).expand(3, 2, 3)
    seen = Observed({"kl": values + 0.1 * torch.arange(3)[:, None, None]}, {}, held)
    table = region_table({"base": seen}, "kl", "KL", "The subject has more")
    assert [label for label, _ in table.rows] == ["base"]
    assert [each.value for each in table.rows[0][1]] == pytest.approx([2.1, 2.1, 1.1])
    assert len(table.sentences) == 1
