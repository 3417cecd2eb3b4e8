"""A benchmark that is described by one TOML file: a prompt file, scorers by name, figures (docs/add-a-benchmark.md).

name = "wise"
prompts = "wise.jsonl"
scorers = ["judge"]

[metrics.wiscore]
scorer = "judge"
values = { consistency = 0.35, realism = 0.1, aesthetics = 0.05 }
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmark import TOTAL, Benchmark, Metric
from t2i_rl.errors import UserError
from t2i_rl.prompt_sets import NAMES
from t2i_rl.prompts import load_prompts

KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "prompts": str,
    "scorers": list,
    "images_per_prompt": int,
    "category": str,
    "overall": str,
    "metrics": dict,
    "notes": list,
}
NEEDED = ("name", "prompts", "scorers")


@dataclass(frozen=True)
class Description:
    """What a file says: the benchmark, and the specifications of its scorers."""

    benchmark: Benchmark
    scorers: tuple[str, ...]


def read(path: Path, images_per_prompt: int | None = None) -> Description:
    """Read and check a description. Raises UserError that names the file and the key."""
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the benchmark {path} ({error.strerror}): check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is not TOML ({error}): see docs/add-a-benchmark.md") from error
    for key in NEEDED:
        if key not in held:
            raise UserError(f"{path} lacks {key!r}: a benchmark has {', '.join(NEEDED)}")
    for key, value in held.items():
        if key not in KINDS or not isinstance(value, KINDS[key]):
            raise UserError(f"{path}: {key!r} is {value!r}: see docs/add-a-benchmark.md for what a benchmark has")
    overall = held.get("overall", "images")
    if overall not in ("images", "categories"):
        raise UserError(f"{path}: 'overall' is {overall!r}: it is a mean over images or over categories")
    source = held["prompts"] if held["prompts"] in NAMES else str(path.parent / held["prompts"])
    described = Benchmark(
        name=held["name"],
        prompts=tuple(load_prompts(source)),
        images_per_prompt=images_per_prompt or held.get("images_per_prompt", 1),
        metrics=_metrics(held, overall, path),
        category_key=held.get("category", "category"),
        notes=tuple(held.get("notes", ())),
    )
    return Description(described, tuple(held["scorers"]))


def _metrics(held: Mapping[str, Any], overall: Any, path: Path) -> tuple[Metric, ...]:
    names = [specification.partition("@")[0] for specification in held["scorers"]]
    if "metrics" not in held:
        return tuple(Metric(name, name, {TOTAL: 1.0}, overall) for name in names)
    found = []
    for name, told in held["metrics"].items():
        scorer, values = told.get("scorer"), told.get("values", {TOTAL: 1.0})
        numbers = isinstance(values, dict) and all(isinstance(one, int | float) for one in values.values())
        if scorer not in names or not numbers or set(told) - {"scorer", "values"}:
            raise UserError(
                f"{path}: the figure {name!r} is made of {told!r}: give one of the scorers {', '.join(names)}, and "
                "a weight for each of its values"
            )
        found.append(Metric(name, scorer, values, overall))
    return tuple(found)
