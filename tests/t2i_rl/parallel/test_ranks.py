"""Shares of a step, and one process alone."""

from datetime import timedelta

import pytest
import torch

from t2i_rl.errors import UserError
from t2i_rl.parallel.processes import joined, numbers
from t2i_rl.parallel.ranks import ALONE, Ranks


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("items", [0, 1, 5, 8, 21])
def test_shares_are_consecutive_and_of_nearly_one_size(items: int, world: int):
    shares = []
    for rank in range(world):
        ranks = Ranks()
        ranks.rank, ranks.world = rank, world
        shares.append(ranks.share(items))
    assert [item for share in shares for item in share] == [*range(items)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_alone_has_everything():
    values = torch.arange(6.0).view(2, 3)
    assert ALONE.first and ALONE.each({"a": 1}) == [{"a": 1}] and ALONE.gather(values) is values
    assert ALONE.mean(values) == 2.5 and ALONE.totals({"a": 1.5}) == {"a": 1.5}


@pytest.mark.parametrize("rank", ["", "2", "-1", "one"])
def test_a_process_without_a_number(rank: str):
    with pytest.raises(UserError, match=f"RANK '{rank}', WORLD_SIZE '2', LOCAL_RANK '0'"):
        numbers({"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


def test_the_first_process_says_for_whom_it_waits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def alone(*_: object, **__: object) -> None:
        raise ValueError("nobody came")

    monkeypatch.setattr("torch.distributed.init_process_group", alone)
    of = {"WORLD_SIZE": "32", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for rank, said in (("0", "waiting for 31 other process(es) at here:29500\n"), ("1", "")):
        with (
            pytest.raises(UserError, match="does not find the others at here:29500"),
            joined(timedelta(minutes=1), of | {"RANK": rank}),
        ):
            pass
        assert capsys.readouterr().out == said
