"""What commands share: arguments as dataclasses, errors of one sentence, what is asked of all that draw images."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from models.device import AUTO
from models.registry import find as find_model
from t2i_rl.errors import UserError
from t2i_rl.prompts.reading import check_words
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.run_folder import ModelName

if TYPE_CHECKING:
    from models.policy import Policy

Parsed = TypeVar("Parsed")
Precision = Literal["float32", "bfloat16", "float16"]
BOX = "╭╮╰╯│─"
RULE = " ─-"  # the last where stdout is not UTF-8: then there is no box, only rules
OPTION = re.compile(r" {4}(\S+)")
ALIKE = ("Perhaps you meant", "Arguments similar to")  # how the part begins that knows options of such a name


@contextlib.contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """What tyro would put in a box becomes one sentence; help passes through."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        sentence = _first_sentence([line.strip(BOX) for line in stderr.getvalue().splitlines()[1:]])
        raise UserError(f"{sentence} (see t2i-rl {command} --help)") from None


def _first_sentence(box: Sequence[str]) -> str:
    """What the first part of tyro's box says; of what is missing the names alone, and of what is unknown beside it.

    Parts are divided by rules. Without UTF-8 a box has no sides, and stands further in.
    """
    margin = min((len(line) - len(line.lstrip()) for line in box if line.strip(RULE)), default=0)
    parts = itertools.groupby((line[margin:] for line in box), lambda line: not line.strip(RULE))
    first, *others = [list(part) for is_rule, part in parts if not is_rule]
    if not first[0].startswith("Missing from"):
        alike = [name for part in others if part[0].startswith(ALIKE) for name in _options(part)]
        meant = f": did you mean {' or '.join(dict.fromkeys(alike))}?" if alike else ""
        return " ".join(line.strip() for line in first).rstrip(".") + meant
    unknown = [line.strip() for part in others if part[0].startswith("Unrecognized") for line in part[1:]]
    return f"missing: {', '.join(_options(first))}" + (f"; unrecognized: {', '.join(unknown)}" if unknown else "")


def _options(lines: Sequence[str]) -> list[str]:
    """Names that stand before their descriptions."""
    return [found[1] for line in lines if (found := OPTION.match(line))]


def parse(kind: type[Parsed], arguments: Sequence[str], command: str, default: Parsed | None = None) -> Parsed:
    """The arguments as a dataclass."""
    more: dict[str, Any] = {} if default is None else {"default": default}
    with one_sentence(command):
        return tyro.cli(kind, args=arguments, prog=f"t2i-rl {command.partition(' --')[0]}", **more)


def load_policy(model: str, dtype: Precision, device: str, draws: bool = False) -> Policy:
    """A model in that precision and place. draws: whether one that answers in text is refused."""
    import torch

    from models.registry import load
    from t2i_rl.training.checkpoints import check_source

    check_source(model)
    return load(model, getattr(torch, dtype), device, draws)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What every command that draws images asks for.

    Attributes:
        model: a registered name, a checkpoint folder, a run's (its best checkpoint; RUN@last, RUN@90) or a hub id.
        guidance_scale: of classifier-free guidance, the model's own if not given; 1 switches it off.
        temperature: divides the guided logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this total probability; 1 keeps all.
        negative_prompt: what guidance leads away from; nothing: the model's unconditional branch.
        seed: of the noise.
        dtype: of the weights; logits and what is measured on them are float32, and so are pixels.
        device: where the model runs: auto is cuda where there is one, else cpu.
    """

    draws: ClassVar[bool] = True  # whether a model that answers in text is refused

    model: ModelName = "tiny"
    guidance_scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str = ""
    seed: int = 0
    dtype: Precision = "float32"
    device: str = AUTO

    def __post_init__(self) -> None:
        """Refuse before torch is imported."""
        find_model(self.model)
        Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        check_words(self.negative_prompt, "negative-prompt")

    def policy(self, model: str) -> Policy:
        """A model in the precision and place asked for."""
        return load_policy(model, self.dtype, self.device, self.draws)

    def load(self) -> tuple[Policy, Sampling]:
        """The model, and how it is sampled."""
        from models.device import device_of, in_words

        if self.device == AUTO and (chosen := device_of(AUTO)) != "cpu":
            print(f"on {in_words(chosen)}", flush=True)
        policy = self.policy(self.model)
        asked = Sampling(self.guidance_scale, self.temperature, self.top_k, self.top_p, self.negative_prompt)
        return policy, asked.of(policy.default_guidance)
