"""`t2i-rl heatmap`: the token maps of a prompt's images, or of what a training step saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from t2i_rl.commands.arguments import Drawing, parse
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.prompts.reading import check_words
from t2i_rl.training.run_folder import ModelName

if TYPE_CHECKING:
    from models.policy import Policy
    from t2i_rl.pictures.answer_maps import Answer, AnswerMaps
    from t2i_rl.rollout.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Heatmap(Drawing):
    """What every token map looks like on a group of images, as PNG, HTML and npz; or answers, word by word.

    With --from-run it is a group that a training step saw, sampled again from the weights of the step before; then
    everything but --step, --row, --maps, --device and --out is the run's.

    Attributes:
        prompt: what the images show, or the question; needed but with --from-run.
        image: files of the pictures that a question is about, in the order of its marks <image>; one without marks has
            them in front.
        instruction: how to answer, behind the question.
        contrast: of a model that answers in text: the negative prompt that it is compared with.
        max_tokens: of an answer.
        group_size: images of the prompt; similarity compares them.
        reference: a second checkpoint of the model, such as what it began with: what that draws from the same noise
            stands beside, and the divergence from it.
        method: whose updated tokens and credit are shown; if not given, critical, of answers cfg-text.
        from_run: a run folder, instead of a prompt and a model.
        step: of the run, from 1.
        row: which of the groups that the step was trained on, from 0.
        maps: those that are shown, in this order, by their names in maps.npz; all if not given.
        out: folder of the three files; it must not hold anything.
    """

    draws: ClassVar[bool] = False

    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")] = ""
    image: tuple[Path, ...] = ()
    instruction: str = ""
    contrast: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    max_tokens: int = 2048
    group_size: int = 4
    reference: ModelName | None = None
    method: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    from_run: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    step: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    row: int = 0
    maps: tuple[str, ...] = ()
    out: Path = Path("runs/heatmap")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is not None:
            find_method(self.method)
        if self.from_run is None:
            if not self.prompt:
                raise UserError("the prompt is missing: say what the images show, or name a run with --from-run")
            check_words(self.prompt, "the prompt")
            if self.step is not None or self.row:
                raise UserError("--step and --row are of a run: name it with --from-run")
            return
        if self.step is None:
            raise UserError("--from-run needs a --step: which one of the run is to be shown")
        own = {"from_run", "step", "row", "maps", "device", "out"}
        for field in fields(self):
            if field.name not in own and getattr(self, field.name) != field.default:
                name = "a prompt" if field.name == "prompt" else "--" + field.name.replace("_", "-")
                raise UserError(f"{name} does not go with --from-run: the run has its own")


def heatmap(arguments: Sequence[str]) -> None:
    """draw the token maps of a prompt's images, or of a training step"""
    wanted = parse(Heatmap, arguments, "heatmap")
    from t2i_rl.outputs import check_free, free_or_next

    out = free_or_next(wanted.out, Heatmap.out)
    check_free(out)
    from t2i_rl.pictures.answer_maps import AnswerMaps
    from t2i_rl.pictures.heatmap_files import save
    from t2i_rl.pictures.heatmaps import LOOKS, token_maps

    if unknown := [name for name in wanted.maps if name not in LOOKS]:
        raise UserError(f"there is no map {unknown[0]!r}: choose from {', '.join(LOOKS)}")
    if wanted.from_run is not None and wanted.step is not None:
        from t2i_rl.reports.revisit import Seen, seen_maps

        found = seen_maps(Seen(wanted.from_run, wanted.step, wanted.row, wanted.device))
    else:
        policy, sampling = wanted.load()
        if policy.stop_tokens:
            _save_answers(_answers(wanted, policy, sampling), wanted.maps, out)
            return
        if wanted.image or wanted.instruction or wanted.contrast:
            raise UserError(f"{wanted.model} draws pictures, and --image, --instruction, --contrast are of questions")
        reference = wanted.policy(wanted.reference) if wanted.reference else None
        source = wanted.model + (f" against {wanted.reference}" if wanted.reference else "")
        method = None if wanted.method is None else find_method(wanted.method)
        found = token_maps(policy, wanted.prompt, wanted.group_size, sampling, wanted.seed, reference, method, source)
    if isinstance(found, AnswerMaps):
        _save_answers(found, wanted.maps, out)
        return
    save(found.only(wanted.maps) if wanted.maps else found, out)
    print(f"{out}: see heatmap.png, heatmap.html and maps.npz")


def _answers(wanted: Heatmap, policy: Policy, sampling: Sampling) -> AnswerMaps:
    """The words of a group of answers."""
    if wanted.reference:
        raise UserError("--reference is of models that draw: leave it out")
    from t2i_rl.commands.questions import asking, question
    from t2i_rl.configuration.asking import DEFAULT_CONTRAST
    from t2i_rl.pictures.answer_maps import answer_maps

    method = find_method(wanted.method or "cfg-text")
    if method.credit.places:
        raise UserError(f"method {method.name} looks at places of a picture: choose another for answers, such as cfg")
    prompt = question(wanted.prompt, wanted.image)
    asked = asking(policy, [prompt], sampling, wanted.instruction, wanted.contrast or DEFAULT_CONTRAST, wanted.seed)
    return answer_maps(
        policy, prompt, asked, wanted.group_size, sampling, wanted.seed, method, wanted.max_tokens, wanted.model
    )


def _save_answers(found: AnswerMaps, maps: Sequence[str], out: Path) -> None:
    from t2i_rl.pictures.answer_files import save

    if maps:
        answers = [replace(one, maps={name: _map(one, name) for name in maps}) for one in found.answers]
        found = replace(found, answers=tuple(answers))
    save(found, out)
    print(f"{out}: see heatmap.png, heatmap.html and answers.json")


def _map(answer: Answer, name: str) -> Any:
    if name not in answer.maps:
        raise UserError(f"there is no map {name!r} of answers: choose from {', '.join(answer.maps)}")
    return answer.maps[name]
