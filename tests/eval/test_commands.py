"""`t2i-rl eval` end to end on a random model, with tiny random scorers made here."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image

from eval import hps
from eval.compbench import benchmark as compbench
from eval.compbench.language import load_language
from eval.preferences import JUDGES, installed
from rewards.catalogue import REWARDS, RewardEntry
from rewards.errors import RewardError
from t2i_rl.cli import main
from tests.conftest import random_janus
from tests.eval.small import ByPixel, builder, lines
from tests.eval.tiny_models import Plain, save_blip, save_dpt, save_owlv2
from tests.rewards.tiny_clip import save_tiny_clip

RECORDS = [
    {"tag": "colors", "include": [{"class": "ring", "count": 1, "color": "red"}], "prompt": "a photo of a red ring"},
    {"tag": "counting", "include": [{"class": "ring", "count": 2}], "prompt": "a photo of two rings"},
]
COMPBENCH = {
    "color": ["a red bench and a green bowl", "a blue cat"],
    "shape": ["a red cup"],
    "texture": ["a blue dog"],
    "spatial": ["a cat on the left of a dog"],
    "non_spatial": ["a dog and a cat of a bench"],
    "complex": ["The red cat is next to the blue dog.", "The red cup and the green bowl."],
    "3d_spatial": ["a cat in front of a dog"],
    "numeracy": ["two cats and a cup"],
}
SIZES = {"geneval": 2, "t2i-compbench": sum(map(len, COMPBENCH.values())), "drawbench": 3, "hps": 8}
Words = list[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of every benchmark, and tiny models."""
    folder = tmp_path_factory.mktemp("eval")
    random_janus().save(folder / "model")
    for save, name in ((save_blip, "blip"), (save_owlv2, "owlv2"), (save_dpt, "dpt"), (save_tiny_clip, "clip")):
        save(folder / name)
    prompts = folder / "prompts"
    (prompts / "t2i-compbench").mkdir(parents=True)
    (prompts / "geneval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    for category, texts in COMPBENCH.items():
        (prompts / f"t2i-compbench/{category}_val.txt").write_text("\r\n".join(texts) + "\r\n")
    (prompts / "t2i-compbench/complex_val_spatial.txt").write_text("The red cat is next to the blue dog.\n")
    (prompts / "t2i-compbench/complex_val_action.txt").write_text("The red cup and the green bowl.\n")
    (prompts / "t2i-compbench/new_objects.txt").write_text("cat - cats\ncup - cups\n")
    (prompts / "drawbench.csv").write_text('Prompts,Category\n"A red cat.",Colors\nTwo dogs,Counting\nA cup,"Text "\n')
    (prompts / "hps").mkdir()
    for style in hps.STYLES:
        (prompts / f"hps/{style}.json").write_text(json.dumps([f"a cat, {style}", f"a dog, {style}"]))
    return folder


@pytest.fixture(autouse=True)
def tiny_scorers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("hpsv2", "beauty"):
        monkeypatch.setitem(REWARDS, name, RewardEntry(builder(ByPixel(name=name))))
    monkeypatch.setattr(compbench, "load_language", Plain)
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))


def words(place: Path, name: str, out: Path) -> Words:
    """The command of one benchmark."""
    prompts = place / "prompts"
    of_one = {
        "geneval": ["--prompts", str(prompts / "geneval.jsonl")],
        "t2i-compbench": ["--prompts", str(prompts / "t2i-compbench"), *models(place)],
        "drawbench": ["--prompts", str(prompts / "drawbench.csv"), "--scorers", "hpsv2", "beauty"],
        "hps": ["--prompts", str(prompts / "hps"), "--scorers", "hpsv2"],
    }
    return ["eval", name, *of_one[name], *drawing(place), "--out", str(out)]


