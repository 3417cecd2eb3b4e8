"""README and docs/methods.md against the code: what they name is there, runs, and no method is left out."""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from eval.tables.published import CRITICAL, DATA, GUIDANCE
from models.architectures import architecture
from models.registry import MODELS
from t2i_rl.cli import main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.answer_presets import ANSWERS
from t2i_rl.configuration.checks import check_settings
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.presets import PRESETS, find_preset
from t2i_rl.configuration.run_method import run_method
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.planning import costs
from t2i_rl.planning.cards import table
from t2i_rl.planning.plan_config import PlanConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([^`\n]+)`", TEXT)


def rows(header: str) -> list[list[str]]:
    """The cells of the table below a header line."""
    table = TEXT.split(header, 1)[1].split("\n\n", 1)[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def defined(path: Path) -> set[str]:
    """Names of a file's functions, classes and constants."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {target.id for node in tree.body for target in ast.walk(node) if isinstance(target, ast.Name)}


def test_every_method_is_described() -> None:
    assert {*METHODS} <= {*NAMED}


@pytest.mark.parametrize("place", sorted({name for name in NAMED if re.fullmatch(r"[\w/]+\.py(:\w+)?", name)}))
def test_every_file_and_name_exists(place: str) -> None:
    path, _, name = place.partition(":")
    assert (ROOT / path).is_file()
    assert not name or name in defined(ROOT / path)


@pytest.mark.parametrize("name", sorted({name for name in NAMED if re.fullmatch(r"[a-z-]+\[.*\]", name)}))
def test_every_variant_can_be_had(name: str) -> None:
    assert find_method(name).name == name


def test_every_flag_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    known = {*re.findall(r"--[\w.-]+", capsys.readouterr().out)}
    assert {*re.findall(r"--[a-z][\w.-]+", " ".join(NAMED))} <= known


def test_the_table_of_presets_is_the_presets() -> None:
    full = {name: config for name, config in PRESETS.items() if not name.startswith("tiny-") and name not in ANSWERS}
    table = {cells[0].strip("`"): cells[1:] for cells in rows("| preset | images a step")}
    assert table.keys() == full.keys()
    for name, (images, rate, beta, clip, steps, guidance, method) in table.items():
        config, rollout = full[name], full[name].rollout
        prompts, group = rollout.prompts_per_step, rollout.group_size
        assert images == f"{prompts * group} ({prompts} × {group})"
        assert float(rate.partition(",")[0]) == config.update.learning_rate and config.update.schedule in rate
        assert (int(steps), float(guidance)) == (config.steps, rollout.sampling.guidance_scale)
        assert method == f"`{config.method}`"
        found = run_method(config)
        assert float(beta) == found.objective.beta
        assert clip == ("–" if found.dynamic is None else f"{found.dynamic.clip:g}")


def test_what_is_not_as_released_can_be_had() -> None:
    """Each row of the table changes a setting of the preset, to one that goes with the others."""
    preset = "janus-pro-7b-geneval-cfg-released"
    cells = [row[-1] for row in rows("| what | the release | the preset | as released with")]
    commands = [command for cell in cells for command in re.findall(r"`(--[^`]+)`", cell)]
    assert len(commands) == 6
    for command in commands:
        config = resolve(["--preset", preset, *shlex.split(command)])
        assert config != PRESETS[preset]
        check_settings(config, run_method(config))


EQUATIONS = rows("| equation | what it says")


@pytest.mark.parametrize(("equation", "code", "test"), [(cells[0], *cells[2:]) for cells in EQUATIONS])
def test_every_equation_leads_to_a_line_and_a_test(equation: str, code: str, test: str) -> None:
    for place in (code, test):
        path, _, name = place.strip("`").partition(":")
        assert name in defined(ROOT / path)
    assert test.startswith("`tests/") and ":test_" in test


def test_no_equation_of_the_two_papers_is_left_out() -> None:
    named: dict[str, set[int]] = {paper: set() for paper in ("2605.29198", "2509.22485")}
    for equation, *_ in EQUATIONS:
        paper, _, numbers = equation.partition(", ")
        named[paper] |= {int(number) for number in re.findall(r"\d+", numbers)}
    assert named == {"2605.29198": {*range(1, 11)}, "2509.22485": {*range(1, 9)}}


def test_the_snippet_of_the_readme_runs() -> None:
    snippet = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    found: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), found)
    assert found["images"].shape[:3] == (2, 4, 3) and found["credit"].weight.shape == found["rollout"].tokens.shape


def test_the_reading_list_says_where_each_paper_is() -> None:
    table = rows("| paper | what it would be here")
    assert len(table) == len({cells[0] for cells in table}) == 64
    for paper, _, here in table:
        named = [name for name in re.findall(r"`([^`]+)`", here) if ".py" not in name]
        assert named or re.match(r"not applicable|not built|no method", here), paper
        assert all(find_method(name) for name in named)


def test_the_table_of_cards_is_the_plans() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert all(f"| {' | '.join(row)} |" in text for row in table())


REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def test_the_table_of_costs_is_the_plans() -> None:
    for name, *figures in costs.table()[1:]:
        assert f"| `{name}` | {' | '.join(figures)} |" in REPRODUCE, name


@pytest.mark.parametrize("name", sorted({*re.findall(r"--method '([^']+)'", REPRODUCE)}))
def test_every_method_of_the_papers_rows_can_be_had(name: str) -> None:
    assert find_method(name).name == name


@pytest.mark.parametrize(
    "name", sorted({*re.findall(r"`?((?:janus|llamagen|star)-[\w-]+-(?:cfg|critical|grpo))`", REPRODUCE)})
)
def test_every_preset_of_the_papers_rows_is_one(name: str) -> None:
    assert find_preset(name).model in MODELS


def test_the_run_file_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    file = tmp_path / "run.toml"
    file.write_text(text.split("```toml\n", 1)[1].split("```", 1)[0])
    config = resolve(["--config", str(file)])
    assert (config.model, config.update.learning_rate, config.rollout.group_size) == ("janus-pro-1b", 2e-6, 8)


@pytest.mark.parametrize("file", ["CITATION.cff", "README.md"])
@pytest.mark.parametrize("paper", [GUIDANCE, CRITICAL])
def test_the_papers_are_cited_by_their_titles(file: str, paper: str) -> None:
    title = json.loads(DATA.read_text(encoding="utf-8"))[paper]["title"]
    assert title in (ROOT / file).read_text(encoding="utf-8")


COMMANDS = re.findall(r"^(?:\$TRAIN|    \$TRAIN) ((?:.*\\\n)*.*)$", REPRODUCE, re.MULTILINE)


@pytest.mark.parametrize("words", COMMANDS)
def test_the_runs_of_the_papers_rows_fit_a_machine_of_eight(words: str) -> None:
    """Complete as they stand: the settings are read, and the plan has room for them."""
    config = resolve(shlex.split(words.replace("\\\n", " "), comments=True))
    assert costs.holds(architecture(config.model), PlanConfig.of(config, config.model, 8), costs.ROOM)
    assert config.out != TrainConfig.out
