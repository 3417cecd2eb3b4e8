"""What a person brings along: the pages' own examples run, and mistakes in it are one sentence."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from rewards.catalogue import REWARDS
from rewards.errors import RewardError
from rewards.registry import build, parse
from t2i_rl.cli import main
from t2i_rl.configuration.config import EvaluationConfig, RolloutConfig, TrainConfig
from t2i_rl.configuration.presets import preset
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.training.handed_over import taught
from t2i_rl.training.run import resume
from tests.t2i_rl.small_runs import train_words

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(
    r"```python\n# (\w+)\.py\n(.*?)```", (DOCS / "make-it-yours.md").read_text(encoding="utf-8"), re.S
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where a person starts, with the examples of the page in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])  # as where a script of one's own lies there
    for name, text in EXAMPLES:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    shipped = dict(REWARDS)
    yield tmp_path
    REWARDS.clear()
    REWARDS.update(shipped)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def settings_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def test_the_page_has_one_of_each():
    assert [name for name, _ in EXAMPLES] == ["my_rewards", "my_methods", "my_family", "my_benchmarks"]


def test_a_run_with_all_of_ones_own_goes_on_and_is_a_model(model: Path, here: Path):
    words = train_words(model, here / "run", "my_methods:LastTokens[credit.share=0.5]", "--steps", "1")
    words[words.index("brightness")] = "my_rewards:redness"
    words[words.index(str(model))] = f"my_family:Photographer@{model}"
    assert main(words) == 0
    assert main(["train", "--resume", str(here / "run"), "--steps", "2"]) == 0
    rows = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2] and all(row["updated_tokens"] == 0.5 for row in rows[1:])
    checkpoint = here / "run/checkpoints/step-000002"
    assert (
        main(["generate", "a ring", "--model", f"my_family:Photographer@{checkpoint}", "--images-per-prompt", "1"]) == 0
    )


def test_a_benchmark_of_ones_own(model: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    words = ["eval", "my_benchmarks:Reds", "--model", str(model), "--images-per-prompt", "1", "--things", "ring"]
    assert main(words) == 0
    assert "redness" in capsys.readouterr().out
    assert json.loads((here / "runs/reds/summary.json").read_text())["counts"]["images"] == 1


def test_from_python(here: Path):
    """The page's lines, in a smaller step."""
    text = (DOCS / "make-it-yours.md").read_text(encoding="utf-8").split("## From Python", 1)[1]
    snippet = text.split("```python\n", 1)[1].split("```", 1)[0]
    small = snippet.replace("steps=20", "steps=1, rollout=SMALL, evaluation=NONE")
    sampling = preset("tiny", "shapes", "grpo").rollout.sampling
    found: dict = {"SMALL": RolloutConfig(1, 2, 1, sampling), "NONE": EvaluationConfig(every=0)}
    exec(compile(small, "make-it-yours.md", "exec"), found)
    assert settings_of(found["run"])["reward"] == "redness"
    assert settings_of(found["run"])["method"] == "grpo[objective.beta=0]"
    assert len((found["run"] / "metrics.jsonl").read_text().splitlines()) == 1
    del REWARDS["redness"]  # as in a new process
    with pytest.raises((RewardError, UserError), match="redness"):
        resume(found["run"], steps=2)
    resume(found["run"], steps=2, reward=found["redness"], method=find_method("grpo[objective.beta=0]"))
    assert len((found["run"] / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_name_of_what_is_here_already():
    own = replace(find_method("grpo"), scale="none")
    with pytest.raises(UserError, match="there is a method 'grpo' already"):
        taught(TrainConfig(), None, own)
    with pytest.raises(UserError, match="there is a reward 'geneval' already"):
        taught(TrainConfig(), SimpleNamespace(name="geneval", score=len), None)


def test_the_notebook(here: Path):
    cells = json.loads((DOCS / "first-run.ipynb").read_text(encoding="utf-8"))["cells"]
    found: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first-run.ipynb", "exec"), found)
    assert found["images"].shape == (1, 2, 3, 48, 48)


def test_a_weight_behind_a_name_of_ones_own(here: Path):
    terms = parse("shapes:1.0 my_rewards:redness:0.5")
    assert [(term.name, term.weight) for term in terms] == [("shapes", 1.0), ("my_rewards:redness", 0.5)]
    served = parse("my_rewards:redness@http://a:1")[0]
    assert (served.name, served.addresses) == ("my_rewards:redness", ("http://a:1",))


def test_an_entry_point(here: Path, monkeypatch: pytest.MonkeyPatch):
    known = {"t2i_rl.rewards": ("red", "my_rewards:redness"), "t2i_rl.methods": ("last", "my_methods:LastTokens")}

    def installed(group: str, name: str) -> list[EntryPoint]:
        return [EntryPoint(*known[group], group)] if known.get(group, ("",))[0] == name else []

    monkeypatch.setattr("rewards.own.entry_points", installed)
    monkeypatch.setattr("models.own.entry_points", installed)
    assert build("red").name == "red"
    assert find_method("last[credit.share=0.1]").credit.share == 0.1


MISTAKES: list[tuple[str, str]] = [
    (
        "def score(images, prompts, metadata): return [1 / 0]",
        r"'own_mistake:score' failed: ZeroDivisionError.*own_mistake.py, line 1",
    ),
    ("def score(images, prompts, metadata): return [1.0]", r"'own_mistake:score' gave \[1\] numbers for 2 images"),
    ("def score(images, prompts, metadata): return ['much']", r"'own_mistake:score' failed: "),
    ("def score(images): return 3", r"'own_mistake:score' failed: TypeError"),
    ("class score:\n    def __init__(self): raise OSError('no weights')", r"failed: OSError: no weights .*line 2"),
    ("score = 3", r"'own_mistake:score' is 3: it has to be a function, or a class"),
    ("def other(): pass", r"the module own_mistake has no score"),
    ("def score(:", r"'own_mistake:score' cannot be imported: SyntaxError"),
    ("import nowhere_to_be_found", r"needs the package nowhere_to_be_found: install it"),
]


@pytest.mark.parametrize(("text", "says"), MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_a_mistake_in_a_reward(here: Path, text: str, says: str):
    (here / "own_mistake.py").write_text(text)
    sys.modules.pop("own_mistake", None)
    try:
        with pytest.raises(RewardError, match=says) as caught:
            build("own_mistake:score").score([None, None], ["a", "b"], [{}, {}])
        assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop("own_mistake", None)


def test_a_reward_that_is_nowhere(here: Path):
    with pytest.raises(RewardError, match="there is no module nowhere for the reward 'nowhere:score'"):
        parse("nowhere:score")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --method my_rewards:redness", "is no method and no rule of token credit, for it has no statistics"),
        ("train --method nowhere:rule", "needs the module nowhere, which is not here"),
        ("train --method my_methods:Nothing", "the module my_methods has no Nothing"),
        ("train --method my_methods:LastTokens[credit.part=3]", "has no setting credit.part"),
        ("eval my_rewards:redness", "is no benchmark: it has to be a class that extends"),
        ("generate ring --model nowhere:Family@models/tiny", "needs the module nowhere"),
    ],
)
def test_one_sentence(here: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
