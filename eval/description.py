"""A benchmark that is described by one TOML file: prompts, scorers or questions, figures (docs/add-a-benchmark.md).

name = "wise"
prompts = "wise.jsonl"

[questions.consistency]
ask = 'Does this image show "{prompt}", that is: {explanation}? Answer 0 (no), 1 (partly) or 2 (fully).'
words = { 0 = 0, 1 = 1, 2 = 2 }
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.benchmark import TOTAL, Benchmark, Metric
from eval.questions import Question
from t2i_rl.errors import UserError
from t2i_rl.prompts.files import prompt_of
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.prompts.sets import NAMES

QUESTIONS = "questions"  # the scorer that asks them
KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "prompts": (str, list),
    "scorers": list,
    "questions": dict,
    "images_per_prompt": int,
    "category": str,
    "overall": str,
    "metrics": dict,
    "notes": list,
}
NEEDED = ("name", "prompts")
SEE = "see docs/add-a-benchmark.md"


@dataclass(frozen=True)
class Description:
    """What a file says: the benchmark, the specifications of its scorers, and its own questions."""

    benchmark: Benchmark
    scorers: tuple[str, ...]
    questions: tuple[Question, ...]


def read(path: Path, images_per_prompt: int | None = None) -> Description:
    """Read and check a description. Raises UserError that names the file and the key."""
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the benchmark {path} ({error.strerror}): check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is not TOML ({error}): {SEE}") from error
    for key in NEEDED:
        if key not in held:
            raise UserError(f"{path} lacks {key!r}: a benchmark has {', '.join(NEEDED)} and scorers or questions")
    for key, value in held.items():
        if key not in KINDS or not isinstance(value, KINDS[key]):
            raise UserError(f"{path}: {key!r} is {value!r}: {SEE} for what a benchmark has")
    if not (held.get("scorers") or held.get("questions")):
        raise UserError(f"{path} names neither scorers nor questions: nothing would judge the images")
    overall = held.get("overall", "images")
    if overall not in ("images", "categories"):
        raise UserError(f"{path}: 'overall' is {overall!r}: it is a mean over images or over categories")
    questions = tuple(_question(name, told, path) for name, told in held.get("questions", {}).items())
    described = Benchmark(
        name=held["name"],
        prompts=_prompts(held["prompts"], path),
        images_per_prompt=images_per_prompt or held.get("images_per_prompt", 1),
        metrics=_metrics(held, questions, overall, path),
        category_key=held.get("category", "category"),
        notes=tuple(held.get("notes", ())),
    )
    return Description(described, tuple(held.get("scorers", ())), questions)


def _prompts(told: str | list[Any], path: Path) -> tuple[Prompt, ...]:
    """Those of a set by its name, of a file beside the description, or in the description itself."""
    if isinstance(told, str):
        return tuple(load_prompts(told if told in NAMES else str(path.parent / told)))
    if not told:
        raise UserError(f"{path}: 'prompts' is empty: write at least one")
    return tuple(
        prompt_of(one, f"{path}, entry {number} of 'prompts'", path.parent) for number, one in enumerate(told, start=1)
    )


def _question(name: str, told: Any, path: Path) -> Question:
    held = told if isinstance(told, dict) else {}
    words = held.get("words", {"yes": 1, "no": 0})
    graded = isinstance(words, dict) and len(words) > 1 and all(isinstance(one, int | float) for one in words.values())
    texts = isinstance(held.get("ask"), str) and isinstance(held.get("each", ""), str)
    if not graded or not texts or set(held) - {"ask", "each", "words"}:
        raise UserError(
            f"{path}: the question {name!r} is {told!r}: give the text to `ask`, and if need be `each` and the grades "
            f"of its `words`, two or more: {SEE}"
        )
    return Question(name, held["ask"], held.get("each", ""), words)


def _metrics(
    held: Mapping[str, Any],
    questions: tuple[Question, ...],
    overall: Literal["images", "categories"],
    path: Path,
) -> tuple[Metric, ...]:
    names = [specification.partition("@")[0] for specification in held.get("scorers", ())]
    asked = [value for question in questions for value in question.values]
    if "metrics" not in held:
        scored = [Metric(name, name, {TOTAL: 1.0}, overall) for name in names]
        return (*scored, *(Metric(value, QUESTIONS, {value: 1.0}, overall) for value in asked))
    names += [QUESTIONS] * bool(questions)
    found = []
    for name, told in held["metrics"].items():
        figure = told if isinstance(told, dict) else {}
        scorer, values = figure.get("scorer", QUESTIONS), figure.get("values", {TOTAL: 1.0})
        numbers = isinstance(values, dict) and all(isinstance(one, int | float) for one in values.values())
        known = numbers and (scorer != QUESTIONS or set(values) <= set(asked))
        if scorer not in names or not known or set(figure) - {"scorer", "values"}:
            answers = f" (of the questions: {', '.join(asked)})" if asked else ""
            raise UserError(
                f"{path}: the figure {name!r} is made of {told!r}: give one of the scorers {', '.join(names)}, and "
                f"a weight for each of its values{answers}"
            )
        found.append(Metric(name, scorer, values, overall))
    return tuple(found)
