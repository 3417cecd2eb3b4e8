"""Where the answers of a benchmark are from: a policy is asked its questions, several times each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.benchmark import Benchmark
from eval.records.manifest import Block, Ledger, Row, digest
from eval.records.progress import Stages
from models.policy import Policy
from rewards.cut import Cut
from rewards.files.pins import sha256
from t2i_rl.errors import UserError
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.cut import cut_by
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.noise import Noise, occurrences
from t2i_rl.rollout.sampler import ask, sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.words import check_prompts, longest_question, question_lengths

UNASKED: Row = {"text": "", "tokens": 0, "truncated": False}  # of a question that leaves no place for an answer


@dataclass(frozen=True)
class Answers:
    """Answers that a policy gives.

    asking: how prompts become questions. max_tokens: of an answer. protocol: what both are by name.
    model: what the policy is called in the settings; weights: its checksums.
    """

    policy: Policy
    sampling: Sampling
    seed: int
    asking: Asking
    max_tokens: int
    protocol: str
    model: str
    weights: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"

    def cut(self, benchmark: Benchmark) -> Sequence[Cut]:
        return cut_by(self.policy, self.model, [prompt.text for prompt in benchmark.prompts])

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """What was asked of the policy. Raises UserError for a question that it cannot be asked."""
        if not self.policy.stop_tokens:
            raise UserError(f"{self.model} draws pictures, and here questions are answered: choose a model that sees")
        check_prompts(self.policy, [*benchmark.prompts, Prompt(self.asking.instruction, origin="the instruction")])
        question_lengths(self.policy, benchmark.prompts, self.asking)
        return {
            "model": self.model,
            "weights": dict(self.weights),
            "dtype": self.dtype,
            "sampling": asdict(self.sampling),
            "seed": self.seed,
            "protocol": self.protocol,
            "max_tokens": self.max_tokens,
            "instruction": self.asking.instruction,
            "picture_size": asdict(self.asking.size),
            "pictures_sha256": digest([_pictures(prompt) for prompt in benchmark.prompts]),
        }

    def provide(
        self, benchmark: Benchmark, folder: Path, blocks: Sequence[Block], settings: str, stages: Stages, ledger: Ledger
    ) -> None:
        """Ask what the ledger has no answer to; the questions of a block are asked together.

        One that leaves no place for an answer gets none, which is wrong: figures are over all questions.
        """
        held = ledger.rows()
        left = [block for block in blocks if any(key not in held for key in block)]
        advance = stages("answering", sum(map(len, left)))
        numbers = occurrences([prompt.key for prompt in benchmark.prompts])  # a question again is answered anew
        for block in left:
            rows = list(dict.fromkeys(index for index, _ in block))
            found = self._found(benchmark, rows, numbers)
            ledger.append(
                _line(benchmark, index, sample, answer, self.seed, settings)
                for index in rows
                for sample, answer in enumerate(found[index])
            )
            advance(len(block))

    def _found(self, benchmark: Benchmark, rows: Sequence[int], numbers: Sequence[int]) -> dict[int, list[Row]]:
        """The answers to some questions by their rows."""
        lengths = question_lengths(self.policy, [benchmark.prompts[row] for row in rows], self.asking)
        short = [row for row, length in zip(rows, lengths, strict=True) if length <= longest_question(self.policy)]
        found = {row: [UNASKED] * benchmark.images_per_prompt for row in rows}
        if short:
            noise = Noise(self.seed, occurrences=[numbers[row] for row in short])
            asked = [benchmark.prompts[row] for row in short]
            found |= zip(short, self._answers(asked, benchmark.images_per_prompt, noise), strict=True)
        return found

    def _answers(self, asked: Sequence[Prompt], samples: int, noise: Noise) -> list[list[Row]]:
        """By question and sample: the text, its tokens, whether the limit cut it off."""
        condition = ask(self.policy, self.asking, asked)
        rollout = sample_group(self.policy, condition, samples, self.sampling, noise, max_tokens=self.max_tokens)
        texts = self.policy.decode(rollout.tokens.flatten(0, 1))
        assert isinstance(texts, list)  # of a model with stop tokens
        lengths, cut = rollout.lengths.flatten().tolist(), rollout.cut.flatten().tolist()
        rows = [
            {"text": text, "tokens": length, "truncated": longer}
            for text, length, longer in zip(texts, lengths, cut, strict=True)
        ]
        return [rows[start : start + samples] for start in range(0, len(rows), samples)]


def _line(benchmark: Benchmark, index: int, sample: int, answer: Row, seed: int, settings: str) -> Row:
    """A line of the manifest, which holds the answer itself."""
    prompt = benchmark.prompts[index]
    about = {"index": index, "sample": sample, "category": benchmark.category(index), "prompt": prompt.text}
    return {**about, "metadata": dict(prompt.metadata), "seed": seed, **answer, "settings": settings}


def _pictures(prompt: Prompt) -> list[str]:
    """What tells its pictures from others."""
    return [
        sha256(one) if isinstance(one, Path) else digest([one.shape, one.tobytes().hex()]) for one in prompt.pictures
    ]
