"""What a machine may lack: room to write, memory, a terminal, UTF-8, a home. Each is one sentence, or none at all."""

import errno
import json
import locale
import os
import pwd
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.llamagen.text_features import default_cache
from rewards.errors import RewardError
from rewards.files import pins
from t2i_rl.cli import main
from t2i_rl.errors import UserError, fitting
from t2i_rl.outputs import naming, whole_folder, write_atomically
from t2i_rl.training.collecting import Collector
from t2i_rl.training.metrics_log import MetricsLog
from t2i_rl.training.trainer import Trainer
from tests.t2i_rl.small_runs import train_words

pytestmark = pytest.mark.usefixtures("brightness")


@contextmanager
def no_room() -> Iterator[None]:
    """No file grows beyond 64 bytes: as under a quota, the error of writing names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what was said, after a progress bar and the log of a run."""
    said = capsys.readouterr().err
    assert said.startswith("t2i-rl: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    "words",
    [
        "generate ring --model {model} --images-per-prompt 1 --out {out}",
        "heatmap ring --model {model} --group-size 2 --out {out}",
        "export --model {model} --format deepseek --out {out}",
        "check --model {model} --out {out}.png",
        "data make geneval --out {out}",
    ],
    ids=lambda words: words.split()[0],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(
    words: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    with no_room():
        code = main(words.format(model=model, out=out).split())
    assert code == 2
    assert f"cannot use {out}" in sentence(capsys)
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_begin_leaves_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = train_words(model, tmp_path / "run")
    with no_room():
        code = main(words)
    assert code == 2
    assert f"cannot use {tmp_path / 'run'}" in sentence(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_run_that_can_write_no_longer_is_kept_once_it_has_done_a_step(
    step: int, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    log = MetricsLog.log

    def until_then(self: MetricsLog, metrics: dict[str, float]) -> None:
        if metrics["step"] == step:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        log(self, metrics)

    monkeypatch.setattr(MetricsLog, "log", until_then)
    assert main(train_words(model, tmp_path / "run")) == 2
    assert f"cannot use {tmp_path / 'run'} (Disk quota exceeded)" in sentence(capsys)
    assert (tmp_path / "run" / "config.json").is_file() == (tmp_path / "run").exists() == (step > 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES])
def test_every_failure_of_a_file_system_gets_the_place(number: int, tmp_path: Path):
    with pytest.raises(OSError) as caught, naming(tmp_path):
        raise OSError(number, os.strerror(number))
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path))
    with pytest.raises(OSError) as caught, whole_folder(tmp_path / "out") as aside:
        raise OSError(number, os.strerror(number), str(aside / "file"))
    assert caught.value.filename == str(tmp_path / "out") and not list(tmp_path.iterdir())


def test_what_is_no_failure_of_files_stays_as_it_is(tmp_path: Path):
    with pytest.raises(ConnectionResetError) as caught, naming(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    assert caught.value.filename is None


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB.")


@pytest.mark.parametrize(
    ("kind", "part", "says"),
    [
        (Collector, "sample", "the phase sample of a step: choose a smaller rollout.micro-batch"),
        (Trainer, "update", "the phase update of a step: choose a smaller update.micro-batch"),
    ],
)
def test_a_step_that_does_not_fit(
    kind: type,
    part: str,
    says: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(kind, part, full)
    assert main(train_words(model, tmp_path / "run")) == 2
    assert f"there is not enough memory for {says}" in sentence(capsys)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_does_not_fit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("t2i_rl.training.run.evaluate", full)
    assert main(train_words(model, tmp_path / "run")) == 2
    assert "an evaluation: choose a smaller evaluation.batch" in sentence(capsys)
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("t2i_rl.pictures.image_files.generate", full)
    assert main(["generate", "ring", "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    assert "not enough memory for this: choose a smaller --batch" in sentence(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["python", "cuda", "cpu", "mps", "cublas"],
)
def test_memory_has_many_words(error: Exception):
    with pytest.raises(UserError, match="not enough memory for a thing: choose less"), fitting("a thing", "less"):
        raise error
    with pytest.raises(RuntimeError, match="another shape"), fitting("a thing", "less"):
        raise RuntimeError("another shape")


def test_a_service_may_have_no_streams(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        codes = main(train_words(model, tmp_path / "run", "grpo", "--steps", "1")), main(["fly"])
    assert codes == (0, 2)


def test_files_are_utf_8_whatever_the_locale(tmp_path: Path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        write_atomically(tmp_path / "page.html", "12 × 12")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (tmp_path / "page.html").read_bytes() == "12 × 12".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_sign_that_the_terminal_lacks_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with (tmp_path / "said").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["methods"]) == 0
        print("12 × 12")
    assert "12 \\xd7 12" in (tmp_path / "said").read_text(encoding="ascii")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom /etc/passwd does not know, without HOME: as in a container under a number."""

    def unknown(_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "T2I_RL_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_was_recorded_and_a_cache_is_asked_for(capsys: pytest.CaptureFixture[str]):
    assert pins.pins() == {}
    with pytest.raises(RewardError, match="let T2I_RL_CACHE name one"):
        pins.cache_folder()
    with pytest.raises(ModelError, match="let XDG_CACHE_HOME name one"):
        default_cache()
    assert main(["data", "list"]) == 2
    assert "T2I_RL_CACHE" in sentence(capsys)


@pytest.mark.parametrize("words", ["train --model tiny", "train --resume runs/a"])
def test_a_process_that_does_not_know_its_number(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words.split()) == 2
    assert "the surroundings say RANK '', WORLD_SIZE '2', LOCAL_RANK ''" in sentence(capsys)
    assert not list(tmp_path.iterdir())


def test_what_was_sampled_outlives_a_picture(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise ValueError("no such font\nat all")

    monkeypatch.setattr("t2i_rl.pictures.image_files.contact_sheet", broken)
    monkeypatch.setattr("t2i_rl.pictures.heatmap_files.draw", broken)
    assert main(["generate", "ring", "--model", str(model), "--images-per-prompt", "1", "--out", f"{tmp_path}/g"]) == 0
    assert "warning: the contact sheet cannot be drawn (no such font at all)" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "g/generation.json").read_text(encoding="utf-8"))["files"]) == 1
    assert main(["heatmap", "ring", "--model", str(model), "--group-size", "2", "--out", f"{tmp_path}/h"]) == 0
    assert {path.name for path in (tmp_path / "h").iterdir()} == {"maps.npz", "heatmap.html"}
