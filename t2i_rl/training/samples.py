"""What a run keeps of each evaluation: some of the samples, and what was thought of every one.

RUN/samples/step-000020.png      the pictures of the same held-out prompts and noise, side by side
RUN/samples/step-000020.json     or the answers to the same questions, as a list of texts
RUN/samples/step-000020.jsonl    the verdict on each held-out sample, a line each; older runs have none
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

import numpy as np

from t2i_rl.outputs import write_atomically
from t2i_rl.pictures.answers import answers_path, save_answers
from t2i_rl.pictures.strips import save_strip, strip_path
from t2i_rl.prompts.prompt import Prompt, tag_of
from t2i_rl.training.evaluation import Evaluation

SAMPLES = "samples"
KEPT = 16  # samples at most; as many of each tag


@dataclass(frozen=True)
class Verdict:
    """What was thought of a held-out sample.

    prompt, tag: of it. number: of the prompt among the different ones, from 0.
    score: what the held-out score is the mean of.
    right: None where the reward does not say.
    reason: why it has less than the full score, where the reward gives one.
    place: among the samples that are kept, from 0; None of one that is not.
    """

    prompt: str
    tag: str
    number: int
    score: float
    right: bool | None
    reason: str
    place: int | None

    @property
    def said(self) -> str:
        """In words. What is right may still have less than the full score, by other rules: then no reason is given."""
        if self.right:
            return "right"
        verdict = "wrong" if self.right is False else f"score {self.score:.3f}"
        return f"{verdict}: {self.reason}" if self.reason else verdict


def kept(judged: Sequence[Prompt]) -> list[int]:
    """Which of the held-out samples are kept: of every tag as many, of different prompts, evenly spaced."""
    by_tag: dict[str, dict[str, int]] = {}
    for index, prompt in enumerate(judged):
        by_tag.setdefault(tag_of(prompt), {}).setdefault(prompt.key, index)
    found = list[int]()
    for first in by_tag.values():
        number = min(len(first), max(1, KEPT // len(by_tag)))
        spaced = np.linspace(0, len(first) - 1, number).round().astype(int)
        found += [[*first.values()][place] for place in spaced]
    return found[:KEPT]


def save_samples(folder: Path, step: int, judged: Sequence[Prompt], found: Evaluation) -> None:
    """Write what is kept of an evaluation of these prompts, one sample each."""
    images = [one.sample for one in found.judged if one.sample is not None and not isinstance(one.sample, str)]
    if images:
        save_strip(strip_path(folder, step), images)
    else:
        save_answers(answers_path(folder, step), [one.sample for one in found.judged if isinstance(one.sample, str)])
    lines = [json.dumps(asdict(verdict), ensure_ascii=False) + "\n" for verdict in verdicts(judged, found)]
    write_atomically(verdicts_path(folder, step), "".join(lines))


def verdicts(judged: Sequence[Prompt], found: Evaluation) -> list[Verdict]:
    """What was thought of every sample of an evaluation of these prompts."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(prompt.key for prompt in judged))}
    places = count()
    return [
        Verdict(
            prompt.text,
            tag_of(prompt),
            numbers[prompt.key],
            one.score,
            one.right,
            one.reason,
            None if one.sample is None else next(places),
        )
        for one in found.judged
        for prompt in (judged[one.prompt],)
    ]


def verdicts_path(folder: Path, step: int) -> Path:
    """Where the verdicts of an evaluation lie."""
    return folder / f"step-{step:06d}.jsonl"


def read_verdicts(folder: Path, step: int) -> list[Verdict]:
    """The verdicts of an evaluation, in the order of its samples; none, with a warning, where they are damaged."""
    path = verdicts_path(folder, step)
    if not path.exists():
        return []
    names = {field.name for field in fields(Verdict)}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Verdict(**{name: row[name] for name in names}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"warning: left out {path}, which cannot be read ({error})", file=sys.stderr)
        return []
