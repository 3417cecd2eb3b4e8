"""Decoding steps: what a policy keeps for them between rollouts, and how they run.

A step feeds the tokens that were drawn, and draws and measures the next ones. In shapes that stay the same it can be
captured as a CUDA graph, one for each bucket of slots that attention reads, and then costs the host one call. The eager
step is its twin: the same functions on the same buffers, and what runs where nothing can be captured. The lines for
CUDA have not been run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from models.policy import Condition, FixedShapes, Policy, State
from t2i_rl.rollout.drawing import Drawing
from t2i_rl.rollout.sampling import Sampling

WARM_UPS = 2  # eager runs before a capture: they compile, and let libraries allocate what they keep


@dataclass
class Steps:
    """The steps of rollouts of one shape, whose buffers they share: one rollout at a time.

    shape: what has to be the same for a rollout to run in them.
    graphs: by the slots that attention reads, those that were captured; they read and write `last`.
    """

    shape: tuple[Any, ...]
    state: State
    drawing: Drawing
    graphs: dict[int, Any] = field(default_factory=dict)
    last: Int[Tensor, "R 1"] | None = None

    def first(self, policy: Policy) -> Int[Tensor, "R block"]:
        """The tokens of the first block."""
        drawn = self.drawing.take(policy.next_logits(self.state))
        return drawn if self.last is None else self.last.copy_(drawn)

    def next(self, policy: Policy, drawn: Int[Tensor, "R block"]) -> Int[Tensor, "R block"]:
        """The tokens of the block behind these."""
        if self.last is None:
            policy.append(self.state, drawn)
            return self.drawing.take(policy.next_logits(self.state))
        self.graphs[self.state.visible].replay()
        self.state.filled += 1
        return self.last

    def step(self, policy: Policy, last: Int[Tensor, "R 1"], visible: int) -> None:
        """What is captured: a step that changes nothing but tensors."""
        self.state.feed(last, visible)
        last.copy_(self.drawing.take(policy.next_logits(self.state)))

    def capture(self, policy: Policy, compiled: bool) -> None:
        """Capture the steps of every bucket; what the buffers hold is lost."""
        state, rows = self.state, len(self.drawing.tokens)
        began, pool, side = time.perf_counter(), torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        if compiled:
            state.halves = tuple(torch.compile(half) for half in state.halves)
        self.last = last = self.drawing.tokens.new_zeros(rows, 1)
        for visible in track(state.buckets, f"Capturing the decoding step of {rows} rows ...", transient=True):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    state.slot.fill_(visible - 1)
                    self.drawing.begin(self.drawing.uniform)
                    self.step(policy, last, visible)
            torch.cuda.current_stream().wait_stream(side)
            self.graphs[visible] = torch.cuda.CUDAGraph()
            # Only this thread's calls have to be fit for it: a reward may score on the same GPU meanwhile.
            with torch.cuda.graph(self.graphs[visible], pool=pool, capture_error_mode="thread_local"):
                self.step(policy, last, visible)
        spent = time.perf_counter() - began
        print(f"captured the decoding step of {rows} rows in {spent:.0f} s, for as long as the shape stays", flush=True)


@dataclass
class Kept:
    """What a policy has of its own in this room, as long as it lives.

    capture: whether steps are captured, where they can be: on CUDA, in shapes that stay the same.
    compiled: whether the halves of its layers are compiled before.
    steps: of the newest rollout's shape. Another shape takes their place, so that memory holds one.
    """

    capture: bool = True
    compiled: bool = True
    steps: Steps | None = None


KEPT: WeakKeyDictionary[Policy, Kept] = WeakKeyDictionary()


def kept(policy: Policy) -> Kept:
    return KEPT.setdefault(policy, Kept())


def begin(
    policy: Policy,
    condition: Condition,
    group_size: int,
    sampling: Sampling,
    statistics: Sequence[str],
    uniform: Float[Tensor, "R N"],
) -> Steps:
    """Read the prompts into the buffers of the last rollout, if it was of this shape, or into new ones."""
    own, shape = kept(policy), (*uniform.shape, group_size, sampling, tuple(statistics))
    steps = own.steps if own.steps is not None and own.steps.shape == shape else None
    own.steps = None
    drawing = Drawing(policy, *shape) if steps is None else steps.drawing

    def read(into: State | None) -> State:
        return policy.prefill(condition, group_size, drawing.branches, into)

    state = read(None if steps is None else steps.state)
    if steps is None or steps.state is not state:
        steps = Steps(shape, state, drawing)
        if own.capture and drawing.tokens.is_cuda and isinstance(state, FixedShapes):
            steps.capture(policy, own.compiled)
            read(state)
    own.steps = steps if isinstance(state, FixedShapes) else None  # the buffers of others end with their rollout
    drawing.begin(uniform)
    return steps
