"""1, 2 and 4 processes: the same images, the same update, runs that go on; `many` is what they do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i_rl.training import checkpoints
from tests.t2i_rl.parallel.many import ASKED, CASES, DEATHS
from tests.t2i_rl.training.runs import without_time

# Sums over processes add up in another order than one process does. AdamW's first steps divide each gradient by its
# own size, so that the smallest ones show their rounding at the size of the learning rate, 1e-2.
GRADIENT, ADAM = 1e-6, 1e-4
COMPARED = [(name, world) for name, case in CASES.items() for world in case.worlds if world > 1]


def done(*words: object) -> None:
    """In a process of its own, for its forks must find no threads."""
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.t2i_rl.parallel.many", *map(str, words)]
    subprocess.run(command, check=True, env=surroundings)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    done("steps", folder)
    return folder


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done("runs", model, folder)
    return folder


def of(found: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name.startswith(what) or name.endswith(what)}


@pytest.mark.parametrize(("name", "world"), COMPARED)
def test_a_step_is_that_of_one_process(steps: Path, name: str, world: int):
    case = CASES[name]
    one, many = (load_file(steps / f"{name}-{count}") for count in (1, world))
    assert one.keys() == many.keys()
    assert torch.equal(one["tokens"], many["tokens"]) and torch.equal(one["rewards"], many["rewards"])
    for weight, value in of(one, "weight ").items():
        torch.testing.assert_close(many[weight], value, rtol=0, atol=GRADIENT if case.descent else ADAM)
    for moment in (*of(one, ".exp_avg"), *of(one, ".exp_avg_sq")):
        torch.testing.assert_close(many[moment], one[moment], rtol=1e-3, atol=1e-7)
    for row, wanted in zip(*(json.loads((steps / f"{name}-{n}.json").read_text()) for n in (world, 1)), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_bfloat16_is_equal_to_the_bit(steps: Path):
    """Float32 shares, gathered in bfloat16, are the float32 copies that one process steps on, rounded."""
    one, many = (load_file(steps / f"bfloat16-{count}") for count in (1, 2))
    assert of(one, ".master") and all(torch.equal(many[name], value) for name, value in one.items())
    assert all(
        torch.equal(one[f"weight {n.removesuffix('.master')}"].float(), v.bfloat16().float())
        for n, v in of(one, ".master").items()
    )


@pytest.mark.parametrize(("kind", "contrast"), ASKED)
def test_answers_of_a_process_that_saw_no_picture(steps: Path, kind: str, contrast: str):
    """The vision tower is trained too, and would have a gradient in some processes only."""
    one, two = (load_file(steps / f"{kind}-{world}") for world in (1, 2))
    assert torch.equal(one["tokens"], two["tokens"]) and torch.equal(one["rewards"], two["rewards"])
    assert len((one["tokens"] >= 0).sum(-1).unique()) > 3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=GRADIENT)
    numbers = [json.loads((steps / f"{kind}-{world}.json").read_text()) for world in (1, 2)]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, abs=1e-5)
    assert numbers[0]["policy_loss"] != 0 and numbers[0]["contrast_same"] == (contrast == "masked-image") / 4


@pytest.mark.parametrize("name", ["adapters", "adam", "offload"])
def test_every_weight_has_a_gradient(steps: Path, name: str):
    """In every layer, on two processes: shares whose gradients never arrive would train the first layer alone."""
    found = load_file(steps / f"{name}-2")
    moved = {moment.removesuffix(".exp_avg") for moment, value in of(found, ".exp_avg").items() if value.any()}
    assert moved == {weight.removeprefix("weight ") for weight in of(found, "weight ")}


def test_one_process_had_no_group_of_its_own(steps: Path):
    """Of five prompts the first of two processes has two, which teach nothing; what `dapo` draws instead is shared."""
    (dropped,), (drawn,) = (json.loads((steps / f"{name}-2.json").read_text()) for name in ("dropped", "dapo"))
    assert dropped["groups_dropped"] == 3 and drawn["groups_resampled"] > 0


def test_the_exit_codes(runs: Path):
    """Whoever loses another process says so and ends; a stop is no error, of whichever process it is asked."""
    codes = json.loads((runs / "codes.json").read_text())
    for death in DEATHS:
        assert codes.pop(death.__name__) == [2, -9]
        said = (runs / f"{death.__name__}-said.0.err").read_text().splitlines()[-1]
        assert said.startswith("t2i-rl: process 0 lost another one")
    assert codes.pop("used") == codes.pop("few") == [2, 2]
    assert "exists: continue it with --resume" in (runs / "used.0.err").read_text()
    assert "gives 2 processes no group each" in (runs / "few.0.err").read_text() and not (runs / "few").exists()
    assert not any(code for each in codes.values() for code in each)


@pytest.mark.parametrize("death", DEATHS)
def test_a_run_that_lost_a_process_ends_as_if_it_had_not(runs: Path, death: object):
    name = getattr(death, "__name__", "")
    assert without_time(runs / name) == without_time(runs / "whole")
    ends = [checkpoints.at_step(runs / run / "checkpoints", 5) for run in (name, "whole")]
    files = [sorted(path.name for path in end.glob("*.safetensors")) for end in ends]
    assert files[0] == files[1] and len(files[0]) == 3
    for file in files[0]:
        assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes()
    assert not [*(runs / name / "checkpoints").glob(".*")]


def test_a_run_goes_on_with_another_number_of_processes(runs: Path):
    """Stopped after steps 2 and 3: the prompts and their noise are those of a run on two, and so are the images."""
    wanted, found = without_time(runs / "whole"), without_time(runs / "wandering")
    assert [row["step"] for row in found] == [*range(6)]
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)
    end = checkpoints.at_step(runs / "wandering" / "checkpoints", 5)
    assert len([*end.glob("optimizer-*-of-00004.safetensors")]) == 4
    weights = [
        load_file(checkpoints.at_step(runs / run / "checkpoints", 5) / "model.safetensors")
        for run in ("wandering", "whole")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=ADAM)


def test_only_the_first_process_speaks(runs: Path):
    assert "step 5" in (runs / "whole-said.0.out").read_text()
    assert not (runs / "whole-said.1.out").read_text() and not (runs / "wandering-2.1.out").read_text()
