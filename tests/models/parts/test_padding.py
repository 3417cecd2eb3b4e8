"""Left padding is cut off where all rows have it."""

import pytest
import torch

from models.parts import llama
from models.parts.padding import trimmed
from tests.conftest import random_janus

PROMPTS = ("a photo of a circle", "a photo of a square", "a photo of two rings and a blue cross")


def test_rows_are_as_wide_as_the_longest():
    rows = torch.arange(2 * 3 * 5).view(2, 3, 5)
    found, pads = trimmed(rows, torch.tensor([3, 2]), axis=2)
    assert torch.equal(found, rows[..., 2:]) and pads is not None and pads.tolist() == [0, 1]
    found, pads = trimmed(rows[..., 0], torch.tensor([2, 2]))
    assert torch.equal(found, rows[:, 1:, 0]) and pads is None


def test_rows_of_one_length_out_of_a_wide_batch_carry_no_mask(monkeypatch: pytest.MonkeyPatch):
    """Teacher-forced and decoding: what is computed is what those prompts are computed by alone, bit for bit."""
    policy, seen, run = random_janus(), list[tuple[int, bool]](), llama.run
    tokens = torch.arange(2 * policy.layout.tokens).view(2, -1) % 32
    monkeypatch.setattr(
        llama,
        "run",
        lambda model, x, rope, visible, *more, **named: (
            seen.append((x.shape[1], visible is None)) or run(model, x, rope, visible, *more, **named)
        ),
    )
    found = []
    for condition in (policy.encode(PROMPTS).take(slice(0, 2)), policy.encode(PROMPTS[:2])):
        forced = policy.hidden(condition, tokens, branches=2)
        state = policy.prefill(condition, 1, branches=2)
        policy.append(state, tokens[:, :1])
        found.append((forced, policy.next_logits(state)))
    (forced, decoded), (alone, decoded_alone) = found
    assert torch.equal(forced, alone) and torch.equal(decoded, decoded_alone)
    assert all(unmasked for _, unmasked in seen) and seen[:2] == seen[2:]


def test_a_slice_of_a_condition_copies_nothing():
    condition = random_janus().encode(PROMPTS)
    part, same = condition.take(slice(1, 3)), condition.take([1, 2])
    assert part.prompts == same.prompts == PROMPTS[1:]
    for name, values in condition.tensors.items():
        assert torch.equal(part.tensors[name], same.tensors[name])
        assert part.tensors[name].untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
