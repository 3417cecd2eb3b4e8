"""The optimizer's files: parts make the whole, those of before are read, and foreign ones run nothing."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from t2i_rl.errors import UserError
from t2i_rl.training import optimizer_files
from tests.t2i_rl.training.runs import held_by, stepped


def load(folder: Path, optimizer: torch.optim.Optimizer, part: int = 0, parts: int = 1) -> None:
    optimizer_files.load(folder, held_by(optimizer, part, parts), optimizer)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    (state,) = optimizer.state.values()
    return state


def test_the_state_that_torch_saved_is_read(tmp_path: Path):
    optimizer, again = stepped(4), stepped(4, times=3)
    torch.save(optimizer.state_dict(), tmp_path / optimizer_files.BEFORE)
    load(tmp_path, again)
    assert all(torch.equal(moments(again)[name], value) for name, value in moments(optimizer).items())


class Planted:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_an_optimizer_that_is_not_ours_is_refused_and_runs_nothing(tmp_path: Path):
    mark = tmp_path / "mark"
    for foreign in (
        Planted(mark),
        [1, 2],
        {"state": {}},
        torch.ones(3),
        stepped(5).state_dict(),
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(2)) for _ in range(2)]).state_dict(),
    ):
        torch.save(foreign, tmp_path / optimizer_files.BEFORE)
        with pytest.raises(UserError, match="does not hold the optimizer state of this run") as caught:
            load(tmp_path, stepped(4))
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("program", [b"", b"\x80\x02.", b"\x80\x02h\x07.", b"\x80\x02t.", b"PK\x05\x06"])
def test_an_optimizer_s_file_that_is_malformed(tmp_path: Path, program: bytes):
    """As they are, and as what the zip file of torch holds."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", b"3")
    for content in (program, zipped.getvalue()):
        (tmp_path / optimizer_files.BEFORE).write_bytes(content)
        with pytest.raises(UserError, match="does not hold the optimizer state of this run"):
            load(tmp_path, stepped(4))
