"""What every benchmark of `t2i-rl eval` asks for, and what it makes of that: its prompts and its scorers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rewards.registry import parse as terms
from t2i_rl.commands.arguments import Drawing
from t2i_rl.configuration.config import RewardSpecification
from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from eval.benchmark import Benchmark, Scorer
    from eval.compbench.benchmark import Models
    from eval.description import Description

Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclass(frozen=True, kw_only=True)
class Evaluating(Drawing):
    """What all benchmarks ask for.

    Attributes:
        out: folder of the images, `manifest.jsonl`, `scores` and `summary.json`; run again, it continues there.
        resume: only continue: an error where nothing was begun in --out.
        images_per_prompt: as many as the benchmark draws, if not given.
        batch: images drawn and judged together, whole prompts; the last digits of a score may depend on it.
        generate_only: draw the images and stop; the same command without it judges them.
        from_images: judge the images of this folder, in our layout or the official tools'; no model is loaded.
        official_layout: lay the images out as the benchmark's official tools read them.
        missing_as_zero: with --from-images, an image that is missing scores 0 and is listed, else it is an error.
    """

    out: Path
    resume: bool = False
    images_per_prompt: Number = None
    batch: int = 64
    generate_only: bool = False
    from_images: Folder = None
    official_layout: bool = False
    missing_as_zero: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generate_only and self.from_images:
            raise UserError("--generate-only draws images and --from-images takes those of a folder: use one of them")
        if self.missing_as_zero and not self.from_images:
            raise UserError("--missing-as-zero is for --from-images: images that are drawn here are all there")
        for name in ("images_per_prompt", "batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it has to be at least 1")

    def benchmark(self) -> Benchmark:
        raise NotImplementedError

    def scorers(self) -> Mapping[str, Scorer]:
        raise NotImplementedError

    @property
    def own_number(self) -> dict[str, int]:
        """The number of images where one is given, to be passed on."""
        return {} if self.images_per_prompt is None else {"images_per_prompt": self.images_per_prompt}


@dataclass(frozen=True, kw_only=True)
class EvalGenEval(Evaluating):
    """The GenEval benchmark: six tags and their mean. Run again, it continues where it was.

    Attributes:
        prompts: GenEval records: geneval, shapes:heldout or a .jsonl file; if not given, geneval, but what `tiny`
            draws are shapes:heldout.
        reward: the detector and its rules; if not given, shapes-official where all objects are shapes.
    """

    prompts: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    reward: RewardSpecification | None = None
    out: Path = Path("runs/geneval")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward and (len(found := terms(self.reward)) > 1 or found[0].weight is not None):
            raise UserError(f"GenEval is judged by one reward, not by the sum {self.reward!r}: name one alone")

    def benchmark(self) -> Benchmark:
        from eval import geneval
        from t2i_rl.prompts.reading import load_prompts

        drawn_by_tiny = self.model == "tiny" and not self.from_images
        source = self.prompts or ("shapes:heldout" if drawn_by_tiny else "geneval")
        return geneval.benchmark(load_prompts(source), **self.own_number)

    def scorers(self) -> Mapping[str, Scorer]:
        from eval import geneval
        from rewards.registry import build
        from t2i_rl.prompts.shapes_world import SHAPES

        asked = [entry["class"] for prompt in self.benchmark().prompts for entry in prompt.metadata["include"]]
        default = "shapes-official" if set(asked) <= set(SHAPES) else "geneval-official"
        return {geneval.SCORER: geneval.GenEvalScorer(build(self.reward or default, self.device))}


@dataclass(frozen=True, kw_only=True)
class EvalCompBench(Evaluating):
    """T2I-CompBench++: eight categories, a figure each. Run again, it continues where it was.

    Attributes:
        categories: those to draw and judge.
        prompts: folder of color_val.txt and so on; if not given, that of `t2i-rl data get t2i-compbench`.
        detector: for spatial and complex: the address of a UniDet server, or owlv2[:SOURCE], a substitute whose
            scores are not comparable.
        detector_r50: the same for 3d_spatial and numeracy, which have another UniDet.
        blip: folder or hub repository of BLIP VQA, for color, shape, texture and complex.
        clip: folder or hub repository of CLIP ViT-B/32, for non_spatial and complex.
        depth: folder or hub repository of DPT, for 3d_spatial.
        fixed: mend the released code's bugs; figures are then not comparable.
    """

    categories: tuple[str, ...] = (
        "color",
        "shape",
        "texture",
        "spatial",
        "non_spatial",
        "complex",
        "3d_spatial",
        "numeracy",
    )
    prompts: Folder = None
    detector: str = "http://127.0.0.1:8110"
    detector_r50: str = "http://127.0.0.1:8111"
    blip: str = "Salesforce/blip-vqa-capfilt-large"
    clip: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    depth: str = "Intel/dpt-hybrid-midas"
    fixed: bool = False
    out: Path = Path("runs/t2i-compbench")

    def benchmark(self) -> Benchmark:
        from eval.compbench import benchmark as compbench

        notes = compbench.notes_of(self._models(), self.categories)
        return compbench.benchmark(self.prompts, self.categories, fixed=self.fixed, notes=notes, **self.own_number)

    def scorers(self) -> Mapping[str, Scorer]:
        from eval.compbench import benchmark as compbench

        return {compbench.NAME: compbench.scorer(self._models(), self.categories, self.prompts, self.fixed)}

    def _models(self) -> Models:
        from eval.compbench.benchmark import Models

        return Models(self.detector, self.detector_r50, self.blip, self.clip, self.depth, self.device)


@dataclass(frozen=True, kw_only=True)
class Preferring(Evaluating):
    """What benchmarks of preference ask for.

    Attributes:
        scorers_named: rewards by name, each a figure of its own (NAME@http://HOST:PORT is served elsewhere); if not
            given, every reward of preference that is installed.
    """

    scorers_named: Annotated[tuple[str, ...], tyro.conf.arg(name="scorers", metavar="NAME ...")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for specification in self.scorers_named:
            if len(found := terms(specification)) > 1 or found[0].weight is not None:
                raise UserError(f"every scorer is a figure of its own, but {specification!r} is a sum: name them apart")

    @property
    def names(self) -> dict[str, str]:
        """The specification of every scorer by its name. Raises UserError without any."""
        from eval.preferences import SCORERS, installed

        wanted = self.scorers_named or installed()
        if not wanted:
            raise UserError(f"none of the rewards {', '.join(SCORERS)} is installed: name others with --scorers")
        return {terms(specification)[0].name: specification for specification in wanted}

    def scorers(self) -> Mapping[str, Scorer]:
        return build_scorers(self.names, self.device)


@dataclass(frozen=True, kw_only=True)
class EvalDrawBench(Preferring):
    """DrawBench: 200 prompts, the mean of every scorer, over all and by category.

    Attributes:
        prompts: a .csv file with the columns Prompts and Category, or a .jsonl file.
    """

    prompts: str = "drawbench"
    out: Path = Path("runs/drawbench")

    def benchmark(self) -> Benchmark:
        from eval import drawbench

        return drawbench.benchmark(self.prompts, list(self.names), **self.own_number)


@dataclass(frozen=True, kw_only=True)
class EvalHps(Preferring):
    """The HPSv2 benchmark: 3,200 prompts of four styles, the mean of every scorer, over all and by style.

    Attributes:
        prompts: folder of anime.json and so on; if not given, that of `t2i-rl data get hps`.
    """

    prompts: Folder = None
    out: Path = Path("runs/hps")

    def benchmark(self) -> Benchmark:
        from eval import hps

        return hps.benchmark(self.prompts, list(self.names), **self.own_number)


@dataclass(frozen=True, kw_only=True)
class EvalFile(Evaluating):
    """A benchmark that a TOML file describes (docs/add-a-benchmark.md)."""

    file: tyro.conf.Suppress[Path] = Path("benchmark.toml")
    out: Path = Path("runs/benchmark")

    @cached_property
    def description(self) -> Description:
        from eval.description import read

        return read(self.file, self.images_per_prompt)

    def benchmark(self) -> Benchmark:
        return self.description.benchmark

    def scorers(self) -> Mapping[str, Scorer]:
        named = build_scorers({terms(one)[0].name: one for one in self.description.scorers}, self.device)
        if not self.description.questions:
            return named
        from eval.description import QUESTIONS
        from eval.questions import VARIABLE, QuestionScorer
        from rewards.judges.endpoint import Endpoint

        asked = QuestionScorer(self.description.questions, Endpoint.from_environment(VARIABLE))
        return {**named, QUESTIONS: asked}


@dataclass(frozen=True, kw_only=True)
class EvalAll(EvalCompBench, EvalHps):
    """Several benchmarks one after the other, each in its own folder of --out, with the settings that each has alone.

    Attributes:
        benchmarks: which, in this order.
        prompts: folder of geneval.jsonl, drawbench.csv, t2i-compbench/ and hps/; if not given, those of `t2i-rl data`.
        reward: GenEval's.
        from_images: folder with one folder of images for each benchmark, by its name.
    """

    benchmarks: tuple[str, ...] = ("geneval", "t2i-compbench", "drawbench", "hps")
    prompts: Folder = None
    reward: RewardSpecification | None = None
    out: Path = Path("runs/eval")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.benchmarks:
            if name not in SINGLE:
                raise UserError(f"there is no benchmark {name!r}: choose among {', '.join(SINGLE)}")

    def each(self) -> list[Evaluating]:
        """The single commands that this one stands for."""
        files = {"geneval": "geneval.jsonl", "drawbench": "drawbench.csv"}
        found = []
        for name in self.benchmarks:
            kind = SINGLE[name]
            shared = {one.name: getattr(self, one.name) for one in fields(kind) if one.init and hasattr(self, one.name)}
            del shared["prompts"]
            if self.prompts:
                place = self.prompts / files.get(name, name)
                shared["prompts"] = str(place) if name in files else place
            if self.from_images:
                shared["from_images"] = self.from_images / name
            found.append(kind(**(shared | {"out": self.out / name})))
        return found


SINGLE: dict[str, type[Evaluating]] = {
    "geneval": EvalGenEval,
    "t2i-compbench": EvalCompBench,
    "drawbench": EvalDrawBench,
    "hps": EvalHps,
}
BENCHMARKS: dict[str, type[Evaluating]] = {**SINGLE, "all": EvalAll}


def build_scorers(specifications: Mapping[str, str], device: str) -> dict[str, Scorer]:
    """Rewards as scorers, by name. Raises RewardError."""
    from eval.benchmark import RewardScorer
    from rewards.registry import build

    for name, specification in specifications.items():
        if any(term.entry.comparing for term in terms(specification)):
            raise UserError(f"{name!r} compares the images of one call, so its scores are no figure: leave it out")
    return {name: RewardScorer(build(specification, device)) for name, specification in specifications.items()}