def models(place: Path) -> Words:
    owlv2 = f"owlv2:{place / 'owlv2'}"
    found = {"blip": place / "blip", "clip": place / "clip", "depth": place / "dpt"}
    found |= {"detector": owlv2, "detector-r50": owlv2}
    return [word for name, where in found.items() for word in (f"--{name}", str(where))]


def drawing(place: Path) -> Words:
    return ["--model", str(place / "model"), "--guidance-scale", "3", "--images-per-prompt", "2", "--batch", "8"]


def read(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def images_alone(folder: Path) -> None:
    """Remove what we write beside the images."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.suffix not in (".png", ".jpg"):
            path.unlink()


@pytest.mark.parametrize("name", SIZES)
def test_a_benchmark(place: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    out = tmp_path / "out"
    assert main(words(place, name, out)) == 0
    summary = read(out)
    assert summary["counts"]["prompts"] == SIZES[name] and summary["counts"]["images"] == 2 * SIZES[name]
    assert summary["settings"]["weights"].keys() == {"model.safetensors"}
    shown = capsys.readouterr().out
    assert all(f"{metric['overall']:.4f}" in shown for metric in summary["metrics"].values())

    # Once more changes nothing, and two processes give the same numbers as one.
    assert main(words(place, name, out)) == 0 and read(out) == summary
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(words(place, name, tmp_path / "two")) == 0
    assert read(tmp_path / "two") == summary
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")

    # Drawn in the official layout, judged by its images alone.
    official, expected = tmp_path / "official", summary["metrics"]
    lossy = name == "hps"  # its official images are JPEG files
    assert main([*words(place, name, official), "--official-layout", *["--generate-only"] * (not lossy)]) == 0
    if lossy:
        assert read(official)["metrics"] != expected
        expected = read(official)["metrics"]
    images_alone(official)
    assert main([*words(place, name, tmp_path / "judged"), "--from-images", str(official)]) == 0
    assert read(tmp_path / "judged")["metrics"] == expected
    assert read(tmp_path / "judged")["counts"] == summary["counts"]


def test_the_official_layouts(place: Path, tmp_path: Path):
    for name in ("t2i-compbench", "hps"):
        assert main([*words(place, name, tmp_path / name), "--generate-only", "--official-layout"]) == 0
    color = sorted(path.name for path in (tmp_path / "t2i-compbench/color/samples").iterdir())
    texts = COMPBENCH["color"]
    assert color == sorted([f"{texts[number // 2]}_{number:06d}.png" for number in range(4)])
    assert sorted(path.name for path in (tmp_path / "hps/photo").iterdir()) == [f"{n:05d}.jpg" for n in range(4)]
    with Image.open(tmp_path / "hps/photo/00000.jpg") as image:
        assert image.format == "JPEG"


def test_the_official_files_of_scores(place: Path, tmp_path: Path):
    assert main(words(place, "t2i-compbench", tmp_path)) == 0
    rows = lines(tmp_path / "scores/t2i-compbench.jsonl")
    images = lines(tmp_path / "manifest.jsonl")
    for category in COMPBENCH:
        told = json.loads((tmp_path / f"annotations/{category}/vqa_result.json").read_text())
        ours = [r["values"]["total"] for r, image in zip(rows, images, strict=True) if image["category"] == category]
        assert [float(one["answer"]) for one in told] == pytest.approx(ours, abs=5e-5)
    notes = " ".join(read(tmp_path)["notes"])
    assert "not comparable" in notes and "OWLv2" in read(tmp_path)["scorers"]["t2i-compbench"]


def test_a_file_with_another_prompt_in_its_name(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [*words(place, "t2i-compbench", tmp_path / "out"), "--categories", "color"]
    assert main([*command, "--generate-only", "--official-layout"]) == 0
    path = tmp_path / "out/color/samples/a blue cat_000002.png"
    path.rename(path.with_name("a green dog_000002.png"))
    (tmp_path / "out/settings.json").unlink()
    judged = [*words(place, "t2i-compbench", tmp_path / "judged"), "--categories", "color"]
    assert main([*judged, "--from-images", str(tmp_path / "out")]) == 2
    assert 'should show "a blue cat"' in capsys.readouterr().err


def started(command: Words, rank: int = 0, world: int = 1) -> BaseProcess:
    """The command in a process of its own, as torchrun would start it."""

    def work() -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        torch.set_num_threads(1)  # a forked process must not use its parent's threads
        sys.exit(main(command))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def test_processes_that_are_killed_and_processes_at_once(place: Path, tmp_path: Path):
    """SIGKILL while images are drawn; then two processes side by side finish what one left."""
    prompts = [{**RECORDS[0], "prompt": f"a photo of {number} red ring"} for number in range(40)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(record) + "\n" for record in prompts))
    out, whole = tmp_path / "out", tmp_path / "whole"

    def command(folder: Path) -> Words:
        return ["eval", "geneval", "--prompts", str(tmp_path / "many.jsonl"), *drawing(place), "--out", str(folder)]

    child = started(command(out))
    while child.is_alive() and not whole_lines(out / "manifest.0.jsonl"):
        time.sleep(0.001)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and 0 < whole_lines(out / "manifest.0.jsonl") < 80
    children = [started([*command(out), "--resume"], rank, 2) for rank in (0, 1)] + [started(command(whole))]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    for name in ("summary.json", "manifest.jsonl", "scores/geneval.jsonl", "results.jsonl"):
        assert (out / name).read_text() == (whole / name).read_text()
    assert not list(out.rglob("*.[01].jsonl"))


def whole_lines(path: Path) -> int:
    """How many, in a file that may be there, and may end in a torn one."""
    return path.read_text().count("\n") if path.exists() else 0


def test_images_of_another_number_or_of_other_prompts(place: Path, tmp_path: Path, capsys):
    assert main([*words(place, "drawbench", tmp_path / "out"), "--generate-only"]) == 0
    capsys.readouterr()
    judging = [*words(place, "drawbench", tmp_path / "judged"), "--from-images", str(tmp_path / "out")]
    for number, complaint in (("1", "not asked for, such as 00000/samples/0001.png"), ("3", "lacks 3 of 9 images")):
        assert main([*judging, "--images-per-prompt", number]) == 2
        error = capsys.readouterr().err
        assert complaint in error and f"takes {number} of each of 3 prompts" in error and error.count("\n") == 1
    (tmp_path / "out/00003/samples").mkdir(parents=True)
    shutil.copy(tmp_path / "out/00002/samples/0000.png", tmp_path / "out/00003/samples")
    assert main(judging) == 2 and "not asked for, such as 00003/samples/0000.png" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out/00003")
    Image.new("RGB", (8, 8)).save(tmp_path / "out/00002/grid.png")  # GenEval's own tool writes such
    other = tmp_path / "other.csv"
    other.write_text("Prompts,Category\nA cat,Colors\nTwo dogs,Counting\nA cup,Text\n")
    assert main([*judging, "--prompts", str(other)]) == 2
    assert '00000/metadata.jsonl is about "A red cat.", not about "A cat"' in capsys.readouterr().err
    assert not (tmp_path / "judged").exists() and main(judging) == 0
    assert main([*judging[:-1], str(tmp_path / "absent")]) == 2 and "absent is no folder" in capsys.readouterr().err


def test_a_killed_evaluation_ends_with_the_same_summary(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = ["--batch", "2"]
    assert main([*words(place, "drawbench", tmp_path / "whole"), *small]) == 0
    monkeypatch.setitem(REWARDS, "beauty", RewardEntry(builder(ByPixel(name="beauty", fail_after=3))))
    assert main([*words(place, "drawbench", tmp_path / "killed"), *small]) == 2
    monkeypatch.setitem(REWARDS, "beauty", RewardEntry(builder(ByPixel(name="beauty"))))
    assert main([*words(place, "drawbench", tmp_path / "killed"), *small]) == 0
    assert (tmp_path / "killed/summary.json").read_text() == (tmp_path / "whole/summary.json").read_text()


def test_all(place: Path, tmp_path: Path):
    command = ["eval", "all", "--prompts", str(place / "prompts"), "--scorers", "hpsv2", "beauty", *models(place)]
    assert main([*command, *drawing(place), "--out", str(tmp_path / "all")]) == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == SIZES.keys()
    assert main(words(place, "drawbench", tmp_path / "alone")) == 0
    assert read(tmp_path / "all/drawbench") == read(tmp_path / "alone")


def test_every_installed_scorer(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in JUDGES:
        monkeypatch.delenv(REWARDS[name].endpoint, raising=False)
    assert not {*installed()} & {*JUDGES}  # none has an endpoint
    monkeypatch.setenv(REWARDS["deqa"].endpoint, "http://there/v1")
    for name in installed():
        monkeypatch.setitem(REWARDS, name, RewardEntry(builder(ByPixel(name=name))))
    command = words(place, "drawbench", tmp_path)
    start = command.index("--scorers")
    assert main([*command[:start], *command[start + 3 :]]) == 0
    assert read(tmp_path)["metrics"].keys() == {*installed()} >= {"hpsv2", "deqa"}
    assert {*read(tmp_path)["metrics"]["hpsv2"]["categories"]} == {"Colors", "Counting", "Text"}


def test_figures_of_hps_are_a_hundred_times_the_cosine(place: Path, tmp_path: Path):
    assert main(words(place, "hps", tmp_path)) == 0
    values = [row["values"]["total"] for row in lines(tmp_path / "scores/hpsv2.jsonl")]
    summary = read(tmp_path)
    assert summary["metrics"]["hpsv2"]["overall"] == pytest.approx(100 * sum(values) / len(values))
    assert summary["styles"]["hpsv2"]["average"] == pytest.approx(summary["metrics"]["hpsv2"]["overall"])


TOML = """
name = "world"
prompts = "world.jsonl"
scorers = ["judge"]
overall = "categories"
notes = ["a note"]

[metrics.world]
scorer = "judge"
values = { total = 0.25, truth = 0.5 }
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of one's own."""
    monkeypatch.setitem(REWARDS, "judge", RewardEntry(builder(ByPixel("truth"))))
    rows = [{"prompt": text, "category": text[-1]} for text in ("a cat", "a dog", "a big cat")]
    (tmp_path / "world.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "world.toml").write_text(TOML)
    return tmp_path / "world.toml"


def test_a_benchmark_of_ones_own(place: Path, own: Path, tmp_path: Path):
    assert main(["eval", str(own), *drawing(place), "--out", str(tmp_path / "out")]) == 0
    metric = read(tmp_path / "out")["metrics"]["world"]
    rows = lines(tmp_path / "out/scores/judge.jsonl")
    values = [0.25 * row["values"]["total"] + 0.5 * row["values"]["truth"] for row in rows]
    t, g = (values[0] + values[1] + values[4] + values[5]) / 4, (values[2] + values[3]) / 2
    assert metric["categories"] == pytest.approx({"t": t, "g": g})
    assert metric["overall"] == pytest.approx((t + g) / 2) and read(tmp_path / "out")["notes"] == ["a note"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "world"', "", "lacks 'name'"),
        ('scorers = ["judge"]', "", "neither scorers nor questions"),
        ('"world.jsonl"', "[]", "'prompts' is empty"),
        ('"world.jsonl"', '[{ text = "a cat" }]', "entry 1 of 'prompts' has no `prompt`, only `text`"),
        ('notes = ["a note"]', 'questions = { red = "is it red?" }', "the question 'red' is"),
        ('notes = ["a note"]', 'questions = { red = { ask = "red?", words = { yes = 1 } } }', "two or more"),
        ('scorer = "judge"', 'scorer = "questions"', "the figure 'world' is made of"),
        ("name", "= name", "is not TOML"),
        ('overall = "categories"', 'overall = "sum"', "'overall' is 'sum'"),
        ('notes = ["a note"]', "colour = 3", "'colour' is 3"),
        ('scorer = "judge"', 'scorer = "jury"', "the figure 'world' is made of"),
        ("truth = 0.5", 'truth = "much"', "the figure 'world' is made of"),
        ("world.jsonl", "absent.jsonl", "absent.jsonl"),
    ],
)
def test_a_description_that_says_nothing(own: Path, old: str, new: str, message: str, capsys):
    own.write_text(TOML.replace(old, new, 1))
    assert main(["eval", str(own)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("drawbench --scorers hpsv2:1", "every scorer is a figure of its own"),
        ("drawbench --scorers nothing", "no reward named 'nothing'"),
        ("hps --prompts .", "has no anime.json"),
        ("t2i-compbench --categories beauty", "no category 'beauty'"),
        ("t2i-compbench --prompts .", "has no color_val.txt"),
        ("all --benchmarks geneval beauty", "no benchmark 'beauty'"),
        ("geneval --batch 0", "batch is 0"),
        ("geneval --images-per-prompt 0", "images_per_prompt is 0"),
        ("geneval --missing-as-zero", "--missing-as-zero is for --from-images"),
        ("geneval --generate-only --from-images .", "use one of them"),
        ("geneval --resume", "no evaluation was begun in runs/geneval"),
        ("hps --from-images absent", "are not here yet: run t2i-rl data get hps"),
        ("drawbench", "the prompts drawbench are not here yet: run t2i-rl data get drawbench"),
        ("absent.toml", "absent.toml"),
    ],
)
def test_what_is_refused(command: str, message: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *command.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_model_that_is_not_there(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [*words(place, "geneval", tmp_path / "out"), "--model", str(tmp_path / "absent")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "absent") in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_spacy_that_is_not_there(place: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(compbench, "load_language", load_language)
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert main(words(place, "t2i-compbench", tmp_path / "out")) == 2
    assert "run pip install spacy" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_scorer_that_compares_images(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*words(place, "drawbench", tmp_path / "out"), "--scorers", "pairwise"]) == 2
    assert "'pairwise' compares the images of one call" in capsys.readouterr().err


def test_a_detector_that_is_none(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*words(place, "t2i-compbench", tmp_path / "out"), "--detector", "yolo"]) == 2
    assert "'yolo' is no detector" in capsys.readouterr().err


def test_a_scorer_that_cannot_score_a_prompt(place: Path, tmp_path: Path, monkeypatch, capsys):
    class Choosy(ByPixel):
        def check(self, prompts, metadata) -> None:
            raise RewardError(f"not {prompts[0]}")

    monkeypatch.setitem(REWARDS, "hpsv2", RewardEntry(builder(Choosy())))
    assert main(words(place, "hps", tmp_path / "out")) == 2
    assert "not a cat, anime" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_images_of_another_machine(place: Path, tmp_path: Path):
    """A folder can be moved between drawing and judging."""
    assert main([*words(place, "hps", tmp_path / "out"), "--generate-only"]) == 0
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert main(words(place, "hps", tmp_path / "moved")) == 0
    assert main(words(place, "hps", tmp_path / "here")) == 0
    assert read(tmp_path / "moved") == read(tmp_path / "here")


def test_the_documented_flags_are_there(capsys: pytest.CaptureFixture[str]):
    for command in (["eval", "all"], ["eval", "drawbench"], ["eval", "mathverse"], ["compare"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
    known = {*re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out)}
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    unidet, others = {"--checkout", "--config", "--weights", "--port"}, {"--nproc-per-node", "--no-python", "--source"}
    assert {*re.findall(r"--[a-z][a-z0-9-]+", text)} <= known | unidet | others
