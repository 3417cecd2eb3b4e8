"""Folders that are there whole or not at all, for all who may read them, and without what a killed process left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from t2i_rl.outputs import whole_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from t2i_rl.outputs import whole_folder
with whole_folder(Path(sys.argv[1])) as aside:
    (aside / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_and_nobody_elses(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    (left,) = tmp_path.iterdir()
    assert killed.returncode == -signal.SIGKILL and left.name.startswith(".out-")
    with whole_folder(tmp_path / "out") as first:
        assert not left.exists()
        with whole_folder(tmp_path / "out[1]"), whole_folder(tmp_path / "out2"):
            assert first.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out2", "out[1]"]


def test_files_have_the_rights_that_new_files_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "out") as aside:
            (aside / "inner").mkdir()
            save_file({"a": torch.zeros(2)}, aside / "inner" / "a.safetensors")
    finally:
        os.umask(before)
    paths = [tmp_path / "out", *sorted((tmp_path / "out").rglob("*"))]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o750, 0o750, 0o640]
