"""Published questions with pictures, in small files of the published forms, become prompt files of ours."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from t2i_rl.cli import main
from t2i_rl.prompts.questions import INSTRUCTION, check_questions
from t2i_rl.prompts.reading import load_prompts

Said = Callable[[], str]


def png(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), "blue").save(path)
    return path


def embedded(path: Path, side: int = 8) -> dict[str, Any]:
    """A picture as the hub's tables hold it."""
    return {"bytes": png(path, side).read_bytes(), "path": None}


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def made(name: str, source: Path, out: Path) -> list[dict[str, Any]]:
    assert main(["data", "make", name, "--source", str(source), "--out", str(out)]) == 0
    check_questions(load_prompts(str(out)))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def refused(name: str, source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["data", "make", name, "--source", str(source), "--out", str(out)]) == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def virl(**columns: Any) -> dict[str, Any]:
    row = {"question": "<image>What is x?", "answer": "\\boxed{7}", "category": "algebra", "qid": "q-1"}
    return {**row, "source": "X", "PassRate_32BTrained": 0.5, "image": ["images/a.png"], **columns}


def test_virl39k_from_its_table_and_its_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pictures are unpacked beside the prompts; rows whose answer does not close its box are left out."""
    source, out = tmp_path / "source", tmp_path / "out/virl39k.jsonl"
    rows = [
        virl(),
        virl(question="Without one", image=[], answer="3 \\text{ cm}"),
        virl(question="<image> and <image>", image=["images/b/b.png", "images/a.png"], answer="\\boxed{(1, 2)}"),
        virl(answer="\\boxed{7"),
        virl(answer=""),
    ]
    parquet(source / "39Krelease.parquet", rows)
    with zipfile.ZipFile(source / "images.zip", "w") as archive:
        for name in ("a.png", "b/b.png"):
            archive.write(png(tmp_path / "packed" / name), f"images/{name}")
    first, second, third = made("virl39k", source, out)
    assert "3 questions, 38,870 are usual, without 2 that have no answer" in capsys.readouterr().out
    assert first == {
        "prompt": "<image>What is x?",
        "images": ["virl39k/images/images/a.png"],
        "answer": "7",
        "tag": "algebra",
        "id": "q-1",
        "from": "table",
    }
    assert (second["images"], second["answer"]) == ([], "3 \\text{ cm}")
    assert len(third["images"]) == 2 and third["answer"] == "(1, 2)"
    before = out.read_bytes()
    made("virl39k", source, out)
    assert out.read_bytes() == before


def test_pictures_that_lie_there_are_named_where_they_lie(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "own.jsonl").write_text(json.dumps(virl()))
    path = png(source / "images/a.png")
    [record] = made("virl39k", source, tmp_path / "out/virl39k.jsonl")
    assert record["images"] == [str(path)]
    [beside] = made("virl39k", source / "own.jsonl", source / "made.jsonl")
    assert beside["images"] == ["images/a.png"]


def test_the_copy_that_holds_its_pictures(tmp_path: Path) -> None:
    one = embedded(tmp_path / "a.png")
    rows = [
        {"problem": "<image>What?", "answer": "7", "images": [one]},
        {"problem": "<image>?", "answer": "8", "images": [one]},
    ]
    parquet(tmp_path / "source/train.parquet", rows)
    first, second = made("virl39k", tmp_path / "source", tmp_path / "virl39k.jsonl")
    assert first["images"] == second["images"] and first["images"][0].startswith("virl39k/")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mathverse", "AI4Math_MathVerse.json"),
        ("mathvision", "data/vppo/MathLLMs_MathVision.json"),
        ("mm12k", "PAPO_MMK12.json"),
        ("logicvista", "lscpku_LogicVista.json"),
        ("mmmu-pro", "MMMU_MMMU_Pro.json"),
    ],
)
def test_a_benchmark_from_the_files_that_figures_are_of(name: str, file: str, tmp_path: Path) -> None:
    """Lists of chats, each benchmark's pictures in an archive of its own name."""
    source = tmp_path / "source"
    chat = [
        {"role": "user", "content": f"<image>Which?\n(A) 1\n(B) 2\n\n{INSTRUCTION}"},
        {"role": "assistant", "content": "B"},
    ]
    empty = [chat[0], {"role": "assistant", "content": ""}]
    (source / file).parent.mkdir(parents=True)
    rows = [{"messages": chat, "images": ["images/1.png"], "id": 5}, {"messages": empty, "images": ["images/1.png"]}]
    (source / file).write_text(json.dumps(rows))
    (source / "Another_Set.json").write_text("[]")
    for archive, side in (((source / file).stem, 8), ("Another_Set", 9)):
        with zipfile.ZipFile(source / f"{archive}_images.zip", "w") as packed:
            packed.write(png(tmp_path / "picture.png", side), "1.png")
    out = tmp_path / f"{name}.jsonl"
    [record] = made(name, source, out)
    assert record["prompt"] == "<image>Which?\n(A) 1\n(B) 2"
    assert (record["answer"], record["id"], record["from"]) == ("B", "5", "messages")
    with Image.open(tmp_path / record["images"][0]) as image:
        assert image.size == (8, 8)


