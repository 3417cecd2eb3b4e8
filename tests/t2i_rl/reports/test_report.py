"""The page about runs: what it is made of, and how it behaves in a browser."""

import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_rl.cli import main
from t2i_rl.configuration.config import EvaluationConfig, TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.reports import report
from t2i_rl.reports.paired import Paired
from t2i_rl.reports.report import Reported
from tests.t2i_rl.browser import act, needs_browser, screenshot
from tests.t2i_rl.small_runs import STEPS, train_words


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A finished run with token maps in its folder, and the same one as if killed after two steps."""
    from rewards.catalogue import REWARDS, RewardEntry
    from tests.t2i_rl.small_runs import Brightness

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
        assert main(train_words(model, folder / "whole", "critical")) == 0
    words = ["a photo of a ring", "--model", str(model), "--group-size", "2", "--out", str(folder / "whole/heatmap")]
    assert main(["heatmap", *words]) == 0
    killed = folder / "killed"
    shutil.copytree(folder / "whole", killed, ignore=shutil.ignore_patterns("heatmap", "step-000003.png"))
    config = json.loads((killed / "config.json").read_text())
    (killed / "config.json").write_text(json.dumps({**config, "method": "cfg", "seed": 7}))
    lines = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    return [folder / "whole", killed]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    path = runs[0].parent / "report.html"
    assert main(["report", *map(str, runs), "--out", str(path)]) == 0
    return path


def test_what_a_person_wants_to_know_first(runs: list[Path], page: Path):
    html = page.read_text()
    first = report.headline(report.read(runs[0], "whole"))
    assert re.fullmatch(r"0\.\d{3} → 0\.\d{3}", first["score"]) and "±" in first["change"]
    assert f"<strong>{first['score']}</strong>" in html and re.fullmatch(r"\d+ s", first["time"])
    assert re.fullmatch(r"prompts won: \d, lost: \d, of 2", first["prompts"]) and first["prompts"] in html
    assert "prefers-color-scheme: dark" in html
    assert "never changed" in html  # such as the clipped tokens of single updates


def test_a_panel_that_says_nothing():
    dull = reported(reward=[0.5, 0.5], kl=[0.0, 0.1], heldout=[0.3, 0.3])
    assert report.silent("reward", [dull]) and not report.silent("kl", [dull]) and not report.silent("heldout", [dull])
    assert not report.silent("reward", [dull, reported(reward=[0.5, 0.6])])
    rounded = reported(policy_loss=[2e-8, -1e-8], credit_weight=[0.5, 0.5 + 1e-7], learning_rate=[1e-7, 2e-7])
    assert [name for name in rounded.metrics[0] if report.silent(name, [rounded])] == ["policy_loss", "credit_weight"]


def test_errors_stand_beside_held_out_scores():
    run = reported(reward=[0.1, 0.2], **{"heldout": [0.5, 0.25], "heldout/a": [0.5, 0.5], "heldout/b": [0.5, 0.0]})
    images = TrainConfig().evaluation.images_per_tag
    overall = [math.sqrt(0.5 / images) / 2, math.sqrt(0.25 / images) / 2]
    assert report.panel("heldout", [run])["errors"] == [pytest.approx(overall)]
    assert report.panel("heldout/b", [run])["errors"] == [pytest.approx([math.sqrt(0.25 / images), 0])]
    assert report.panel("reward", [run])["errors"] == [[]]
    assert report.error_at(run, {"step": 0, "heldout": 3.0, "heldout/a": 3.0}, "heldout") is None
    known = dataclasses.replace(run, errors={1: {"heldout": 0.01}})
    assert report.panel("heldout", [known])["errors"] == [pytest.approx([overall[0], 0.01])]
    assert report.panel("heldout/b", [known])["errors"] == [[pytest.approx(math.sqrt(0.25 / images)), None]]
    assert report.headline(reported(reward=[0.1], heldout=[0.5]))["change"] == ""


def test_the_change_over_the_prompts_that_were_asked_twice():
    run = reported(heldout=[0.25, 0.5], **{"heldout/a": [0.25, 0.5]})
    told = report.headline(dataclasses.replace(run, paired=Paired(20, 7, 2, 0.04)))
    assert told["score"] == "0.250 → 0.500" and told["change"] == "+0.250 ± 0.040"
    assert told["prompts"] == "prompts won: 7, lost: 2, of 20"
    images = TrainConfig().evaluation.images_per_tag
    alone = math.sqrt(0.5**2 / images * 2)  # a single prompt has no error over prompts
    assert report.headline(dataclasses.replace(run, paired=Paired(1, 1, 0, None)))["change"] == f"+0.250 ± {alone:.3f}"
    assert report.headline(run)["prompts"] == ""


@pytest.mark.parametrize(
    ("scores", "paired", "says"),
    [
        ([0.5], None, "cannot be said: the held-out prompts were judged once"),
        ([0.5, 0.9], Paired(9, 9, 0, 0.01), "cannot be said: 9 held-out prompts are too few"),
        ([0.5, 0.5], Paired(20, 1, 1, 0.04), "not seen"),
        ([0.5, 0.55], Paired(20, 3, 2, 0.04), "not settled: the held-out score's change of +0.050 is 1.3 of its"),
        ([0.5, 0.6], Paired(20, 5, 1, 0.04), "Yes: the held-out score's change of +0.100 is 2.5 of its"),
        ([0.5, 0.4], Paired(20, 1, 5, 0.04), "No, it unlearned: the held-out score's change of -0.100 is 2.5"),
        ([5.0, 6.0], Paired(20, 9, 1, None), "changed by +1.000; how sure that is, is not known"),
    ],
)
def test_whether_a_run_learned(scores: list[float], paired: Paired | None, says: str):
    run = reported(**{"heldout": scores, "heldout/a": scores})
    assert says in report.learned(dataclasses.replace(run, paired=paired))


def test_a_run_that_was_judged_once_shows_that_score():
    told = report.headline(reported(reward=[0.7], heldout=[0.5]))
    assert (told["score"], told["under"]) == ("0.500", "held-out score at step 0, the only evaluation")


def data_of(html: str) -> dict:
    """What the page's own script reads; pages of token maps come before it, escaped."""
    return json.loads(re.findall(r"^const data = (.*);$", html, re.MULTILINE)[-1])


