"""What is said of a benchmark's answers beside their mean: how sure it is, and whether any of several is right.

A question is answered n times. avg@n is the mean over questions of the share of right answers; its standard error is
that over questions. pass@k is the probability that one of k answers is right, estimated from all n without bias:
1 - C(n - c, k) / C(n, k) of a question with c right ones (Chen et al., arXiv:2107.03374, equation 1).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from eval.records.manifest import Row
from rewards.answers.reward import ACCURACY
from t2i_rl.outputs import write_atomically

SCORER = "answers"
UNGRADED = "ungraded"
PERCENT = 100.0
QUESTIONS = "questions.jsonl"


def pass_at(samples: int, right: int, k: int) -> float:
    """The probability that one of k answers, drawn from so many without replacement, is right."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 of a single value, of which nothing is known."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def by_question(manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> list[Row]:
    """A line for every question: which of its answers are right, how long they are, and how many were cut off."""
    found: dict[int, Row] = {}
    for answer, graded in zip(manifest, scores[SCORER], strict=True):
        record = answer["metadata"]
        line = found.setdefault(
            answer["index"],
            {"index": answer["index"], "id": record.get("id", ""), "category": answer["category"]}
            | {"answer": record["answer"], "right": [], "tokens": [], "truncated": 0, "ungraded": 0},
        )
        line["right"].append(int(graded["values"][ACCURACY]))
        line["tokens"].append(answer["tokens"])
        line["truncated"] += answer["truncated"]
        line["ungraded"] += int(graded["values"][UNGRADED])
    return [line | {ACCURACY: fmean(line["right"])} for line in found.values()]


def summary(manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """`answers`: all in per cent but the tokens; `lines`: the same for people."""
    questions, answers = by_question(manifest, scores), len(manifest)
    samples = len(questions[0]["right"])
    at = sorted({2**power for power in range(samples.bit_length())} | {samples})
    found = {
        "samples": samples,
        f"avg@{samples}": PERCENT * fmean(one[ACCURACY] for one in questions),
        "standard_error": PERCENT * standard_error([one[ACCURACY] for one in questions]),
        **{f"pass@{k}": PERCENT * fmean(pass_at(samples, sum(one["right"]), k) for one in questions) for k in at},
        "truncated": PERCENT * sum(one["truncated"] for one in questions) / answers,
        "ungraded": PERCENT * sum(one["ungraded"] for one in questions) / answers,
        "tokens": sum(sum(one["tokens"]) for one in questions) / answers,
    }
    too_long = sum(not any(one["tokens"]) for one in questions)
    found["too_long"] = PERCENT * too_long / len(questions)
    mean, error = found[f"avg@{samples}"], found["standard_error"]
    lost = f"{found['truncated']:.1f} % cut off, {found['ungraded']:.1f} % without a verdict, which count as wrong"
    lines = [
        f"avg@{samples} {mean:.1f} ± {error:.1f} % (standard error over questions)",
        ", ".join(f"pass@{k} {found[f'pass@{k}']:.1f} %" for k in at),
        f"{found['tokens']:.0f} tokens an answer; {lost}",
    ]
    if too_long:
        lines.append(f"{too_long} of {len(questions)} questions are too long for the model: not asked, and wrong")
    return {"answers": found, "lines": lines}


def publish(folder: Path, manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> None:
    """`questions.jsonl`: the lines of `by_question`."""
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in by_question(manifest, scores))
    write_atomically(folder / QUESTIONS, "".join(lines))
