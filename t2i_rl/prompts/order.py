"""The order in which training meets its prompts: pure functions of the step, so that resuming needs no saved state."""

import numpy as np


def batch(prompts: int, step: int, size: int, seed: int) -> list[int]:
    """Which of so many prompts make up the batch of a step (counted from 0).

    Each epoch is a permutation of its own, drawn from (seed, epoch); a batch runs on into the next epoch.
    A pure function of its arguments: resuming needs no saved state.
    """
    positions = range(step * size, (step + 1) * size)
    epochs = {position // prompts for position in positions}
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(prompts) for epoch in epochs}
    return [int(orders[position // prompts][position % prompts]) for position in positions]


def further_batch(prompts: int, step: int, attempt: int, size: int, seed: int) -> list[int]:
    """Which prompts are drawn in the 1st, 2nd, ... attempt to replace some of a step's (counted from 0).

    Drawn at random beside the epochs; a pure function of its arguments, like `batch`, and a larger size only goes on.
    """
    order = np.random.default_rng([seed, step, attempt]).permutation(prompts)
    return [int(order[place % prompts]) for place in range(size)]
