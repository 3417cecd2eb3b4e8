import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.policy import TokenLayout
from t2i_rl.methods.credit.critical import lowest
from t2i_rl.tokenmaps import (
    entropy_gradient,
    gradient_magnitude,
    local_mean,
    percentile_ranks,
    ranks,
    running_divergence,
    similarity,
)

SCALES = TokenLayout(((1, 1), (2, 2), (3, 4)), (1, 4, 12))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_local_mean_counts_the_neighbours_that_exist() -> None:
    picture = torch.arange(6.0).view(2, 3)
    expected = torch.tensor([[0, 0.5, 1.5], [(3 + 0 + 1) / 3, (4 + 3 + 0 + 1 + 2) / 5, (5 + 4 + 1 + 2) / 4]])
    torch.testing.assert_close(local_mean(picture), expected)


def test_local_mean_sees_nothing_that_comes_later() -> None:
    picture = random(4, 5)
    changed = picture.clone()
    changed.view(-1)[13:] += 1
    assert torch.equal(local_mean(picture).view(-1)[:12], local_mean(changed).view(-1)[:12])


def test_gradient_of_a_plane_is_its_slope() -> None:
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    torch.testing.assert_close(gradient_magnitude(3 * x + 4 * y), torch.full((4, 5), 5.0))


def test_entropy_gradient_stays_inside_each_map() -> None:
    values = random(2, 3, SCALES.tokens)
    found = SCALES.split(entropy_gradient(values, SCALES))
    assert (found[0] == 0).all()
    for part, picture in zip(found[1:], SCALES.split(values)[1:], strict=True):
        torch.testing.assert_close(part, gradient_magnitude(local_mean(picture)))
    sharp = SCALES.split(entropy_gradient(values, SCALES, smooth=False))
    torch.testing.assert_close(sharp[2], gradient_magnitude(SCALES.split(values)[2]))


def test_similarity_is_the_mean_cosine_of_the_pairs() -> None:
    embeddings = random(2, 4, 3, 5)
    embeddings[0, 1, 2] = 0
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    pairs = [(unit[:, a] * unit[:, b]).sum(-1) for a in range(4) for b in range(4) if a != b]
    torch.testing.assert_close(similarity(embeddings), torch.stack(pairs).mean(0))


@given(
    codes=st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=2, max_size=8),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_group_does_not_change_which_positions_are_least_alike(
    codes: list[list[int]], seed: int, data: st.DataObject
) -> None:
    """Of four codes many positions have the same ones: their ties go by position, in any order of the images."""
    vectors = random(4, 32, seed=seed)[torch.tensor(codes)]
    order = data.draw(st.permutations(range(len(codes))))
    found, permuted = similarity(vectors[None]), similarity(vectors[None, order])
    assert torch.equal(found, permuted)
    kept = [lowest(values, 5, values.isfinite()) for values in (found, permuted)]
    assert torch.equal(*kept)
    # The same codes in another distribution over the images are the same similarity too.
    turned = torch.stack([column[torch.arange(len(codes)).roll(t)] for t, column in enumerate(vectors.unbind(1))], 1)
    assert torch.equal(found, similarity(turned[None]))


def test_similarity_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        similarity(torch.zeros(1, 1, 4, 2))


def test_running_divergence_is_a_clipped_running_mean() -> None:
    lp, ref = torch.tensor([1.0, -3.0, 0.25]), torch.zeros(3)
    torch.testing.assert_close(running_divergence(lp, ref, 0.5, "linear"), torch.tensor([0.5, 0.0, 0.25 / 3]))
    terms = [math.exp(0.5), math.exp(-0.5), math.exp(0.25)]
    expected = torch.tensor([sum(terms[: t + 1]) / (t + 1) for t in range(3)])
    torch.testing.assert_close(running_divergence(lp, ref, 0.5), expected)


def test_ranks_of_ties() -> None:
    values = torch.tensor([[3.0, 1.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert ranks(values).tolist() == [[4, 1.5, 1.5, 3], [2.5, 2.5, 2.5, 2.5]]
    assert ranks(values, "stable").tolist() == [[4, 1, 2, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize("ties", ["average", "stable"])
@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, 1e-6, 7.0, 10.0]) | st.floats(-5, 5), min_size=2))
def test_percentiles_lie_in_0_to_1_around_a_half(ties, values: list[float]) -> None:
    found = percentile_ranks(torch.tensor(values, dtype=torch.float64), ties)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.mean().item() == pytest.approx(0.5)
