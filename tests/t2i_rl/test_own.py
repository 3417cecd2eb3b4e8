"""What a person brings along: the pages' own examples run, and mistakes in it are one sentence."""

import hashlib
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
from rewards.files.noted import noted
from rewards.registry import build, parse
from t2i_rl.cli import main
from t2i_rl.configuration.config import EvaluationConfig, RolloutConfig, TrainConfig
from t2i_rl.configuration.presets import preset
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.product import Product
from t2i_rl.training.handed_over import taught
from t2i_rl.training.origins import code_of
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


def test_a_family_of_ones_own_is_checked(model: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--model", f"my_family:Photographer@{model}", "--out", "sheet.png"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"ok +prompts +ids \[2, 1, \d+\]", said) and "WRONG" not in said
    deaf = FAMILY.format(body="return super().encode(['a ring'] * len(prompts))").replace("Family(", "Deaf(")
    (here / "my_deaf.py").write_text(deaf)
    assert main(["check", "--model", f"my_deaf:Deaf@{model}", "--out", "sheet.png"]) == 2
    assert re.search(r"WRONG +prompts +two prompts are read alike", capsys.readouterr().out)


def digest_of(*files: Path) -> str:
    each = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def test_a_run_does_not_go_on_with_other_code(model: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    words = train_words(model, here / "run", "my_methods:LastTokens", "--steps", "1", "--evaluation.every", "0")
    words[words.index("brightness")] = "my_rewards:redness"
    words[words.index(str(model))] = f"my_family:Photographer@{model}"
    assert main(words) == 0
    origins = json.loads((here / "run/origins.json").read_text())
    assert origins["rewards"] == {"my_rewards:redness": digest_of(here / "my_rewards.py")}
    assert origins["code"] == {
        what: digest_of(here / f"{file}.py") for what, file in (("family", "my_family"), ("method", "my_methods"))
    }
    again = ["train", "--resume", str(here / "run"), "--steps", "2"]
    for file, what in (
        ("rewards", "reward my_rewards:redness"),
        ("methods", "code of its method"),
        ("family", "code of its family"),
    ):
        source = here / f"my_{file}.py"
        before = source.read_text()
        source.write_text(before + "# another word\n")
        assert main(again) == 2
        assert f"began with another {what} than there is now" in capsys.readouterr().err
        source.write_text(before)
    assert main(again) == 0


def test_a_package_is_all_of_its_files(here: Path):
    (here / "my_package").mkdir()
    (here / "my_package/__init__.py").write_text("")
    (here / "my_package/red.py").write_text(dict(EXAMPLES)["my_rewards"])
    (here / "my_package/notes.txt").write_text("no code")
    with noted() as found:
        build("my_package.red:redness")
    assert found == {"my_package.red:redness": digest_of(*(here / "my_package").glob("*.py"))}


def test_what_is_handed_over_is_known_by_its_file(here: Path):
    """A function of a notebook has none; our own classes are versions of ours."""
    import my_methods
    import my_rewards

    def digest(reward: object) -> str:
        with noted() as found:
            build(taught(TrainConfig(), reward, None).reward)
        return found["redness"]

    assert digest(my_rewards.redness) == digest_of(here / "my_rewards.py")
    typed = {"__name__": "__main__"}
    exec(dict(EXAMPLES)["my_rewards"], typed)
    assert digest(typed["redness"]) == ""
    own = replace(find_method("grpo"), name="mine", credit=Product((my_methods.LastTokens(), GuidanceContrast())))
    found = code_of(TrainConfig(method="mine"), None, own)
    assert found == {"family": "", "method": digest_of(here / "my_methods.py")}


def test_a_benchmark_of_ones_own(model: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    words = ["eval", "my_benchmarks:Reds", "--model", str(model), "--images-per-prompt", "1", "--things", "ring"]
    assert main(words) == 0
    assert "redness" in capsys.readouterr().out
    assert json.loads((here / "runs/reds/summary.json").read_text())["counts"]["images"] == 1
    for file in ("my_benchmarks.py", "my_rewards.py"):
        before = (here / file).read_text()
        (here / file).write_text(before + "# another word\n")
        assert main(words) == 2
        assert "now it is my_rewards:redness of other weights or code" in capsys.readouterr().err
        (here / file).write_text(before)
    assert main(words) == 0


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
    ("def score(images, prompts, metadata): return [1.0]", r"'own_mistake:score' gave a list of 1 for 2 images: "),
    ("def score(images, prompts, metadata): return 0.5", r"'own_mistake:score' gave one number for 2 images: "),
    ("def score(images, prompts, metadata): return [[0.5], [0.5]]", r"gave a table of 2 x 1 for 2 images: "),
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
        ("train --method my_methods.py:LastTokens", "leave out .py, as in my_methods:LastTokens"),
        ("train --reward my_rewards.py:redness", "leave out .py, as in my_rewards:redness"),
        ("train --reward my_rewards", "my_rewards.py: name a function of it, as in my_rewards:FUNCTION"),
        ("train --reward shapess", "no reward named 'shapess': did you mean shapes? choose"),
        ("train --method cgf", "there is no method 'cgf': did you mean cfg? choose"),
        ("train --model tinny", "unknown model 'tinny': did you mean tiny? give"),
        (
            "train --track tensorboard",
            "no tracker 'tensorboard': choose of trackio, wandb, swanlab, or none",
        ),
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


RULE = """
class Rule:
    statistics, embeddings, compares, places = (), None, False, False
    def __call__(self, rollout, embeddings, layout, context=None):
        {body}
"""
FAMILY = """
from models.janus.policy import JanusPolicy
class Family(JanusPolicy):
    def encode(self, prompts, negative_prompts=None):
        {body}
"""
BENCHMARK = """
from dataclasses import dataclass
from pathlib import Path
from t2i_rl.commands.benchmarks import Evaluating
@dataclass(frozen=True, kw_only=True)
class Bench(Evaluating):
    out: Path = Path("runs/bench")
    def benchmark(self):
        {body}
"""
IN_PLACE = r"own_mistake:{place} failed: ZeroDivisionError: division by zero \(.*own_mistake.py, line {line}\)"
OWN: list[tuple[str, str, str, str]] = [
    (RULE, "return 1 / 0", "train", IN_PLACE.format(place="Rule.__call__", line=5)),
    (FAMILY, "return 1 / 0", "generate", IN_PLACE.format(place="Family.encode", line=5)),
    (BENCHMARK, "return 1 / 0", "eval", IN_PLACE.format(place="Bench.benchmark", line=9)),
    (RULE, "open('/nowhere/to/be/found')", "train", r"Rule.__call__ failed: FileNotFoundError: .*nowhere.*line 5"),
    (RULE, "import torch; torch.zeros(2) @ torch.zeros(3)", "train", r"Rule.__call__ failed: RuntimeError: .*line 5"),
    (RULE, "return None", "train", "the method own_mistake:Rule gave NoneType: its rule has to return a TokenCredit"),
    (
        RULE,
        "from t2i_rl.methods.credit.rule import TokenCredit as T; return T(rollout.valid[0], rollout.valid)",
        "train",
        r"gave a weight of shape \[3, 16\] for tokens of shape \[2, 3, 16\]",
    ),
    (
        "import torch{body}",
        "\ntorch.nothing_of_that_name",
        "train",
        "own_mistake:Rule cannot be imported: AttributeErr",
    ),
]


def spoilt(here: Path, text: str, command: str, model: Path) -> int:
    (here / "own_mistake.py").write_text(text)
    words = {
        "train": train_words(model, here / "run", "own_mistake:Rule", "--steps", "1"),
        "generate": ["generate", "a ring", "--model", f"own_mistake:Family@{model}"],
        "eval": ["eval", "own_mistake:Bench", "--model", str(model)],
    }[command]
    sys.modules.pop("own_mistake", None)
    try:
        return main(words)
    finally:
        sys.modules.pop("own_mistake", None)


@pytest.mark.usefixtures("brightness")
@pytest.mark.parametrize(("text", "body", "command", "says"), OWN, ids=[f"{of[2]}: {of[1]}" for of in OWN])
def test_a_mistake_in_code_of_ones_own(
    model: Path, here: Path, text: str, body: str, command: str, says: str, capsys: pytest.CaptureFixture[str]
):
    assert spoilt(here, text.format(body=body), command, model) == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1
    assert not (here / "run").exists()


@pytest.mark.usefixtures("brightness")
def test_the_way_to_a_mistake(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("T2I_RL_TRACEBACK", "1")
    assert spoilt(here, RULE.format(body="return 1 / 0"), "train", model) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)") and "trainer.py" in error
    assert error.splitlines()[-1].startswith("t2i-rl: own_mistake:Rule.__call__ failed: ")


@pytest.mark.usefixtures("brightness")
def test_a_mistake_of_ours_is_not_hidden_behind_code_of_others(model: Path, here: Path):
    """It came through code that was brought along, and was made here."""
    body = "from t2i_rl.methods.credit.rule import TokenCredit as T; T(None, None).first(1)"
    with pytest.raises(TypeError, match="not subscriptable"):
        spoilt(here, RULE.format(body=body), "train", model)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Family = 3", "own_mistake:Family is no family of models, for it has no load"),
        (
            "class Family:\n    load = classmethod(lambda cls, *_: cls())\n    layout, encode = 1, 2",
            "what it loads has no stop_tokens, vocabulary, never",
        ),
    ],
)
def test_a_family_that_is_none_yet(model: Path, here: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert spoilt(here, text, "generate", model) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def score(images, prompts, metadata): return images[0].mean()", "gave one number for 2 images"),
        ("def score(images, prompts, metadata): return images[99]", "own_mistake:score' failed: IndexError"),
        ("def score(images, prompts, metadata): return [1.0] * (images[0].shape == (8, 8, 3))", "gave a list of"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry run", "start"])
def test_a_reward_is_tried_before_anything_is_drawn(
    model: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
    dry: list[str],
):
    """On pictures of the model's size, which is 8 here."""
    (here / "own_mistake.py").write_text(text)
    monkeypatch.delitem(sys.modules, "own_mistake", raising=False)
    monkeypatch.setattr("t2i_rl.training.run._train", pytest.fail)
    words = train_words(model, here / "run", "grpo", *dry)
    words[words.index("brightness")] = "own_mistake:score"
    assert main(words) == 2
    assert says in capsys.readouterr().err and not (here / "run").exists()
    sys.modules.pop("own_mistake")
