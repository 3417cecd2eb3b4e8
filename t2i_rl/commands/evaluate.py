"""`t2i-rl eval`: a model on a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from models.device import device_of
from models.files.adapter import is_adapter
from models.own import BENCHMARKS as ENTRY_POINTS
from models.own import brought
from models.registry import answers_in_text, family_of
from models.registry import find as find_model
from t2i_rl.commands.arguments import parse
from t2i_rl.commands.benchmarks import BENCHMARKS, EvalAll, EvalFile, Evaluating
from t2i_rl.commands.reasoning import REASONING, EvalReasoning
from t2i_rl.errors import UserError
from t2i_rl.parallel.devices import own_device

if TYPE_CHECKING:
    from eval.benchmark import Benchmark
    from eval.images import Source
    from models.policy import Policy
    from t2i_rl.rollout.sampling import Sampling

    Model = tuple[Policy, Sampling, dict[str, str]]

TOML = ".toml"


def evaluate(arguments: Sequence[str]) -> None:
    """measure a model on a benchmark: geneval, t2i-compbench, drawbench, hps, mathverse, ..., or one of your own"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: t2i-rl eval BENCHMARK [OPTIONS]\n")
        for name, kind in (BENCHMARKS | REASONING).items():
            print(f"  {name:<15}{str(kind.__doc__).partition(chr(10))[0]}")
        print(f"  {'FILE' + TOML:<15}A benchmark of your own (docs/add-a-benchmark.md).")
        print(f"  {'MODULE:CLASS':<15}The same, with code of your own (docs/make-it-yours.md).\n")
        print("See t2i-rl eval BENCHMARK --help")
        return
    chosen = _chosen(arguments)
    if isinstance(chosen, Evaluating) and not chosen.from_images:
        check_draws(chosen.model)  # before what judges is fetched
    chosen = replace(chosen, device=own_device(device_of(chosen.device)))
    each = chosen.each() if isinstance(chosen, EvalAll) else [chosen]
    if chosen.resume and not any((one.out / "settings.json").is_file() for one in each):
        raise UserError(f"no evaluation was begun in {chosen.out}: name its folder with --out, or leave out --resume")
    benchmarks = [one.benchmark() for one in each]  # all can be read, before the first begins
    load = cache(lambda: loaded(chosen))
    for one, benchmark in zip(each, benchmarks, strict=True):
        run(one, benchmark, load)


def check_draws(model: str) -> None:
    """Raise UserError for a model that answers in text, ModelError for one that is not there; no weight is read."""
    if answers_in_text(model):
        raise UserError(f"{model} answers in text, and this draws pictures: choose another (t2i-rl models)")
    entry = find_model(model)
    if entry.family is None and not is_adapter(entry.source):
        family_of(entry.source)


def _chosen(arguments: Sequence[str]) -> Evaluating | EvalReasoning:
    """The benchmark that is named, with its options. Raises UserError."""
    wanted = arguments[0] if arguments else ""
    if wanted in REASONING:
        return parse(REASONING[wanted], arguments[1:], f"eval {wanted}")
    kind = BENCHMARKS.get(wanted) or brought(wanted, ENTRY_POINTS)
    if isinstance(kind, type) and issubclass(kind, Evaluating):
        return parse(kind, arguments[1:], f"eval {wanted}")
    if kind is not None:
        raise UserError(
            f"{wanted} is no benchmark: it has to be a class that extends t2i_rl.commands.benchmarks.Evaluating"
        )
    if wanted.endswith(TOML):
        default = EvalFile(file=Path(wanted), out=Path("runs") / Path(wanted).stem)
        return replace(parse(EvalFile, arguments[1:], f"eval {wanted}", default), file=Path(wanted))
    named = f"there is no benchmark {wanted!r}" if arguments else "no benchmark is named"
    *names, last = [*BENCHMARKS, *REASONING]
    raise UserError(
        f"{named}: use t2i-rl eval geneval --model MODEL; there are {', '.join(names)} and {last}, and {TOML} files or "
        "MODULE:CLASS of your own"
    )


def loaded(wanted: Evaluating | EvalReasoning) -> Model:
    """The model, how it is sampled, and the checksums of its weights."""
    from eval.records.provenance import model_weights

    return *wanted.load(), model_weights(wanted.model)


def run(wanted: Evaluating | EvalReasoning, benchmark: Benchmark, load: Callable[[], Model]) -> None:
    """Evaluate, and show the figures once all processes are done."""
    from eval import runner
    from eval.records.manifest import Shard
    from eval.tables.report import show
    from rewards.files.noted import note_code, noted

    shard = Shard.from_environment()
    with noted() as made_of:
        note_code(type(wanted).__module__)
        scorers = {} if wanted.generate_only else wanted.scorers()
        source = wanted.source(*load()) if isinstance(wanted, EvalReasoning) else images_of(wanted, load)
        summary = runner.run(benchmark, source, scorers, wanted.out, shard, wanted.batch, made_of)
    if summary is not None:
        show(summary)
        print(f"{wanted.out}: see summary.json and manifest.jsonl")
    elif wanted.generate_only:
        print(f"{wanted.out}: process {shard.rank} of {shard.world} has drawn its {benchmark.samples}")
    else:
        print(f"process {shard.rank} of {shard.world} is done: the last one writes {wanted.out}/summary.json")


def images_of(wanted: Evaluating, load: Callable[[], Model]) -> Source:
    """Images to be drawn, or those of a folder."""
    from eval import images

    if wanted.from_images:
        return images.Given(wanted.from_images, wanted.missing_as_zero)
    policy, sampling, weights = load()
    return images.Generation(
        policy=policy,
        sampling=sampling,
        seed=wanted.seed,
        model=wanted.model,
        weights=weights,
        dtype=wanted.dtype,
        official=wanted.official_layout,
    )
