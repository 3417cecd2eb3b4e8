"""Curves that are handed in: nothing of their owner's, read strictly, drawn beside others where they compare."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.reports import handed_in, report
from tests.t2i_rl.small_runs import STEPS, train_words
from tests.t2i_rl.training.runs import copied, edit

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rewards.catalogue import REWARDS, RewardEntry
    from tests.t2i_rl.small_runs import Brightness

    folder = tmp_path_factory.mktemp("somebody") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
        assert main(train_words(model, folder, "grpo")) == 0
    return folder


@pytest.fixture
def curve(run: Path, tmp_path: Path) -> Path:
    assert main(["curve", str(run), "--out", str(tmp_path / "theirs.json")]) == 0
    return tmp_path / "theirs.json"


def test_a_curve_has_what_the_run_measured_and_nothing_of_its_owner(run: Path, curve: Path, model: Path):
    text = curve.read_text()
    for told in (str(run.parent), str(model.parent), socket.gethostname(), "/"):
        assert told not in text.replace("heldout/", "").replace("seconds/", ""), told
    found = json.loads(text)
    assert found["settings"]["model"] == model.name and found["settings"]["prompts"] == "prompts.txt"
    assert found["settings"]["steps"] == STEPS and "device" not in found["settings"]
    assert found["digests"]["heldout"] == json.loads((run / "prompts.json").read_text())["heldout"]["sha256"]
    assert found["versions"]["torch"] and found["hardware"].startswith("cpu, ")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found["rows"]] == [row["step"] for row in rows]
    for name in ("reward", "kl", "heldout", "heldout/all", "seconds/step"):
        written, measured = ([row[name] for row in each if name in row] for each in (found["rows"], rows))
        assert written == pytest.approx(measured, rel=1e-4)
    again = handed_in.read(curve)
    assert handed_in.to_text(again) == text


def test_it_is_drawn_beside_a_run(run: Path, curve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.html"
    assert main(["report", str(run), str(curve), "--out", str(page)]) == 0
    assert not capsys.readouterr().err
    html = page.read_text()
    assert "mine, theirs.json" in html
    mine, theirs = report.read(run, "mine"), handed_in.beside(handed_in.read(curve), handed_in.of_run(run), "t")[0]
    for name in ("reward", "kl", "heldout"):
        assert dict(theirs.curve(name)) == pytest.approx(dict(mine.curve(name)), rel=1e-4)
    assert main(["report", str(curve)]) == 2
    assert "name it with --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says", "gone", "stays"),
    [
        ({"heldout": "another"}, "other held-out prompts (SHA-256 another, not ", "heldout", "reward"),
        ({"heldout": ""}, "other held-out prompts (SHA-256 unknown, not ", "heldout", "reward"),
        ({"judge": "shapes"}, "its held-out images are judged by shapes, not brightness", "heldout", "reward"),
        ({"reward": "shapes"}, "it was trained on shapes, not brightness", "reward", "kl"),
    ],
)
def test_what_does_not_compare_is_left_out_and_said(
    run: Path, curve: Path, change: dict[str, str], says: str, gone: str, stays: str, capsys: pytest.CaptureFixture[str]
):
    found = json.loads(curve.read_text())
    if "heldout" in change:
        found["digests"] |= change
    elif "judge" in change:
        found["settings"]["evaluation"]["reward"] = change["judge"]
    else:
        found["settings"] |= change
    curve.write_text(json.dumps(found))
    assert main(["report", str(run), str(curve), "--out", str(curve.with_suffix(".html"))]) == 0
    assert says in capsys.readouterr().err
    shown, _ = handed_in.beside(handed_in.read(curve), handed_in.of_run(run), "theirs")
    assert not any(name.startswith(gone) for row in shown.metrics for name in row)
    assert any(stays in row for row in shown.metrics)


SPOILT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda found: [found], "it has to hold form, preset"),
    (lambda found: found | {"host": "alice"}, "and nothing else"),
    (lambda found: {name: found[name] for name in found if name != "rows"}, "it has to hold form, preset"),
    (lambda found: found | {"form": 2}, "its form is 2, and 1 is what is read here"),
    (lambda found: found | {"commit": None}, "its commit has to be a text"),
    (lambda found: found | {"versions": {"torch": 2}}, "its versions are no texts"),
    (lambda found: found | {"digests": {}}, "its digests are of model, prompts and heldout"),
    (lambda found: found | {"settings": {"learning": 1}}, "settings has the unknown key 'learning'"),
    (lambda found: found | {"settings": {"steps": "3"}}, "steps is '3': it has to be of type int"),
    (lambda found: found | {"settings": {"evaluation": {"also": ["nowhere:x"]}}}, "name what defines no run"),
    (lambda found: found | {"settings": {"reward": "shapes@http://10.0.0.1"}}, "name what defines no run"),
    (lambda found: found | {"rows": []}, "it has no rows"),
    (lambda found: found | {"rows": [{"step": True}]}, "its row 1 has no step"),
    (lambda found: found | {"rows": [{"step": 1}, {"step": 1}]}, "its row 2 is of step 1, behind 1"),
    (lambda found: found | {"rows": [{"step": STEPS + 1}]}, f"its row 1 is of step {STEPS + 1}"),
    (lambda found: found | {"rows": [{"step": 1, "price": 3}]}, "its row 1 holds 'price'"),
    (lambda found: found | {"rows": [{"step": 1, "kl": float("nan")}]}, "kl of its row 1 is nan, which is no number"),
    (lambda found: found | {"rows": [{"step": 1, "kl": 10**400}]}, "which is no number"),
    (lambda found: found | {"rows": [{"step": 1, "kl": "\ud83d"}]}, "half of a character"),
]


@pytest.mark.parametrize(("spoil", "says"), SPOILT, ids=[says for _, says in SPOILT])
def test_a_strangers_file_is_read_strictly(
    run: Path, curve: Path, spoil: Callable[[Any], Any], says: str, capsys: pytest.CaptureFixture[str]
):
    curve.write_text(json.dumps(spoil(json.loads(curve.read_text()))))
    page = curve.with_suffix(".html")
    capsys.readouterr()
    assert main(["report", str(run), str(curve), "--out", str(page)]) == 2
    error = capsys.readouterr().err
    assert says in error and str(curve) in error and error.count("\n") == 1
    assert not page.exists()


def test_a_file_that_is_no_json(curve: Path):
    curve.write_text("{")
    with pytest.raises(UserError, match=r"theirs\.json is not valid JSON"):
        handed_in.read(curve)


def test_the_curve_of_an_older_run(run: Path, tmp_path: Path):
    """From before prompts were recorded: nobody knows what it was judged on."""
    older = copied(run, tmp_path)
    for name in ("prompts.json", "origins.json", "run.json"):
        (older / name).unlink()
    edit(older / "config.json", heldout="../elsewhere/prompts.txt")
    found = handed_in.of_run(older)
    assert found.digests == {"model": "", "prompts": "", "heldout": ""} and found.hardware == ""
    assert found.config.heldout == "prompts.txt"
    shown, left_out = handed_in.beside(found, found, "older")
    assert left_out and not shown.curve("heldout")


@pytest.mark.parametrize("path", sorted((DOCS / "curves").glob("*.json")), ids=lambda path: path.stem)
def test_the_curves_of_the_docs(path: Path):
    found = handed_in.read(path)
    assert path.stem == found.preset and found.digests["heldout"] and found.commit and found.hardware


def test_no_name_of_a_file(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["curve", str(run), "--out", "curve.txt"]) == 2
    assert "curve.txt is no name of a JSON" in capsys.readouterr().err
