"""Rewards that a person brings along, without a change here: `module:name`, or an entry point of `t2i_rl.rewards`.

What goes by the name may be a function of images, prompts and metadata that returns a number for each image; a class
with such a method `score`, made with the device if it takes one; or a `rewards.catalogue.RewardEntry`. A mistake in it
is one sentence with its name and line. Nothing here imports torch before a reward is asked.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.cut import Cut
from rewards.errors import RewardError

if TYPE_CHECKING:
    from rewards.reward import Reward, Scores

GROUP = "t2i_rl.rewards"
SPELT = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # a module and a name in it


def entry_point(name: str) -> EntryPoint | None:
    """Where to find what goes by a name; None for no such name."""
    installed = [*entry_points(group=GROUP, name=name)]
    if not installed and not re.fullmatch(SPELT, name):
        return None
    return installed[0] if installed else EntryPoint(name, name, GROUP)


def brought(name: str) -> Any:
    """What goes by a name, from an installed package or from a module that is found from here; None for no such name.

    Raises RewardError for what cannot be imported.
    """
    if (found := entry_point(name)) is None:
        return None
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        import_module(found.module)
    except ModuleNotFoundError as error:
        if found.module.endswith(".py"):
            raise RewardError(
                f"{name!r} names a file, and a module is wanted: leave out .py, as in {name.replace('.py:', ':')}"
            ) from error
        if error.name and found.module.startswith(error.name):
            raise RewardError(
                f"there is no module {found.module} for the reward {name!r}: start where its file lies, or install it"
            ) from error
        raise RewardError(f"the reward {name!r} needs the package {error.name}: install it") from error
    except Exception as error:
        raise RewardError(f"the reward {name!r} cannot be imported: {place_of(error)}") from error
    try:
        return found.load()
    except AttributeError as error:
        raise RewardError(f"the module {found.module} has no {found.attr}: name another reward of it") from error


def as_reward(found: Any, name: str, device: str) -> "Reward":
    """A function or class as a reward. Raises RewardError for what is neither."""
    if isinstance(found, type):
        with mistakes(name):
            found = found(device) if inspect.signature(found).parameters else found()
    if not (callable(found) or hasattr(found, "score")):
        raise RewardError(f"the reward {name!r} is {found!r}: it has to be a function, or a class with a method score")
    return OwnReward(name, found)


@contextmanager
def mistakes(name: str) -> Iterator[None]:
    """Raises RewardError with the name and the line for whatever goes wrong inside."""
    try:
        yield
    except (RewardError, MemoryError):
        raise
    except Exception as error:
        raise RewardError(f"the reward {name!r} failed: {place_of(error)}") from error


def place_of(error: Exception) -> str:
    """What went wrong, and in which line of whose file."""
    *_, last = traceback.extract_tb(error.__traceback__)
    said = " ".join(str(error).split()) or "without a word"
    return f"{type(error).__name__}: {said} ({last.filename}, line {last.lineno})"


class OwnReward:
    """Somebody's function or object as a `rewards.reward.Reward`."""

    def __init__(self, name: str, scorer: Any) -> None:
        self.name, self.scorer = name, scorer
        self.ask = getattr(scorer, "score", scorer)

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Sequence[Cut] | None:
        with mistakes(self.name):
            return self.scorer.check(prompts, metadata) if hasattr(self.scorer, "check") else None

    def score(
        self, samples: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], /
    ) -> "Scores":
        import torch

        from rewards.reward import Scores

        with mistakes(self.name):
            found = self.ask(samples, prompts, metadata)
            if isinstance(found, Scores):
                return found
            total = torch.as_tensor(found, dtype=torch.float32).detach().cpu()
        if total.shape != (len(samples),):
            shape = " x ".join(map(str, total.shape))
            gave = {0: "one number", 1: f"a list of {shape}"}.get(total.ndim, f"a table of {shape}")
            raise RewardError(f"the reward {self.name!r} gave {gave} for {len(samples)} images: give a number for each")
        return Scores(total, {}, ("",) * len(samples))
