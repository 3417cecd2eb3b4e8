"""How far two detectors agree, and what the command says of folders that it cannot judge."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewards import calibrate
from rewards.calibrate import Agreement, agreement
from t2i_rl.prompts.shapes_world import Shape, render


def test_shares_are_counted_by_tag_and_over_all() -> None:
    tags = ["colors"] * 4 + ["position"]
    table = agreement(tags, [True, True, False, False, True], [True, False, False, False, True])
    assert list(table) == ["colors", "position", "all"]
    assert table["colors"] == Agreement(4, same=0.75, first=0.5, second=0.25, only_first=0.25, only_second=0.0)
    assert table["position"] == Agreement(1, 1.0, 1.0, 1.0, 0.0, 0.0)
    assert table["all"] == Agreement(5, same=0.8, first=0.6, second=0.4, only_first=0.2, only_second=0.0)
    with pytest.raises(ValueError, match="no images"):
        agreement([], [], [])


def write(folder: Path, index: int, record: dict, *images: np.ndarray) -> None:
    samples = folder / f"{index:05d}" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    for number, image in enumerate(images):
        Image.fromarray(image).save(samples / f"{number:04d}.png")


def test_a_folder_of_images_is_judged_by_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circle = {"tag": "single_object", "prompt": "a photo of a circle", "include": [{"class": "circle", "count": 1}]}
    right, wrong = render([Shape("circle", "red", 4, 4, 16)]), render([Shape("ring", "red", 4, 4, 16)])
    write(tmp_path, 0, circle, right, wrong)
    write(tmp_path, 1, circle | {"tag": "counting"}, wrong)
    assert calibrate.main(["shapes", "shapes-official", "--images", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["A: geneval-partial (shapes)", "B: geneval-official (shapes)"]
    assert [line.split() for line in lines[3:]] == [
        ["single_object", "2", "100.0%", "50.0%", "50.0%", "0.0%", "0.0%"],
        ["counting", "1", "100.0%", "0.0%", "0.0%", "0.0%", "0.0%"],
        ["all", "3", "100.0%", "33.3%", "33.3%", "0.0%", "0.0%"],
    ]


def test_what_cannot_be_judged_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(*arguments: str) -> str:
        assert calibrate.main(["shapes", *(arguments or ["shapes"]), "--images", str(tmp_path)]) == 2
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err

    assert "holds no metadata.jsonl" in complaint()
    write(tmp_path, 0, {"tag": "colors"})
    assert "00000/metadata.jsonl is no GenEval record" in complaint()
    record = {"tag": "colors", "prompt": "a dog", "include": [{"class": "dog", "count": 1}]}
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(record))
    assert "00000/samples holds no images" in complaint()
    (tmp_path / "00000" / "samples" / "0000.png").write_bytes(b"no picture")
    assert "0000.png cannot be read" in complaint()
    assert "no reward named 'shape'" in complaint("shape")
