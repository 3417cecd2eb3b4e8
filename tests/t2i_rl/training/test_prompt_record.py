"""A run goes on with the prompts that it began with, from wherever it is told to."""

import json
import shutil
from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.places import rooted
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import prompts_digest
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.training.prompt_record import RECORD, prompts_of
from tests.t2i_rl.small_runs import Brightness

pytestmark = pytest.mark.usefixtures("brightness")
WORDS = """
    train --model janus --out run --method grpo --reward brightness --prompts p.txt --heldout h.jsonl --steps 1
    --rollout.prompts-per-step 1 --rollout.group-size 2 --evaluation.images-per-tag 1
"""


@pytest.fixture(scope="module")
def begun(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one step whose model and prompts lie beside it and were named by relative paths."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(model, folder / "janus")
    (folder / "p.txt").write_text("a circle\n")
    (folder / "h.jsonl").write_text('{"prompt": "a ring", "tag": "x"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
        patch.chdir(folder)
        assert main(WORDS.split()) == 0
    return folder


@pytest.fixture
def here(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    folder = shutil.copytree(begun, tmp_path / "here")
    for path in (folder / "run").rglob("*.json"):
        path.write_text(path.read_text().replace(str(begun), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def test_the_record_holds_what_was_read(begun: Path):
    record = json.loads((begun / "run" / RECORD).read_text())
    assert record["prompts"] == {"number": 1, "sha256": prompts_digest(load_prompts(str(begun / "p.txt")))}
    assert record["heldout"] == {"number": 1, "sha256": prompts_digest(load_prompts(str(begun / "h.jsonl")))}


@pytest.mark.parametrize(
    ("file", "text", "which"),
    [
        ("p.txt", "a ring\n", "prompts"),
        ("p.txt", "a circle\na ring\n", "prompts"),
        ("h.jsonl", '{"prompt": "a ring", "tag": "y"}\n', "held-out prompts"),
    ],
)
def test_other_prompts_are_refused(here: Path, file: str, text: str, which: str, capsys: pytest.CaptureFixture[str]):
    (here / file).write_text(text)
    before = sorted((path, path.stat().st_mtime_ns) for path in (here / "run").rglob("*.*"))
    assert main(["train", "--resume", "run", "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(
        f"t2i-rl: run began with other {which} than {here / file} holds now (SHA-256 "
    )
    if which == "prompts":
        assert main(["heatmap", "--from-run", "run", "--step", "1", "--out", "maps"]) == 2
        assert "run began with other prompts" in capsys.readouterr().err
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (here / "run").rglob("*.*"))


def test_a_file_that_only_looks_otherwise_is_the_same(here: Path):
    (here / "p.txt").write_bytes(b"\r\n  a circle\r\n")
    assert main(["train", "--resume", "run", "--steps", "2"]) == 0


def test_paths_are_those_of_where_the_run_began(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "p.txt").write_text("a ring\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", str(here / "run"), "--steps", "2"]) == 0
    assert main(["heatmap", "--from-run", str(here / "run"), "--step", "1", "--out", "maps"]) == 0


def test_a_run_from_before_there_was_a_record_goes_on(here: Path):
    (here / "run" / RECORD).unlink()
    (here / "p.txt").write_text("a ring\n")
    assert main(["train", "--resume", "run", "--steps", "2"]) == 0


def test_a_record_that_says_nothing(here: Path):
    (here / "run" / RECORD).write_text("{}\n")
    with pytest.raises(UserError, match=f"{RECORD} has no SHA-256 of the prompts"):
        prompts_of(TrainConfig(prompts="p.txt", out=here / "run"), "prompts")


def test_names_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "geneval", "own.txt", "owner"):
        Path(name).mkdir()
    for model, prompts in (("tiny", "geneval"), ("owner/model", "shapes:train"), ("absent", "absent.txt")):
        config = TrainConfig(model=model, prompts=prompts, heldout=prompts)
        assert rooted(config) == config
    found = rooted(TrainConfig(model="owner", prompts="own.txt"))
    assert (found.model, found.prompts) == (str(tmp_path / "owner"), str(tmp_path / "own.txt"))