def test_mathverse_from_its_table(tmp_path: Path) -> None:
    row = {"question": "How long?\nChoices:\nA:1", "answer": "A", "question_type": "multi-choice", "sample_index": "3"}
    row |= {"problem_version": "Text Lite", "image": embedded(tmp_path / "a.png")}
    parquet(tmp_path / "source/testmini.parquet", [row, row | {"question_type": "free-form"}])
    parquet(tmp_path / "source/testmini_text_only.parquet", [{"question": "another configuration"}])
    [record] = made("mathverse", tmp_path / "source", tmp_path / "mathverse.jsonl")
    assert record["prompt"].startswith("<image>How long?") and record["from"] == "table"
    assert (record["tag"], record["id"]) == ("Text Lite", "3")


def test_mathvision_from_its_table(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "question": "<image1> Which?",
        "options": ["3", "4"],
        "image": "images/1.jpg",
        "subject": "algebra",
    }
    row |= {"answer": "\x0crac{36}{13}", "decoded_image": embedded(tmp_path / "a.png")}
    rows = [row, row | {"options": ["A", "B", "C"], "answer": "A"}]
    parquet(tmp_path / "source/data/test-00000-of-00001.parquet", rows)
    first, second = made("mathvision", tmp_path / "source", tmp_path / "mathvision.jsonl")
    assert first["prompt"] == "<image>Which?\nChoices:\n(A) 3\n(B) 4" and second["prompt"] == "<image>Which?"
    assert first["answer"] == "\x0crac{36}{13}" and first["tag"] == "algebra"


def test_logicvista_from_its_list_by_number(tmp_path: Path) -> None:
    png(tmp_path / "source/images/1.png")
    row = {"imagename": "1.png", "question": "Which?", "answer": "B, D", "skill": ["spatial", "x"], "reasoning": ""}
    (tmp_path / "source/dataset.json").write_text(json.dumps({"0": row, "1": row | {"answer": None}}))
    [record] = made("logicvista", tmp_path / "source", tmp_path / "logicvista.jsonl")
    assert (record["prompt"], record["answer"], record["tag"]) == ("<image>Which?", "B, D", "spatial")


def test_mm12k_and_mmmu_pro_from_their_tables(tmp_path: Path) -> None:
    picture = embedded(tmp_path / "a.png")
    row = {"id": "1", "question": "How far?", "answer": "12", "subject": "physics", "image": picture}
    parquet(tmp_path / "mm12k/test-0.parquet", [row])
    [record] = made("mm12k", tmp_path / "mm12k", tmp_path / "mm12k.jsonl")
    assert (record["prompt"], record["answer"], record["tag"]) == ("<image>How far?", "12", "physics")
    parquet(tmp_path / "mmmu/vision/test-0.parquet", [row | {"options": "['a', 'b']", "answer": "B"}])
    parquet(tmp_path / "mmmu/standard/test-0.parquet", [{"another": "configuration"}])
    [record] = made("mmmu-pro", tmp_path / "mmmu", tmp_path / "mmmu-pro.jsonl")
    assert record["prompt"] == "<image>Answer the question in the image with the letter of the right option."


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"question": "<image><image>?"}, "row 1 has 2 mark(s) <image> and 1 picture(s): mend the row"),
        ({"image": ["images/lost.png"]}, "row 1 shows images/lost.png, which is neither in"),
        ({"image": ["images/torn.png"]}, "torn.png, which cannot be read (it ends early): copy it again"),
        ({"image": [7]}, "row 1 has a picture that is neither a path nor bytes"),
        ({"answer": ""}, "own.jsonl holds no question with an answer: give the file that has the answers"),
    ],
    ids=["marks", "lost", "torn", "neither", "unanswered"],
)
def test_what_is_wrong_is_said_with_the_row(
    columns: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = png(tmp_path / "images/a.png").read_bytes()
    (tmp_path / "images/torn.png").write_bytes(whole[:-8])
    (tmp_path / "own.jsonl").write_text(json.dumps(virl(**columns)))
    assert said in refused("virl39k", tmp_path, tmp_path / "out/virl39k.jsonl", capsys)


def test_a_file_without_answers_or_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "source", tmp_path / "out/virl39k.jsonl"
    source.mkdir()
    assert "holds none of the files 39Krelease.parquet, *" in refused("virl39k", source, out, capsys)
    row = virl()
    del row["answer"]
    (source / "a.json").write_text(json.dumps([row]))
    assert "row 1 has no column `answer`, only `question`, " in refused("virl39k", source, out, capsys)
    (source / "a.json").write_text("[1]")
    assert "a.json, row 1 is no object" in refused("virl39k", source, out, capsys)
    (source / "a.json").write_text("{")
    assert "a.json is no JSON" in refused("virl39k", source, out, capsys)
    (source / "a.json").unlink()
    (source / "a.parquet").write_bytes(b"PAR1")
    assert "a.parquet cannot be read (" in refused("virl39k", source, out, capsys)
    assert "there is no" in refused("virl39k", source / "nowhere", out, capsys)
    assert main(["data", "make", "geneval", "--source", str(source)]) == 2
    assert "geneval is computed, not read from files" in capsys.readouterr().err


def test_a_torn_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(virl()))
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert "images.zip cannot be unpacked (" in refused("virl39k", tmp_path, tmp_path / "out/virl39k.jsonl", capsys)


def test_without_a_connection_the_command_that_fetches_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def offline(repository: str, **more: Any) -> str:
        asked.update(more, repository=repository)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert main(["data", "make", "mathverse", "--out", str(tmp_path / "mathverse.jsonl")]) == 2
    said = "cannot fetch PAPO-Galaxy/PAPO_eval from the hub (no connection): run `hf download --repo-type dataset PAPO-"
    assert said in capsys.readouterr().err
    assert asked["repo_type"] == "dataset" and "*AI4Math_MathVerse*" in "".join(asked["allow_patterns"])
