"""Grids: the shipped ones and a true one of two cells; what is trained again, and what is refused."""

import shutil
from pathlib import Path

import pytest

from scripts.ablate import main, read_grid
from t2i_rl.configuration.presets import preset
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.credit.critical import CriticalTokens

GRIDS = sorted((Path(__file__).parents[2] / "scripts" / "grids").glob("*.toml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_arms_of_a_shipped_grid_differ(path: Path) -> None:
    arms = read_grid(path)
    assert len(arms) >= 4
    settings = [(find_method(arm.method).credit, find_method(arm.method).dynamic, arm.rollout) for arm in arms.values()]
    objectives = [find_method(arm.method).objective for arm in arms.values()]
    assert len({*zip(settings, objectives, strict=True)}) == len(arms)
    assert all(arm.model == "tiny" for arm in arms.values())


def test_the_main_grid_holds_the_papers_methods_and_their_controls() -> None:
    (path,) = (path for path in GRIDS if path.stem == "main")
    arms = {arm: find_method(config.method) for arm, config in read_grid(path).items()}
    assert len(arms) >= 12
    for name in ("grpo", "cfg", "cfg-released", "critical", "critical-released"):
        assert arms[name] is METHODS[name]
    for part in ("initial", "structure", "similarity"):
        assert arms[part].credit == CriticalTokens(parts=(part,))
    assert arms["complement"].credit == CriticalTokens(keep="complement")
    assert (arms["weight-on-all"].credit, arms["weight-on-all"].dynamic) == (
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
            varied = {method = "cfg[credit.top=0.3]", rollout.group-size = 6, update.learning-rate = 1}
            """,
        )
    )
    base = preset("tiny", "shapes", "cfg")
    assert (arms["plain"].steps, arms["plain"].rollout.group_size, arms["plain"].update) == (7, 4, base.update)
    varied = arms["varied"]
    assert (varied.method, varied.steps, varied.rollout.group_size) == ("cfg[credit.top=0.3]", 7, 6)
    assert (varied.update.learning_rate, varied.rollout.sampling) == (1.0, base.rollout.sampling)


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
    """
    path, out = grid(tmp_path, text), tmp_path / "out"
    words = ["--grid", str(path), "--seeds", "0", "--out", str(out)]

    def rows() -> list[list[str]]:
        table = (out / "table.md").read_text()
        assert capsys.readouterr().out.endswith(table)
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]

    assert main([*words, "--arms", "k3"]) == 0
    head, _, k3, free = rows()
    assert head[:5] == ["arm", "seeds", "step 0", "step 1", "step 2"]
    assert all(k3)
    assert free[:2] == ["free", "0"] and not any(free[2:])
    trained = (out / "k3-0" / "metrics.jsonl").read_bytes()

    # The finished cell is left alone, one killed before its first checkpoint starts again.
    shutil.copytree(out / "k3-0", out / "free-0")
    shutil.rmtree(out / "free-0" / "checkpoints")
    (out / "free-0" / "checkpoints").mkdir()
    (out / "free-0" / "metrics.jsonl").unlink()
    (out / "free-0" / "config.json").unlink()
    assert main(words) == 0
    assert (out / "k3-0" / "metrics.jsonl").read_bytes() == trained
    head, _, again, free = rows()
    filled = dict(zip(head, free, strict=True))
    assert again[:5] == k3[:5]
    assert filled.pop("KL") == "" and all(filled.values())  # without beta there is no reference
    assert (out / "curves.png").exists()

    # More steps: both cells go on from their checkpoints.
    assert main([*words, "--steps", "3", "--arms", "k3"]) == 0
    assert (out / "k3-0" / "metrics.jsonl").read_bytes().startswith(trained)
    assert [row[1] for row in rows()[2:]] == ["1", "0"]

    path.write_text(text.replace("statistic=k3", "statistic=ig"))
    assert main(words) == 2
    assert "was trained with method 'cfg[credit.statistic=k3]'" in capsys.readouterr().err
