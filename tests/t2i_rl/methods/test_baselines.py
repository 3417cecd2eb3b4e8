import pytest
import torch

from t2i_rl.errors import UserError
from t2i_rl.methods.baselines import PromptBaseline, Running


def test_running_statistics_are_those_of_all_rewards() -> None:
    first, second = [0.1, 0.9, 0.4], [0.7, 0.2]
    found = Running().joined(first, 1.0).joined(second, 1.0)
    everything = torch.tensor(first + second, dtype=torch.float64)
    assert found.count == 5
    assert found.mean == pytest.approx(everything.mean().item())
    assert found.std == pytest.approx(everything.std(correction=0).item())
    assert Running().std == 0


def test_forgetting_leaves_only_the_last_visit() -> None:
    assert Running().joined([0.0, 1.0], 0.0).joined([3.0], 0.0) == Running(1.0, 3.0, 0.0)


def test_the_past_is_the_baseline_of_a_single_stream() -> None:
    tracker, rewards = PromptBaseline(baseline="past", clip=100, eps=0), torch.tensor([[1.0], [0.0]])
    first, history = tracker(rewards, ["a", "b"], {})
    assert first.tolist() == [[1.0], [-1.0]]  # around the mean of the batch, over its std of a half
    second, _ = tracker(rewards, ["b", "a"], history)
    assert second.tolist() == [[2.0], [-2.0]]  # b had 0, a had 1


def test_repeated_prompts_are_pooled_and_the_history_is_kept() -> None:
    rewards = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    found, history = PromptBaseline(scale="prompt", eps=0)(rewards, ["a", "a"], {"b": Running(1, 2, 3)})
    torch.testing.assert_close(found, (rewards - 2) / rewards.std(correction=0))
    assert history["b"] == Running(1, 2, 3)
    assert history["a"].count == 4


def test_advantages_are_bounded() -> None:
    found, _ = PromptBaseline(clip=0.5)(torch.tensor([[0.0, 1.0]]), ["a"], {})
    assert found.tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize("fields", [{"decay": 1.5}, {"clip": 0.0}, {"baseline": "none"}, {"scale": "group"}])
def test_settings_that_make_no_sense_are_refused(fields: dict) -> None:
    with pytest.raises(UserError, match="tracker"):
        PromptBaseline(**fields)
