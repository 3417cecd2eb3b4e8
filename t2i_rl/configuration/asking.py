"""How a run asks its policy, by its settings; without torch."""

from t2i_rl.configuration.config import NULL, TrainConfig
from t2i_rl.methods.method import Method
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.contrasts import ANY_TEXT
from t2i_rl.rollout.names import CONTRASTS

DEFAULT_CONTRAST = "wrong-answer"  # of a model that answers in text: the best of arXiv:2605.29198, table 4


def asking_of(config: TrainConfig, method: Method, answers: bool) -> Asking:
    """How prompts become questions, and what the second branch is asked.

    answers: whether the policy answers in text. Then the second branch is the contrast, where the method measures one;
    of a model that draws it is what guidance leads away from.
    """
    if not answers:
        words = config.rollout.sampling.negative_prompt
        return Asking(against=ANY_TEXT + words if words else "")
    measured = CONTRASTS & {*method.credit.statistics}
    against = (config.contrast or DEFAULT_CONTRAST) if measured else ""
    return Asking(config.question.instruction, against, config.question.pictures, config.seed)


def contrast_prompt(contrast: str | None) -> str | None:
    """What a model that draws is asked for its contrast, "" being its unconditional branch; None: the second branch."""
    if contrast is None:
        return None
    return "" if contrast == NULL else contrast.removeprefix(ANY_TEXT)
