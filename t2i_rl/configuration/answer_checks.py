"""What goes with a model that answers in text, and what with one that draws: refused before anything is loaded."""

from __future__ import annotations  # with TYPE_CHECKING: the command line asks before torch is imported

from typing import TYPE_CHECKING

from rewards.catalogue import REWARDS
from rewards.registry import parse
from t2i_rl.configuration.asking import DEFAULT_CONTRAST
from t2i_rl.configuration.config import NULL, QuestionConfig, TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.prompts.contrasts import ANY_TEXT
from t2i_rl.prompts.contrasts import CONTRASTS as NEGATIVES
from t2i_rl.prompts.reading import QUESTION_SPLITS, SHAPES_SPLITS, check_words
from t2i_rl.rollout.names import CONTRASTS

if TYPE_CHECKING:
    from t2i_rl.methods.method import Method


def check_samples(config: TrainConfig, method: Method, answers: bool) -> None:
    """Raise UserError for what does not go with a model that answers in text or, if not `answers`, that draws."""
    wanted, said = ("answers", "answers in text") if answers else ("pictures", "draws pictures")
    for flag, reward in (("reward", config.reward), ("evaluation.reward", config.evaluation.reward)):
        for term in parse(reward) if reward else ():
            if term.entry.scores != wanted:
                fitting = ", ".join(name for name, entry in REWARDS.items() if entry.scores == wanted)
                raise UserError(
                    f"{flag} is {term.name}, which scores {term.entry.scores}, and the model {config.model} {said}: "
                    f"choose one of {fitting}"
                )
    splits = SHAPES_SPLITS if answers else QUESTION_SPLITS
    for flag, prompts in (("prompts", config.prompts), ("heldout", config.heldout)):
        if prompts in splits:
            there = list(QUESTION_SPLITS if answers else SHAPES_SPLITS)[flag == "heldout"]
            raise UserError(
                f"{flag} is {prompts}, and the model {config.model} {said}: name others, such as --{flag} {there}"
            )
    if config.contrast is not None and not CONTRASTS & {*method.credit.statistics}:
        raise UserError(f"contrast has no effect: method {method.name} does not compare the prompt with another one")
    _check_answers(config, method) if answers else _check_pictures(config)


def _check_answers(config: TrainConfig, method: Method) -> None:
    contrast, sampling = config.contrast or DEFAULT_CONTRAST, config.rollout.sampling
    if contrast not in NEGATIVES and not contrast.startswith(ANY_TEXT):
        raise UserError(
            f"contrast is {contrast!r}, no negative prompt of a model that answers in text: choose "
            f"{', '.join(NEGATIVES)} or {ANY_TEXT}..."
        )
    if method.credit.places or method.objective.unit in ("row", "scale"):
        raise UserError(
            f"method {method.name} looks at places of a picture, and the model {config.model} answers in text, where "
            "answers differ in length: choose cfg, dapo, vppo or another that looks at tokens alone"
        )
    for where, used in (("rollout", sampling), ("evaluation", config.evaluation.sampling)):
        if used.guidance_scale not in (None, 1):
            raise UserError(
                f"{where}.sampling.guidance-scale is {used.guidance_scale:g}, and answers in text have no guidance: "
                "leave it out"
            )
        if used.negative_prompt:
            raise UserError(
                f"{where}: a negative prompt is of guidance, which answers in text have not: say --contrast instead"
            )
    if config.update.log_prob == "cfg":
        raise UserError("update.log-prob cfg is of guidance, which answers in text have not: leave it out")


def _check_pictures(config: TrainConfig) -> None:
    contrast = config.contrast
    if contrast is not None and contrast != NULL and not contrast.startswith(ANY_TEXT):
        raise UserError(
            f"contrast is {contrast!r}, and the model {config.model} draws pictures: choose {NULL}, its unconditional "
            f"branch, or {ANY_TEXT}WORDS"
        )
    check_words((contrast or "").removeprefix(ANY_TEXT), "contrast")
    if config.question != QuestionConfig():
        raise UserError(
            f"question settings have no effect: the model {config.model} draws pictures, and is asked the prompts as "
            "they are"
        )
