"""What a plan advises where a run does not fit."""

from dataclasses import replace

import pytest

from models.architectures import Architecture, architecture
from t2i_rl.cli import main
from t2i_rl.configuration.presets import find_preset
from t2i_rl.planning.fitting import holds, ways, what_fits
from t2i_rl.planning.plan_config import PlanConfig

COLUMN = "janus-pro-7b-geneval-cfg"
PLAN = PlanConfig.of(find_preset(COLUMN), "janus-pro-7b")
ADAPTERS = "adapters (a preset that ends in -lora, t2i-rl presets)"


@pytest.fixture(scope="module")
def janus() -> Architecture:
    return architecture("janus-pro-7b")


@pytest.mark.parametrize(
    ("gpus", "room", "advice"),
    [
        (1, 72e9, ["--dtype bfloat16 on 4 GPUs", ADAPTERS]),
        (8, 72e9, ["--dtype bfloat16", ADAPTERS]),
        (2, 126e9, ["--dtype bfloat16", "the same on 4 GPUs", ADAPTERS]),
        (1, 40e9, [ADAPTERS]),
        (1, 24e9, []),
    ],
)
def test_the_fewest_flags_and_more_gpus(janus: Architecture, gpus: int, room: float, advice: list[str]):
    assert what_fits(janus, replace(PLAN, gpus=gpus), room) == advice


def test_what_is_advised_holds_and_less_does_not(janus: Architecture):
    plan = replace(PLAN, gpus=8)
    assert not holds(janus, plan, 72e9) and holds(janus, replace(plan, dtype="bfloat16"), 72e9)


def test_ways_are_flags_that_change_something():
    assert [said for said, _ in ways(replace(PLAN, gradient_checkpointing=True, update_batch=1))] == [
        "",
        "--dtype bfloat16",
    ]
    found = dict(ways(replace(PLAN, evaluation_batch=64, rollout_batch=2)))
    assert found["--evaluation.batch 32"].rows_at_once == 32
    assert found["--evaluation.batch 32 --rollout.micro-batch 1"].rows_at_once == 32 and len(found) == 2**5


def test_the_plan_says_it(capsys: pytest.CaptureFixture[str]):
    """Also that the evaluation's batch sets the peak; in the words of train as in its own."""
    for words in ("--evaluation-batch 64", "--evaluation.batch 64"):
        assert main(["plan", "--preset", COLUMN, "--gpus", "2", *words.split()]) == 0
        text = capsys.readouterr().out
        assert f"; or {ADAPTERS}\n" in text
        assert text.count("(evaluation's 64 at once)") == 2
    assert main(["plan", "--preset", COLUMN, "--gpus", "8", "--dtype", "bfloat16"]) == 0
    text = capsys.readouterr().out
    assert "it fits" in text and "what would" not in text and "evaluation's" not in text
