"""`t2i-rl bench rollout` on a tiny model: what it says, and what it refuses to compare."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.speed import arms, rollout
from t2i_rl.speed.random_model import PROMPT_TOKENS
from t2i_rl.speed.settings import RolloutBench

FIELDS = {"ratio_vs_transformers", "share_of_floor", "operations_per_layer_token", "syncs_per_token"}


def measured(**settings: object) -> dict:
    return rollout.measure(RolloutBench(rounds=1, **settings), Console(quiet=True))


def test_the_command_writes_what_the_documentation_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "bench.json"
    assert main(["bench", "rollout", "--images", "1", "2", "--tokens", "6", "--rounds", "2", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    documented = Path("docs/speed.md").read_text()
    assert found.keys() >= FIELDS
    entry = found["rollouts"][1]
    names = {*found, *entry, *entry["arms"]["eager"]} - {"versions", "hardware", "threads"}
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
    assert [one["images"] for one in found["rollouts"]] == [1, 2] and entry["tokens"] == 6
    assert {len(seconds) for seconds in entry["rounds"].values()} == {2}
    for arm in ("eager", "transformers", "growing"):
        assert found["greedy_tokens_shared"][arm] == 6 and entry["arms"][arm]["seconds"] > 0
    assert entry["arms"]["transformers"]["ratio_vs_transformers"] == 1
    assert "captured is left out" in " ".join(capsys.readouterr().out.split())


def test_the_floor_is_counted_by_hand():
    found = measured(images=(3,), tokens=5)["rollouts"][0]
    layer = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    head = 64 * 64 + 64 + 64 * 128 + 128
    weights, cached = 5 * (2 * layer + head), sum(PROMPT_TOKENS + step for step in range(5)) * 6 * 2 * 2 * 64
    assert found["gb"] == pytest.approx(4 * (weights + cached) / 1e9)
    assert found["gflop"] == pytest.approx(2 * (2 * layer + head) * 6 * 5 / 1e9)
    eager = found["arms"]["eager"]
    assert eager["share_of_floor"] == pytest.approx(found["floor_seconds"] / eager["seconds"])
    assert eager["share_of_nominal"] is None and eager["gb_per_s"] == pytest.approx(found["gb"] / eager["seconds"])


def test_nothing_waits_for_the_device_and_layers_do_little():
    found = measured(tokens=4)
    assert found["syncs_per_token"] == 0
    assert 0 < found["operations_per_layer_token"] <= 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_and_half_precision(dtype: str):
    found = measured(tokens=4, lora_rank=2, dtype=dtype)
    assert {"eager", "transformers", "growing"} <= found["rollouts"][0]["arms"].keys()


def test_an_arm_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    def broken(work: arms.Work) -> torch.Tensor:
        raise TypeError("it lacks an argument\nand more")

    monkeypatch.setitem(arms.ARMS, "transformers", broken)
    found = measured(tokens=4)
    assert found["left_out"]["transformers"] == "TypeError: it lacks an argument"
    assert found["ratio_vs_transformers"] is None and "transformers" not in found["rollouts"][0]["arms"]


def test_arms_that_sample_other_tokens_are_not_compared(monkeypatch: pytest.MonkeyPatch):
    growing = arms.ARMS["growing"]
    monkeypatch.setitem(arms.ARMS, "growing", lambda work: growing(work).roll(1, dims=1))
    with pytest.raises(UserError, match="growing samples other greedy tokens than ours from token"):
        measured(tokens=4)


def test_words_that_are_no_benchmark(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "train"]) == 2 and main(["bench"]) == 0
    assert main(["bench", "rollout", "--tokens", "-1"]) == 2
    assert "tokens" in capsys.readouterr().err
