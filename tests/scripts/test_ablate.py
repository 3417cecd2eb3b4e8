"""Grids: the shipped ones and a true one of two cells; what is trained again, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval.tables.published import CRITICAL, GUIDANCE, ROWS
from scripts import ablate
from scripts.ablate import main, read_grid
from t2i_rl.configuration.presets import PRESETS, TOYS, preset
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.methods.credit.critical import CriticalTokens

GRIDS = sorted((Path(__file__).parents[2] / "scripts" / "grids").glob("*.toml"))


PAPERS = {"paper-cfg": GUIDANCE, "paper-critical": CRITICAL}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_arms_of_a_shipped_grid_are_pulled_alike_and_differ(path: Path) -> None:
    arms = {arm: (run_method(config), config) for arm, config in read_grid(path).items()}
    assert len(arms) >= 3
    assert len({method.objective.beta for method, _ in arms.values()}) == 1
    assert all(config.model in TOYS for _, config in arms.values())
    settings = {(method.credit, method.dynamic, method.objective, config.rollout) for method, config in arms.values()}
    if path.stem not in PAPERS:  # there one setting is a row of several tables
        assert len(settings) == len(arms)
    # What differs is written differently, so that what is the same is trained once.
    assert len(settings) == len({(config.method, config.rollout) for _, config in arms.values()})


@pytest.mark.parametrize("stem", PAPERS)
def test_the_arms_of_a_papers_grid_are_the_rows_of_its_ablations(stem: str) -> None:
    (path,) = (path for path in GRIDS if path.stem == stem)
    printed = [row for row in ROWS if row.paper == PAPERS[stem] and (row.of or row.table == "table 1")]
    met = set()
    for arm in read_grid(path):
        place, name = arm.split(" ", 1)
        if place.startswith("F"):
            continue
        rows = {row.row for row in printed if row.table == f"table {place[1:]}"}
        called = {row for row in rows if name in (row, f"{row}, 10 %", f"{row}, 30 %") or f"+ {name}" in row}
        (found,) = called  # table 1 of the guidance paper: Janus-Pro + GRPO
        met.add((f"table {place[1:]}", found))
    # Table 4 of the guidance paper is of questions.
    ablated = {(row.table, row.row) for row in printed if row.of and (stem, row.table) != ("paper-cfg", "table 4")}
    assert met >= ablated


def test_the_settings_of_the_papers_rows() -> None:
    cfg, critical = (read_grid(path) for stem in PAPERS for path in GRIDS if path.stem == stem)
    arms = {arm: run_method(config) for arm, config in {**cfg, **critical}.items()}
    assert arms["T1 GCPO"] == arms["T3a KL"] == arms["T3b histogram"] == METHODS["cfg"]
    assert arms["T1 GRPO"].credit == METHODS["grpo"].credit and arms["T1 GRPO"].objective.beta == 0.03
    alone = [arm for arm in arms if arm.startswith("F7") or (arm.startswith("T3 ") and "without" in arm)]
    assert len(alone) == 9 + 7 and all(arms[arm].dynamic is None for arm in alone)
    assert arms["T3 structure, without, 30 %"].credit == CriticalTokens(parts=("structure",), share=0.3)
    assert arms["F7 complement"].credit == CriticalTokens(keep="complement")
    assert arms["F7 random"].credit == METHODS["random"].credit
    with_weight = {arm for arm, method in arms.items() if method == METHODS["critical"]}
    same = {"T7 30 % critical, with", "T3 initial+structure+similarity, with", "T8 10:10:10", "T9 with", "T10 30 %"}
    assert with_weight == same | {"T11 G=4", "T11 G=8", "T11 G=12"}
    groups = [critical[f"T11 G={size}"].rollout for size in (4, 8, 12)]
    assert [(rollout.group_size, rollout.prompts_per_step) for rollout in groups] == [(4, 8), (8, 8), (12, 8)]
    assert (arms["T7 all tokens, with"].credit, arms["T7 all tokens, with"].dynamic) == (
        METHODS["grpo"].credit,
        METHODS["critical"].dynamic,
    )


def grid(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def test_an_arm_is_a_method_or_settings_over_the_shared_ones_over_the_preset(tmp_path: Path) -> None:
    arms = read_grid(
        grid(
            tmp_path,
            """
            shared = {steps = 7, rollout.group-size = 4}
            [arms]
            plain = "cfg"
            varied = {method = "cfg-released[credit.top=0.3]", rollout.group-size = 6, update.learning-rate = 1}
            """,
        )
    )
    base = preset("tiny", "shapes", "cfg")
    assert (arms["plain"].steps, arms["plain"].rollout.group_size, arms["plain"].update) == (7, 4, base.update)
    varied = arms["varied"]
    assert (varied.method, varied.steps, varied.rollout.group_size) == ("cfg-released[credit.top=0.3]", 7, 6)
    assert (varied.update.learning_rate, varied.rollout.sampling) == (1.0, base.rollout.sampling)


@pytest.mark.parametrize(
    ("name", "shared", "arm", "column", "number"),
    [
        ("paper-critical", 'model = "janus-pro-1b"\nreward = "hpsv2"', "T11 G=8", "janus-pro-1b-hps-critical", 24),
        ("paper-cfg", 'model = "janus-pro-7b"\nreward = "geneval"', "T3b histogram", "janus-pro-7b-geneval-cfg", 6),
    ],
)
def test_a_papers_grid_is_of_a_real_model(
    name: str, shared: str, arm: str, column: str, number: int, tmp_path: Path
) -> None:
    """With another [shared], as in docs/reproduce.md: settings are those of the model's column."""
    text = next(path for path in GRIDS if path.stem == name).read_text(encoding="utf-8")
    head, arms = text.partition("[shared]")[0], text.partition("[arms]")[2]
    found = read_grid(grid(tmp_path, f"{head}[shared]\n{shared}\n\n[arms]{arms}"))
    base = PRESETS[column]
    assert found[arm] == replace(base, rollout=replace(base.rollout, group_size=found[arm].rollout.group_size))
    assert (found[arm].rollout.group_size, found[arm].steps) == (8 if "G=8" in arm else 16, 1600)
    assert len({str(config) for config in found.values()}) == number


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arms = 3", "has to hold [arms]"),
        ("[arms]", "has to hold [arms]"),
        ("[methods]\na = 'cfg'", "has to hold [arms]"),
        ("shard = {}\n[arms]\na = 'cfg'", "has to hold [arms]"),
        ("[arms]\na = 'ppo'", "there is no method 'ppo'"),
        ("[arms]\na = 'cfg[credit.tip=1]'", "no setting credit.tip"),
        ("[arms]\na = 3", "arm a has to hold named settings, not 3"),
        ("[arms]\na = {rollout.size = 3}", "arm a, rollout, has the unknown key 'size'"),
        ("[arms]\na = {seed = 3}", "arm a, sets the seed or the folder"),
        ("[arms]\n'a/b' = 'cfg'", "its name becomes a folder's"),
        ("shared = {steps = 'many'}\n[arms]\na = 'cfg'", "shared: steps is 'many'"),
    ],
)
def test_grids_that_are_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_grid(grid(tmp_path, text))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(grid(tmp_path, "[arms]\na = 'cfg'"))
    for words, says in (
        (["--grid", path, "--methods", "cfg"], "--grid and --methods both name the arms"),
        (["--grid", path, "--arms", "b"], "there is no arm 'b': choose from a"),
        (["--grid", path, "--against", "b"], "there is no arm 'b': choose from a"),
        (["--grid", path, "--threads", "0"], "--threads is 0: it has to be at least 1"),
        (["--grid", str(tmp_path / "absent.toml")], "absent.toml"),
        (["--methods", "ppo"], "there is no method 'ppo'"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]


@pytest.mark.usefixtures("brightness")
def test_a_grid_is_filled_cell_by_cell(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a ring\na photo of two crosses\n")
    text = f"""
        [shared]
        model = "{model}"
        reward = "brightness"
        prompts = "{prompts}"
        heldout = "{prompts}"
        steps = 2
        rollout = {{prompts-per-step = 2, group-size = 2}}
        evaluation = {{every = 1, images-per-tag = 2}}
        [arms]
        k3 = "cfg[credit.statistic=k3]"
        free = "grpo[objective.beta=0]"
        again = "cfg[credit.statistic=k3]"
    """
    path, out = grid(tmp_path, text), tmp_path / "out"
    words = ["--grid", str(path), "--seeds", "0", "--out", str(out)]

    def rows() -> list[list[str]]:
        table = (out / "table.md").read_text()
        assert capsys.readouterr().out.endswith(table)
        lines = [line for line in table.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    assert main([*words, "--arms", "k3"]) == 0
    head, _, k3, free, same = rows()
    assert head[:5] == ["arm", "seeds", "step 0", "step 2", "Δ"]
    assert k3[head.index("weight")] == "0.50" and all(k3[:4] + k3[5:]) and not k3[4]
    # An arm of the same settings is the same run.
    assert same[:5] == ["again", *k3[1:4], "+0.000"]
    assert {path.name for path in out.iterdir()} == {"k3-0", "table.md", "curves.png"}
    assert free[:2] == ["free", "0"] and not any(free[2:])
    trained = (out / "k3-0" / "metrics.jsonl").read_bytes()

    # The finished cell is left alone, one killed before its first checkpoint starts again.
    shutil.copytree(out / "k3-0", out / "free-0")
    shutil.rmtree(out / "free-0" / "checkpoints")
    (out / "free-0" / "checkpoints").mkdir()
    (out / "free-0" / "metrics.jsonl").unlink()
    (out / "free-0" / "best.json").unlink()
    config = json.loads((out / "k3-0" / "config.json").read_text())
    (out / "free-0" / "config.json").write_text(json.dumps(config | {"method": "grpo[objective.beta=0]"}))
    assert main(words) == 0
    assert (out / "k3-0" / "metrics.jsonl").read_bytes() == trained
    head, _, again, free, _ = rows()
    columns = dict(zip(head, free, strict=True))
    assert again[:4] == k3[:4]
    assert columns.pop("KL") == "" and all(columns.values())  # without beta there is no reference
    assert (out / "curves.png").exists()

    # More steps: both cells go on from their checkpoints.
    assert main([*words, "--steps", "3", "--arms", "again", "--against", "k3"]) == 0
    assert (out / "k3-0" / "metrics.jsonl").read_bytes().startswith(trained)
    assert [row[1] for row in rows()[2:]] == ["1", "0", "1"]

    path.write_text(text.replace("statistic=k3", "statistic=ig"))
    assert main(words) == 2
    assert "was trained with method 'cfg[credit.statistic=k3]'" in capsys.readouterr().err


def test_several_processes_fill_the_cells_and_say_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate, "train", Path.mkdir)  # any work that another process can be handed
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(FileExistsError):
        [*ablate.fill([a, b, a], processes=2, threads=None)]
    assert a.is_dir() and b.is_dir()
