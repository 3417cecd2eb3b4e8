"""Chunked log-probabilities against whole logits, forward and backward."""

import pytest
import torch

from models.janus import JanusPolicy
from t2i_rl.logprobs import micro_batches, score, score_in_parts, token_log_probs

PROMPTS = ["a photo of a ring", "a photo of two crosses and a red square", "a ring"]


@pytest.mark.parametrize("chunk", [1, 5, 16, 48, 1000])
def test_chunks_equal_the_whole(policy: JanusPolicy, chunk: int):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 16, 32, generator=generator)
    tokens = torch.randint(0, 32, (3, 16), generator=generator)
    pull = torch.randn(3, 16, generator=generator)

    def values_and_gradient(log_probs) -> tuple[torch.Tensor, torch.Tensor]:
        states = hidden.clone().requires_grad_()
        values = log_probs(states)
        (values * pull).sum().backward()
        return values.detach(), states.grad

    whole = values_and_gradient(
        lambda states: policy.head(states).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    )
    chunked = values_and_gradient(lambda states: token_log_probs(policy, states, tokens, chunk))
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(token_log_probs(policy, hidden, tokens, chunk), whole[0], rtol=1e-5, atol=1e-6)


def test_log_probs_are_float32_whatever_the_model_runs_in(policy: JanusPolicy):
    policy.model.bfloat16()
    tokens = torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(0))
    assert score(policy, policy.encode(PROMPTS), tokens).dtype == torch.float32


def test_scoring_in_parts_is_scoring(policy: JanusPolicy):
    condition = policy.encode(PROMPTS)
    tokens = torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(0))
    whole = score(policy, condition, tokens)
    assert whole.requires_grad and whole.shape == tokens.shape and (whole < 0).all()
    for size in (1, 2, 3, 7):
        parts = score_in_parts(policy, condition, tokens, size)
        assert not parts.requires_grad
        torch.testing.assert_close(parts, whole.detach(), rtol=1e-5, atol=1e-5)
    # The same rows in the same micro-batches give the same bits, with and without gradient.
    assert torch.equal(score_in_parts(policy, condition, tokens, 3), whole.detach())


@pytest.mark.parametrize(
    ("rows", "size", "wanted"),
    [(6, 2, [[0, 1], [2, 3], [4, 5]]), (5, 2, [[0, 1], [2, 3], [4]]), (2, 9, [[0, 1]]), (0, 3, [])],
)
def test_micro_batches(rows: int, size: int, wanted: list[list[int]]):
    assert [list(part) for part in micro_batches(rows, size)] == wanted
