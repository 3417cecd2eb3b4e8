"""A dry run ends in whether the run would start, and why it would not."""

import re
from pathlib import Path

import pytest

from t2i_rl.cli import main

OF_RINGS = "--reward brightness --prompts rings.txt --heldout rings.txt"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brightness: None) -> Path:
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("T2I_RL_JUDGE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rings.txt").write_text("a photo of two rings\n")
    return tmp_path


def tried(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["train", *words.split(), "--dry-run"])
    captured = capsys.readouterr()
    return code, captured.out.splitlines()[-1], captured.err


def test_what_would_start(model: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    for words in ("", "--method critical", f"--model {model} {OF_RINGS}"):
        code, last, errors = tried(words, capsys)
        assert (code, errors) == (0, "") and re.match(r"would start, on cpu, \d+ cores with \d+ GB", last)
    assert [path.name for path in here.iterdir()] == ["rings.txt"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--device cuda:7", "the device cuda:7 is not there"),
        ("--device xla", "models do not run on xla: choose auto, cpu, cuda, mps"),
        ("--device meta", "models do not run on meta"),
        ("--prompts absent.txt", "cannot read the prompts in absent.txt"),
        ("--reward geneval --prompts rings.txt --heldout rings.txt", "the metadata lack the key 'tag'"),
        ("--reward judge", "T2I_RL_JUDGE"),
        ("--out .", "the output folder . is not empty"),
        ("--trainable understanding", "trainable is 'understanding', which no parameter's name contains"),
        ("--trainable (", "which is no regular expression"),
        ("--lora.rank 4 --lora.targets q_proj z_proj", "lora.targets has z_proj, but the layers of tiny have"),
        ("--model janus-pro-7b", "the prompts geneval-train are not here yet"),
    ],
)
def test_what_would_not(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    code, last, errors = tried(words, capsys)
    assert code == 2 and not last.startswith("would start")
    assert errors.startswith("t2i-rl: would NOT start: ") and says in errors and errors.count("\n") == 1


def test_all_reasons_at_once(capsys: pytest.CaptureFixture[str]):
    _, _, errors = tried("--device cuda --out . --heldout absent.txt", capsys)
    assert all(says in errors for says in ("cuda is not there", "is not empty", "absent.txt"))


def test_memory_by_the_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """The 7B column with all its weights is for no card of today; with adapters it is for a small one."""
    monkeypatch.setattr("t2i_rl.planning.readiness.memory_of", lambda device: 24e9)
    words = f"--preset janus-pro-7b-geneval-cfg{{}} {OF_RINGS} --device cpu"
    _, _, errors = tried(words.format(""), capsys)
    assert "training takes 177.4 GB at its peak" in errors and "which is more than 90% of cpu" in errors
    assert errors.rstrip().endswith("what would fit: adapters (a preset that ends in -lora, t2i-rl presets)")
    assert tried(words.format("-lora"), capsys)[0] == 0
    monkeypatch.setattr("t2i_rl.planning.readiness.memory_of", lambda device: 80e9)
    monkeypatch.setenv("WORLD_SIZE", "8")
    _, _, errors = tried(words.format(""), capsys)
    assert "(float32, each of 8 processes)" in errors and "what would fit: --dtype bfloat16; or adapters (" in errors


def test_a_device_that_is_not_here_is_told_what_memory_it_needs(capsys: pytest.CaptureFixture[str]):
    code, last, errors = tried(f"--preset janus-pro-7b-geneval-cfg {OF_RINGS} --dtype bfloat16", capsys)
    assert code == 2 and "the device cuda is not there" in errors
    assert last.startswith("by the plan, training takes ") and "(bfloat16, 1 process)" in last


def test_a_second_run_gets_the_next_folder(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "runs/train").mkdir(parents=True)
    (here / "runs/train/config.json").touch()
    main(["train", "--dry-run"])
    assert "\nrun       runs/train-2\n" in capsys.readouterr().out


def test_a_step_has_a_prompt_for_each_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Said by the dry run of the first process alone, by the plan, and by the run before it waits for others."""
    too_few = "rollout.prompts-per-step is 8, which gives 9 processes no group each"
    monkeypatch.setenv("WORLD_SIZE", "9")
    monkeypatch.setenv("RANK", "0")
    assert too_few in tried("", capsys)[2]
    assert main(["train", "--device", "cpu"]) == 2 and too_few in capsys.readouterr().err
    assert main(["plan", "--model", "tiny", "--gpus", "9"]) == 2 and too_few in capsys.readouterr().err
    assert tried("--rollout.prompts-per-step 9", capsys)[0] == 0
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--dry-run"]) == 0 and capsys.readouterr() == ("", "")