def reported(name: str = "run", **metrics: list[float]) -> Reported:
    steps = len(next(iter(metrics.values())))
    rows = [{"step": step, **{key: values[step] for key, values in metrics.items()}} for step in range(steps)]
    return Reported(name, TrainConfig(), rows, None, {})


def test_every_number_of_the_runs_is_in_the_page(runs: list[Path], page: Path):
    html = page.read_text()
    data = data_of(html)
    curves = {panel["name"]: panel["curves"] for panel in data["panels"]}
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert curves.keys() == {name for row in rows for name in row} - {"step"}
    for name, (whole, killed) in curves.items():
        expected = [[row["step"], row[name]] for row in rows if name in row]
        assert whole == expected and killed == [point for point in expected if point[0] <= 2]
        assert f'data-panel="{name}"' in html
    assert [[step for step, _ in samples] for samples in data["samples"]] == [[0, 3, 5], [0]]
    assert all(len(shown) == 2 for samples in data["samples"] for _, shown in samples)
    assert data["steps"] == [0, 3, 5]
    assert html.count("<iframe") == html.count('<iframe sandbox="allow-scripts"') == 1 and "not finished" in html


def test_the_page_needs_nothing_else(page: Path):
    html = re.sub(r'srcdoc="[^"]*"', "", page.read_text())
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<link|<script src|url\(|@import", html)


def test_what_differs_is_told_apart_from_what_does_not(page: Path):
    html = page.read_text()
    differing = html.split("What differs between the runs:")[1].split("</table>")[0]
    assert re.findall(r"<tr><th>(.*?)</th>", differing)[1:] == ["method", "seed"]
    assert "rollout.group_size" in html and "rollout.group_size" not in differing


def test_sections_hold_every_curve_once():
    names = [
        "zzz",
        "kl",
        "heldout/a",
        "seconds/score",
        "heldout",
        "reward_std",
        "reward/strict",
        "groups_lost",
        "seconds/step",
    ]
    assert report.sections(names) == {
        "Held-out score": ["heldout", "heldout/a"],
        "Reward of the training groups": ["reward/strict", "reward_std", "groups_lost"],
        "Policy": ["kl"],
        "Time": ["seconds/step", "seconds/score"],
        "Further": ["zzz"],
    }


def test_the_summary_of_a_run():
    config = dataclasses.replace(TrainConfig(), steps=2, evaluation=EvaluationConfig(images_per_tag=50))
    run = reported(heldout=[0.5, 0.9, 0.6], **{"heldout/a": [0.5, 1, 0.2], "heldout/b": [0.5, 0.8, 1.0]})
    row = report.summary(dataclasses.replace(run, config=config))
    assert row["steps"] == "2 of 2" and row["held-out before"] == "0.500"
    assert row["best (step)"] == "0.900 (1)" and row["last"] == "0.600"
    assert row["error of the last"] == f"± {math.sqrt(0.2 * 0.8 / 50) / 2:.3f}"
    unbounded = reported(heldout=[3.0], **{"heldout/a": [3.0]})
    assert report.summary(unbounded)["error of the last"] == "" and report.summary(unbounded)["last"] == ""
    assert report.panel("heldout", [unbounded])["unit"] is False


def test_damaged_samples_are_left_out(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = shutil.copytree(runs[0], tmp_path / "run")
    os.truncate(run / "samples" / "step-000003.png", 60)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(bytes(100) + b"\n")
    samples = report.read(run, "run").samples
    assert samples is not None and [*samples.steps] == [0, 5]
    said = capsys.readouterr().err
    assert "metrics.jsonl: line 7" in said and "step-000003.png" in said


def test_a_run_without_a_common_name_goes_by_its_path():
    assert report.names_of([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert report.names_of([Path("a/one"), Path("b/two")]) == ["one", "two"]


def test_token_maps_can_be_drawn_with_the_newest_checkpoint(runs: list[Path], monkeypatch: pytest.MonkeyPatch):
    maps = report.read(runs[0], "whole", prompt="a photo of two crosses").maps
    assert list(maps) == ["heatmap", "“a photo of two crosses”"]
    assert f"whole, step-{STEPS:06d}, against" in maps["“a photo of two crosses”"]


def test_runs_with_other_numbers_of_images_are_told(runs: list[Path]):
    one = report.read(runs[0], "one")
    more = dataclasses.replace(one.config, evaluation=EvaluationConfig(images_per_tag=77))
    images = one.config.evaluation.images_per_tag
    assert f"over {images} or 77 samples" in report.report([one, dataclasses.replace(one, config=more)])


def test_what_is_no_run(tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]):
    for words, says in (
        ([], "no run is named"),
        ([str(tmp_path)], "is not a run folder"),
        (list(map(str, runs)), "name it with --out"),
    ):
        assert main(["report", *words]) == 2
        assert says in capsys.readouterr().err
    shutil.copy(runs[0] / "config.json", tmp_path)
    with pytest.raises(UserError, match="measured nothing yet"):
        report.read(tmp_path, "new")
    assert not (tmp_path / "report.html").exists()


@needs_browser
def test_the_slider_and_the_curves_in_a_browser(page: Path, tmp_path: Path):
    samples = data_of(page.read_text())["samples"]
    seen = act(
        page,
        """
        const runs = () => [...document.querySelectorAll(".samples")].map(each =>
          [...each.querySelectorAll(".pair")].map(pair => [...pair.querySelectorAll("img")].map(image => image.src)));
        const time = document.getElementById("time"), end = runs(), found = {end};
        slide(time, 0);
        found.start = runs();
        slide(time, 1);
        found.middle = runs();
        found.verdict = document.querySelector(".pair").textContent.replace(/\\s+/g, " ").trim();
        document.querySelectorAll("button.pair")[1].click();
        const large = document.getElementById("large"), press = key =>
          large.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
        const sizes = () => [large.open, ...[...large.querySelectorAll("img")].map(image => image.src)];
        found.large = sizes();
        press("ArrowLeft");
        found.previous = sizes();
        large.querySelector("form button").click();
        found.closed = large.open;
        found.now = document.getElementById("now").textContent;
        const figure = document.querySelector('[data-panel="heldout"]');
        point(figure.querySelector("svg"), 0.99, 0.5);
        found.readout = figure.querySelector("output").textContent;
        found.paths = [...figure.querySelectorAll("path")].map(path => path.getAttribute("stroke"));
        found.empty = [...document.querySelectorAll("[data-panel]")].filter(each => !each.querySelector("path")).length;
        found.shown = [...document.querySelectorAll(".samples img")].every(image => image.naturalWidth > 0);
        return found;
        """,
    )
    (first, third, last), (killed,) = ([[one for one, _, _ in shown] for _, shown in each] for each in samples)
    unchanged = [[one, one] for one in killed]
    assert seen["end"] == [[[*pair] for pair in zip(first, last, strict=True)], unchanged]
    assert seen["start"] == [[[one, one] for one in first], unchanged]
    assert seen["middle"] == [[[*pair] for pair in zip(first, third, strict=True)], unchanged]
    assert re.fullmatch(r"step 0 · score 0\.\d{3}\s*step 3 · score 0\.\d{3}", seen["verdict"])
    assert seen["now"] == "step 3"
    assert seen["large"] == [True, first[1], third[1]] and seen["previous"] == [True, first[0], third[0]]
    assert seen["closed"] is False
    assert re.fullmatch(r"step 5: whole 0\.\d+", seen["readout"])
    assert seen["paths"] == list(report.COLORS[:2])
    assert seen["empty"] == 0 and seen["shown"]
    screenshot(page, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert picture.size == (1300, 2500)
    for color in report.COLORS[:2]:  # of both runs' curves
        assert (pixels == [int(color[at : at + 2], 16) for at in (1, 3, 5)]).all(1).any()


@needs_browser
def test_pointing_at_a_token_in_a_browser(runs: list[Path]):
    with np.load(runs[0] / "heatmap/maps.npz") as saved:
        gradient, tokens = saved["entropy_gradient"], saved["tokens"]
    seen = act(
        runs[0] / "heatmap/heatmap.html",
        """
        const cell = document.querySelectorAll('figure[data-map="entropy_gradient"]')[1];
        const canvas = cell.querySelector("canvas");
        point(canvas, 0.6, 0.3);
        const mark = cell.querySelector(".mark"), found = {readout: document.getElementById("readout").textContent};
        found.mark = [mark.style.display, mark.style.left, mark.style.top, mark.style.width];
        canvas.dispatchEvent(new PointerEvent("pointerleave"));
        found.gone = mark.style.display;
        slide(document.getElementById("opacity"), 0.25);
        found.opacity = canvas.style.opacity;
        slide(document.getElementById("size"), 320);
        found.size = canvas.clientWidth;
        document.getElementById("lines").click();
        found.lines = getComputedStyle(cell.querySelector(".grid")).display;
        canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp"}));
        found.moved = document.getElementById("readout").textContent.match(/row \\d, column \\d/)[0];
        const folds = [...document.querySelectorAll("details")], folded = folds[0].querySelectorAll("figure");
        found.folded = [folds.length, ...[...folded].map(each => each.dataset.map)];
        const own = document.querySelectorAll(".row")[0].querySelectorAll(":scope > .maps > [data-map]");
        found.own = [...own].map(each => each.dataset.map);
        found.wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
        return found;
        """,
    )
    token = 1 * 4 + 2  # of a 4 x 4 grid: 0.6 across is column 2, 0.3 down is row 1
    value = float(f"{gradient[1, token]:.4g}")
    where = f"image 1, token {token} (row 1, column 2), code {tokens[1, token]}"
    assert seen["readout"] == f"smoothed entropy gradient: {value}  ·  {where}"
    assert seen["mark"] == ["block", "50%", "25%", "25%"] and seen["gone"] == "none"
    assert (seen["opacity"], seen["size"], seen["lines"]) == ("0.25", 320, "none")
    assert seen["moved"] == "row 0, column 3" and seen["wide"]
    assert seen["own"] == ["critical", "entropy_gradient", "similarity", "mask", "credit"]
    assert seen["folded"] == [2, "kl", "cfg", "entropy", "entropy_edges"]
