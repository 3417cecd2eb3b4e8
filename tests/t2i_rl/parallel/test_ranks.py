"""Shares of a step, and one process alone."""

import pytest
import torch

from t2i_rl.errors import UserError
from t2i_rl.parallel.processes import numbers
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
