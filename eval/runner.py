"""Running a benchmark: get its images, let the scorers judge them, report. Interrupted, it continues where it was.

The prompts are cut into blocks of `batch` images, which are drawn and judged together: what stands beside an image in a
batch moves the last digits of its score, and in low precision its tokens, so that is always the same. Several processes
share the blocks as torchrun starts them (RANK and WORLD_SIZE), without talking to each other; whoever finds everything
done writes the summary. So no number depends on how many they were, or on where a killed one stopped.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from eval.benchmark import Benchmark, Scorer, counts, figures
from eval.images import Source, is_missing, read_sample
from eval.records.manifest import (
    MANIFEST,
    SCORES,
    SUMMARY,
    Block,
    Key,
    Ledger,
    Row,
    Shard,
    as_json,
    begin,
    digest,
)
from eval.records.progress import Stages, display
from eval.records.provenance import scorer_weights, versions
from rewards.cut import sentence
from t2i_rl.errors import UserError
from t2i_rl.outputs import naming, write_atomically
from t2i_rl.prompts.prompt import prompts_digest
from t2i_rl.rollout.generate import check_counts
from t2i_rl.training.evaluation import chunks


def run(
    benchmark: Benchmark,
    source: Source,
    scorers: Mapping[str, Scorer],
    folder: Path,
    shard: Shard | None = None,
    batch: int = 64,
    made_of: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Get the images, judge them and write the summary, which is returned.

    made_of: what tells the scorers' weights from others, as far as that is known once they have been asked to `check`.

    None while other processes are still at work, and without scorers, which only gets the images. Raises UserError
    for a folder of another evaluation or an image that is missing, RewardError for what cannot be judged.
    """
    shard = shard or Shard()
    check_counts(benchmark.images_per_prompt, batch)
    cuts = [*source.cut(benchmark), *chain(*(scorer.check(benchmark.prompts) or () for scorer in scorers.values()))]
    for cut in cuts if shard.rank == 0 else ():
        print(sentence(cut, len(benchmark.prompts), "prompts"), flush=True)
    weights = digest(sorted((made_of or {}).values()))[:12]
    settings = {
        "benchmark": benchmark.name,
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_digest(benchmark.prompts),
        "images_per_prompt": benchmark.images_per_prompt,
        **source.settings(benchmark),
    }
    begin(folder, settings)
    together = max(1, batch // benchmark.images_per_prompt) * benchmark.images_per_prompt  # whole prompts
    blocks = shard.own(list(chunks(benchmark.keys, together)))
    manifest = Ledger(folder / MANIFEST, shard)
    ledgers = {name: Ledger(folder / SCORES / f"{name}.jsonl", shard) for name in scorers}
    for ledger in (manifest, *ledgers.values()):
        ledger.mend()
    with naming(folder), display(shard.rank != 0, benchmark.samples) as stages:
        source.provide(benchmark, folder, blocks, digest(settings)[:12], stages, manifest)
        images = _checked(benchmark, manifest, digest(settings)[:12])
        for name, scorer in scorers.items():
            judge(benchmark, name, scorer, folder, blocks, images, ledgers[name], stages, weights)
    return finish(benchmark, folder, manifest, ledgers, scorers, settings, batch)


def judge(
    benchmark: Benchmark,
    name: str,
    scorer: Scorer,
    folder: Path,
    blocks: Sequence[Block],
    images: Mapping[Key, Row],
    ledger: Ledger,
    stages: Stages,
    weights: str,
) -> None:
    """Enter the judgement of every image that the ledger lacks. Raises UserError for another scorer's lines."""
    held = ledger.rows()
    settings = digest(dict(benchmark.settings))[:12]
    for key in chain(*blocks):
        reason = _another(held[key], scorer.name, settings, weights) if key in held else None
        if reason is not None:
            raise UserError(
                f"{ledger.path} holds scores by {held[key]['scorer']}, now it is {scorer.name}{reason}: remove the "
                "file, or name another folder"
            )
    left = [block for block in blocks if any(key not in held for key in block)]
    advance = stages(f"judging ({name})", sum(map(len, left)))
    for block in left:
        present = [key for key in block if not is_missing(images[key])]
        samples = [read_sample(folder, images[key]) for key in present]
        judged = scorer.score(samples, [benchmark.prompts[index] for index, _ in present]) if present else []
        found = dict(zip(present, judged, strict=True))
        rows = []
        for key in block:
            row: Row = {"index": key[0], "sample": key[1], "scorer": scorer.name, "rules": settings, "weights": weights}
            if key in found:
                row |= {"values": dict(found[key].values), "reason": found[key].reason}
                row |= {"details": dict(found[key].details)} if found[key].details else {}
            else:
                named = {value: 0.0 for metric in benchmark.metrics for value in metric.values}
                row |= {"values": named, "reason": "the image is missing"}
            rows.append(row)
        ledger.append(rows)
        advance(len(block))


def _another(row: Row, scorer: str, rules: str, weights: str) -> str | None:
    """Whether a line is another scorer's: what has to be said beside the two names. Older lines know no weights."""
    if row["scorer"] != scorer:
        return ""
    if row["rules"] != rules:
        return " by other rules"
    return " of other weights or code" if row.get("weights", weights) != weights else None


def finish(
    benchmark: Benchmark,
    folder: Path,
    manifest: Ledger,
    ledgers: Mapping[str, Ledger],
    scorers: Mapping[str, Scorer],
    settings: Mapping[str, Any],
    batch: int,
) -> dict[str, Any] | None:
    """Join what all processes wrote and write the summary; None while something is missing, or there are no scorers."""
    rows = manifest.join(benchmark.keys)
    joined = {name: ledger.join(benchmark.keys) for name, ledger in ledgers.items()}
    scores = {name: lines for name, lines in joined.items() if lines is not None}
    if rows is None or not scores or len(scores) < len(joined):
        return None
    missing = [[row["index"], row["sample"]] for row in rows if is_missing(row)]
    summary = {
        "benchmark": benchmark.name,
        **(benchmark.more(rows, scores) if benchmark.more else {}),
        "metrics": figures(benchmark, rows, scores),
        "samples": benchmark.samples,
        "counts": counts(rows) | {"missing": missing},
        "notes": list(benchmark.notes),
        "settings": dict(settings) | {"rules": dict(benchmark.settings)},
        "batch": batch,
        "scorers": {name: scorer.name for name, scorer in scorers.items()},
        "versions": versions(),
        "scorer_weights": scorer_weights(),
    }
    if benchmark.publish:
        benchmark.publish(folder, rows, scores)
    write_atomically(folder / SUMMARY, as_json(summary))
    return summary


def _checked(benchmark: Benchmark, manifest: Ledger, settings: str) -> dict[Key, Row]:
    """The images, all of this evaluation. Raises UserError for a line of another, or that says another thing."""
    rows = manifest.rows()
    for key in benchmark.keys:
        if key not in rows:
            continue
        if rows[key].get("settings") != settings:
            raise UserError(
                f"{manifest.path} mixes two settings: image {key[1]} of prompt {key[0]} is of another evaluation, so "
                "remove its line, or name another folder"
            )
        asked = benchmark.prompts[key[0]]
        metadata = json.loads(json.dumps(dict(asked.metadata)))  # as a line holds it
        said = {"prompt": asked.text, "category": benchmark.category(key[0]), "metadata": metadata}
        for name, value in said.items():
            if rows[key].get(name) != value:
                raise UserError(
                    f"{manifest.path} says of image {key[1]} of prompt {key[0]} another {name} than it was drawn for: "
                    "remove its line to do it again"
                )
    return rows
