"""What benchmarks of questions with pictures ask for, and what is made of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from models.device import AUTO
from models.registry import ANSWERING
from models.registry import find as find_model
from t2i_rl.commands.arguments import Precision, load_policy
from t2i_rl.errors import UserError
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.run_folder import ModelName

if TYPE_CHECKING:
    from eval.benchmark import Benchmark, Scorer
    from eval.images import Source
    from eval.reasoning.protocol import Protocol
    from models.policy import Policy

Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]


@dataclass(frozen=True, kw_only=True)
class EvalReasoning:
    """Questions with pictures, answered several times each: avg@8, its standard error, pass@k.

    Run again, it continues where it was.

    Attributes:
        model: a registered name, a checkpoint folder, a run's (its best checkpoint; RUN@last, RUN@90) or a hub id, of a
            model that answers in text.
        prompts: the questions: a set of t2i-rl data make, or a file like those; if not given, the benchmark's.
        samples: answers to each question.
        protocol: own: the pixels of training, all tokens may be drawn; papo: as PAPO-Eval measures, with smaller
            pictures and top-k 50.
        grader: mathruler's verdicts (math), as published, or those of math-verify.
        instruction: behind every question; if not given, the papers'.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all; if not given, the protocol's.
        top_p: keep the most likely tokens up to this total probability; 1 keeps all.
        max_tokens: of an answer; longer ones are cut off; if not given, the protocol's, 2048.
        seed: of the noise.
        dtype: of the weights; logits are float32.
        device: where the model runs: auto is cuda where there is one, else cpu.
        out: folder of `manifest.jsonl` with the answers, `scores`, `questions.jsonl` and `summary.json`.
        resume: only continue: an error where nothing was begun in --out.
        batch: answers drawn together, whole questions.
        generate_only: answer and stop; the same command without it grades.
    """

    name: ClassVar[str]  # of the benchmark, and of its questions (`t2i-rl data make NAME`)

    model: ModelName
    prompts: str = ""
    samples: int = 8
    protocol: Literal["own", "papo"] = "own"
    grader: Literal["math", "math-verify"] = "math"
    instruction: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    temperature: float = 1.0
    top_k: Number = None
    top_p: float = 1.0
    max_tokens: Number = None
    seed: int = 0
    dtype: Precision = "float32"
    device: str = AUTO
    out: Path
    resume: bool = False
    batch: int = 64
    generate_only: bool = False

    def __post_init__(self) -> None:
        """Refuse before torch is imported."""
        for name in ("samples", "batch", "max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if (known := find_model(self.model)).family not in (None, *ANSWERING):
            raise UserError(f"{known.name} draws pictures, and here questions are answered: choose a model that sees")
        self.sampling(self.top_k or 0)

    def sampling(self, top_k: int) -> Sampling:
        return Sampling(1.0, self.temperature, top_k, self.top_p)

    def asked(self) -> Protocol:
        """The protocol, with what is given besides."""
        from eval.reasoning.protocol import PROTOCOLS

        usual = PROTOCOLS[self.protocol]
        top_k = usual.top_k if self.top_k is None else self.top_k
        return replace(usual, top_k=top_k, max_tokens=self.max_tokens or usual.max_tokens)

    def benchmark(self) -> Benchmark:
        from eval.reasoning.benchmark import benchmark
        from t2i_rl.prompts.reading import load_prompts

        return benchmark(self.name, load_prompts(self.prompts or self.name), self.samples)

    def scorers(self) -> Mapping[str, Scorer]:
        from eval.benchmark import RewardScorer
        from eval.reasoning.figures import SCORER
        from rewards.registry import build

        return {SCORER: RewardScorer(build(self.grader, self.device, samples="answers"))}

    def load(self) -> tuple[Policy, Sampling]:
        """The model, and how answers are drawn."""
        return load_policy(self.model, self.dtype, self.device), self.sampling(self.asked().top_k)

    def source(self, policy: Policy, sampling: Sampling, weights: Mapping[str, str]) -> Source:
        """The answers that the model gives."""
        from eval.reasoning.answers import Answers
        from t2i_rl.prompts.asking import Asking
        from t2i_rl.prompts.questions import INSTRUCTION

        protocol = self.asked()
        return Answers(
            policy=policy,
            sampling=sampling,
            seed=self.seed,
            asking=Asking(INSTRUCTION if self.instruction is None else self.instruction, size=protocol.size),
            max_tokens=protocol.max_tokens,
            protocol=self.protocol,
            model=self.model,
            weights=weights,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True)
class EvalMathVerse(EvalReasoning):
    """MathVerse: 2,180 questions of geometry and functions, with choices; avg@8. Run again, it continues."""

    name = "mathverse"
    out: Path = Path("runs/mathverse")


@dataclass(frozen=True, kw_only=True)
class EvalMathVision(EvalReasoning):
    """MathVision: 2,907 questions of competitions; avg@8. Run again, it continues."""

    name = "mathvision"
    out: Path = Path("runs/mathvision")


@dataclass(frozen=True, kw_only=True)
class EvalMM12K(EvalReasoning):
    """MM12K: 2,000 questions of mathematics, physics, chemistry and biology; avg@8. Run again, it continues."""

    name = "mm12k"
    out: Path = Path("runs/mm12k")


@dataclass(frozen=True, kw_only=True)
class EvalLogicVista(EvalReasoning):
    """LogicVista: 447 questions of logic; avg@8. Run again, it continues."""

    name = "logicvista"
    out: Path = Path("runs/logicvista")


@dataclass(frozen=True, kw_only=True)
class EvalMMMUPro(EvalReasoning):
    """MMMU-Pro: 1,730 questions inside their pictures; avg@8. Run again, it continues."""

    name = "mmmu-pro"
    out: Path = Path("runs/mmmu-pro")


@dataclass(frozen=True, kw_only=True)
class EvalQuestions(EvalReasoning):
    """Questions of your own, or about pictures of the shapes world; avg@8. Run again, it continues."""

    name = "questions"
    model: ModelName = "tiny-vlm"
    prompts: str = "questions:heldout"
    instruction: Annotated[str | None, tyro.conf.arg(metavar="STR")] = ""
    out: Path = Path("runs/questions")


REASONING: dict[str, type[EvalReasoning]] = {
    kind.name: kind for kind in (EvalMathVerse, EvalMathVision, EvalMM12K, EvalLogicVista, EvalMMMUPro, EvalQuestions)
}
