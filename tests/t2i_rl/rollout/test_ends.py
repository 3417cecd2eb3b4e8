"""Answers end where they end: what lies behind never counts, wherever it is asked; pictures have no ends."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.question import Question
from models.qwen_vl.policy import QwenVLPolicy
from t2i_rl.errors import UserError
from t2i_rl.rollout.ends import Ends, row_lengths, valid_tokens
from t2i_rl.rollout.groups import Rollout, concatenate
from t2i_rl.rollout.log_probs import frozen_replay, replay
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.conftest import random_janus
from tests.models.small_qwen_vl import KINDS, picture, random_qwen

STOPS = (7, 9)
PLAIN = Sampling(guidance_scale=1.0)
ALL = ("entropy", "kl_cond_uncond", "js_cond_uncond", "logp_cond", "logp_uncond", "logp_cfg", "kl_uniform")
QUESTIONS = [
    Question("<image> how many circle are there ?", (picture(0, 16, 24),)),
    Question("how many is one and two ?"),
    Question("is <image> left of <image> ?", (picture(1, 8, 16), picture(2, 24, 16))),
]
AGAINST = [replace(question, text=question.text + " . . .") for question in QUESTIONS]
MOST = 14


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> QwenVLPolicy:
    """A model that ends its answers early and late: a third of the words are stop tokens to it."""
    found = random_qwen(request.param, tmp_path)
    found.stop_tokens = (*found.stop_tokens, *range(3, 7))
    return found


def sample(policy: QwenVLPolicy, rows: slice = slice(None), group: int = 4, **settings) -> Rollout:
    condition = policy.encode(QUESTIONS[rows], AGAINST[rows])
    return sample_group(policy, condition, group, PLAIN, Noise(3), ALL, **{"max_tokens": MOST} | settings)


def test_a_row_ends_with_its_first_stop_token():
    tokens = torch.tensor([[[7, 1, 2], [1, 9, 7]], [[1, 2, 3], [1, 2, 9]]])
    lengths = row_lengths(tokens, STOPS)
    assert lengths.tolist() == [[1, 2], [3, 3]]
    assert valid_tokens(lengths, 3).int().tolist() == [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]]]
    assert row_lengths(tokens, ()).tolist() == [[3, 3], [3, 3]]


def test_all_ended_is_asked_of_a_device_once_in_a_while(monkeypatch: pytest.MonkeyPatch):
    found = Ends(STOPS, 2, torch.device("cpu"))
    assert [found.all_with(torch.tensor(drawn)) for drawn in ([[1], [7]], [[1], [1]], [[9], [1]])] == [
        False,
        False,
        True,
    ]
    rare = Ends(STOPS, 1, torch.device("cpu"))
    rare.apart = 3
    assert [rare.all_with(torch.tensor([[7]])) for _ in range(4)] == [False, False, True, False]
    assert not Ends((), 1, torch.device("cpu")).all_with(torch.tensor([[7]]))


def test_answers_of_all_lengths_with_nothing_behind(policy: QwenVLPolicy):
    rollout = sample(policy)
    lengths = rollout.lengths.flatten().tolist()
    assert len(set(lengths)) > 3 and 1 in lengths and max(lengths) == rollout.tokens.shape[-1] <= MOST
    stops = torch.isin(rollout.tokens, torch.tensor(policy.stop_tokens))
    ended = rollout.lengths < MOST
    assert stops.any(-1)[ended].all() and stops[~rollout.valid].all()
    assert all(
        (values[~rollout.valid] == 0).all() and values.isfinite().all() for values in rollout.statistics.values()
    )
    assert {*rollout.tokens.unique().tolist()}.isdisjoint(policy.never)


def test_an_answer_depends_on_its_question_and_noise_alone(policy: QwenVLPolicy, monkeypatch: pytest.MonkeyPatch):
    whole = sample(policy)
    monkeypatch.setattr(Ends, "all_with", lambda *_: False)  # asked late, or never: what is drawn behind does not show
    assert torch.equal(sample(policy).tokens, whole.tokens)
    longer = sample(policy, max_tokens=MOST + 9)
    for row in range(len(QUESTIONS)):
        alone = sample(policy, slice(row, row + 1))
        width = alone.tokens.shape[-1]
        assert torch.equal(alone.tokens[0], whole.tokens[row, :, :width])
        assert torch.equal(alone.lengths[0], whole.lengths[row])
        for name, values in alone.statistics.items():
            torch.testing.assert_close(values[0], whole.statistics[name][row, :, :width], atol=1e-4, rtol=1e-3)
    assert torch.equal(longer.tokens[..., : whole.tokens.shape[-1]][whole.valid], whole.tokens[whole.valid])


def test_the_limit_cuts_and_the_first_token_may_end(policy: QwenVLPolicy):
    one = sample(policy, max_tokens=1)
    assert one.tokens.shape == (3, 4, 1) and (one.lengths == 1).all()
    policy.stop_tokens = tuple(range(len(policy.processor.tokenizer)))
    assert torch.equal(sample(policy).tokens, one.tokens)


def test_what_is_never_drawn_is_drawn_neither_by_chance_nor_greedily(policy: QwenVLPolicy):
    policy.never = tuple(range(10, 33))
    for sampling in (PLAIN, Sampling(guidance_scale=1.0, temperature=0.0)):
        rollout = sample_group(policy, policy.encode(QUESTIONS), 4, sampling, Noise(0), ["logp_cond"], max_tokens=MOST)
        assert rollout.tokens[rollout.valid].max() < 10
        forced = replay(policy, rollout.row_condition, rollout.tokens.flatten(0, 1)).lp.unflatten(0, (3, 4))
        # The statistic is of the whole distribution, as in the update.
        found = rollout.statistics["logp_cond"][rollout.valid]
        torch.testing.assert_close(found, forced[rollout.valid].detach(), atol=1e-4, rtol=1e-3)


def test_statistics_are_those_of_a_teacher_forced_pass(policy: QwenVLPolicy):
    rollout = sample(policy)
    for micro_batch in (1, 2, 3):
        measured = measure(policy, rollout, PLAIN, ALL, micro_batch)
        for name in ALL:
            torch.testing.assert_close(measured[name], rollout.statistics[name], atol=1e-4, rtol=1e-3, msg=name)


def gradients(policy: QwenVLPolicy, rollout: Rollout, rows: list[int], tokens: Tensor) -> dict[str, Tensor]:
    policy.module.zero_grad()
    valid, condition = rollout.valid.flatten(0, 1)[rows], rollout.row_condition.take(rows)
    found = replay(policy, condition, tokens[rows], with_entropy=True, chunk=7, valid=valid)
    assert found.entropy is not None
    assert (found.lp[~valid] == 0).all() and (found.entropy[~valid] == 0).all()
    (found.lp.sum() + found.entropy.sum()).backward()
    return {name: value.grad.clone() for name, value in policy.module.named_parameters() if value.grad is not None}


def test_garbage_behind_the_ends_changes_no_bit_of_a_gradient(policy: QwenVLPolicy):
    rollout = sample(policy)
    tokens, rows = rollout.tokens.flatten(0, 1), [*range(12)]
    garbage = torch.where(rollout.valid.flatten(0, 1), tokens, torch.randint_like(tokens, 30))
    assert not torch.equal(garbage, tokens)
    found, other = (gradients(policy, rollout, rows, given) for given in (tokens, garbage))
    assert all(torch.equal(found[name], value) for name, value in other.items())
    measured = measure(policy, replace(rollout, tokens=garbage.view_as(rollout.tokens)), PLAIN, ALL, 3)
    expected = measure(policy, rollout, PLAIN, ALL, 3)
    assert all(torch.equal(measured[name], values) for name, values in expected.items())


def test_the_gradient_is_the_sum_of_the_rows_alone(policy: QwenVLPolicy):
    """In other micro-batches, in another order, with more columns behind."""
    rollout = sample(policy)
    tokens = rollout.tokens.flatten(0, 1)
    whole = gradients(policy, rollout, [*range(12)], tokens)
    wider = replace(rollout, tokens=torch.nn.functional.pad(rollout.tokens, (0, 3), value=policy.stop_tokens[0]))
    parts = [
        gradients(policy, wider, rows, wider.tokens.flatten(0, 1))
        for rows in ([11, 3, 0], [5], [1, 2, 4, 6, 7], [8, 9, 10])
    ]
    for name, value in whole.items():
        close = {"atol": 1e-4 * value.abs().max().item(), "rtol": 1e-3}
        torch.testing.assert_close(sum(part[name] for part in parts if name in part), value, **close)


def test_micro_batches_of_different_widths_become_one_rollout(policy: QwenVLPolicy):
    parts = [sample(policy, slice(row, row + 1)) for row in range(len(QUESTIONS))]
    assert len({part.tokens.shape[-1] for part in parts}) > 1
    whole = concatenate(parts, policy.encode(QUESTIONS, AGAINST))
    assert torch.equal(whole.tokens, sample(policy).tokens)
    assert whole.lengths.flatten().tolist() == [length for part in parts for length in part.lengths[0].tolist()]
    assert all((values[~whole.valid] == 0).all() for values in whole.statistics.values())
    texts = policy.decode(whole.tokens.flatten(0, 1))
    assert texts == [text for part in parts for text in policy.decode(part.tokens[0])]
    assert torch.equal(whole.take([2, 0]).lengths, whole.lengths[[2, 0]])


def test_what_compares_token_by_token_is_refused(policy: QwenVLPolicy):
    with pytest.raises(UserError, match=r"group_divergence compares .* answers differ in length: choose"):
        sample_group(policy, policy.encode(QUESTIONS), 2, PLAIN, Noise(0), ["group_divergence"])
    with pytest.raises(UserError, match="group_divergence compares"):
        measure(policy, sample(policy), PLAIN, ["group_divergence"], 1)


def test_where_pictures_are_wanted_text_is_refused(policy: QwenVLPolicy):
    with pytest.raises(UserError, match=r"answers in text, and here pictures are looked at"):
        sample(policy).images(policy)


def test_of_pictures_every_token_counts_and_every_bit_stays():
    policy = random_janus()
    condition = policy.encode(["a photo of a ring", "two circles"])
    rollout = sample_group(policy, condition, 2, Sampling(), Noise(0), ["logp_cond"])
    assert rollout.settled() is rollout and rollout.stop_tokens == policy.never == ()
    assert rollout.valid.all() and (rollout.lengths == policy.layout.tokens).all()
    tokens, rows, every = rollout.tokens.flatten(0, 1), rollout.row_condition, rollout.valid.flatten(0, 1)
    found = []
    for valid in (None, every):
        policy.module.zero_grad()
        lp = replay(policy, rows, tokens, valid=valid, chunk=5).lp
        lp.square().sum().backward()
        found.append((lp.detach(), [p.grad.clone() for p in policy.trainable_parameters() if p.grad is not None]))
    (lp, pulls), (other, others) = found
    assert torch.equal(lp, other) and all(torch.equal(*pair) for pair in zip(pulls, others, strict=True))
    once, again = (frozen_replay(policy, rows, tokens, 3, valid=valid).lp for valid in (None, every))
    assert torch.equal(once, again)
