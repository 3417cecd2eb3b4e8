"""What a prompt may say: anything but a model's control tokens.

Prompts are tokenized together with the template around them, so such a token would be obeyed: another begin of an
image, another speaker, an early end. The released code lets it; we refuse it by name.
"""

import re
from collections.abc import Sequence

from models.policy import Policy, ReadsQuestions
from t2i_rl.errors import UserError
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import check_questions


def question_lengths(policy: Policy, prompts: Sequence[Prompt], asking: Asking) -> list[int]:
    """The tokens of each question with its pictures, which are not decoded for that.

    Raises UserError, with its place, for one whose marks do not fit its pictures, and for one of these that is gone or
    is torn.
    """
    check_questions(prompts)
    asked = map(asking.outline, prompts)
    return [policy.question_tokens(one) if isinstance(policy, ReadsQuestions) else 0 for one in asked]


def longest_question(policy: Policy) -> int:
    """How many tokens of a question leave a place for an answer."""
    return policy.layout.tokens - 1


def check_asked(policy: Policy, prompts: Sequence[Prompt], asking: Asking, what: str) -> None:
    """Raise UserError, as `question_lengths` does, and for a question that leaves no place for an answer."""
    for prompt, length in zip(prompts, question_lengths(policy, prompts, asking), strict=True):
        if length > longest_question(policy):
            raise UserError(
                f"{prompt.origin or what} has {length} tokens with its pictures, and the model has no more than "
                f"{policy.layout.tokens} places, those of the answer among them: shorten it, or show smaller pictures"
            )


def short_enough(policy: Policy, prompts: Sequence[Prompt], asking: Asking, most: int) -> list[Prompt]:
    """The questions of at most so many tokens that leave a place for an answer.

    Raises UserError, as `question_lengths` does, and where none is left.
    """
    most, lengths = min(most, longest_question(policy)), question_lengths(policy, prompts, asking)
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= most]
    if not kept:
        raise UserError(
            f"every training question has more than {most} tokens with its pictures, the shortest {min(lengths)}: "
            "shorten them, show smaller pictures, or raise question.max-prompt-tokens where the model has more places"
        )
    return kept


def check_prompts(policy: Policy, prompts: Sequence[Prompt]) -> None:
    """Raise UserError, with its place, for a prompt that holds a control token in any case."""
    marked = [prompt for prompt in prompts if "<" in prompt.text]  # few, if any: only they need the tokenizer
    if not marked:
        return
    # The empty alternative of a model without any matches nothing but emptiness.
    token = re.compile("|".join(map(re.escape, policy.control_tokens)), re.IGNORECASE)
    for prompt in marked:
        if (found := token.search(prompt.text)) and found.group():
            where = prompt.origin or f"the prompt {prompt.text!r}"
            raise UserError(f"{where} holds {found.group()}, a control token of the model: take it out")
