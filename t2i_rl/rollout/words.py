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


def check_asked(policy: Policy, prompts: Sequence[Prompt], asking: Asking, what: str) -> None:
    """Raise UserError, with its place, for a question that the policy cannot be asked.

    Its marks do not fit its pictures, one of these is gone or cannot be read, or it leaves no place for an answer.
    """
    check_questions(prompts)
    for prompt in prompts:
        length = policy.question_tokens(asking.outline(prompt)) if isinstance(policy, ReadsQuestions) else 0
        if length >= policy.layout.tokens:
            raise UserError(
                f"{prompt.origin or what} has {length} tokens with its pictures, and the model has no more than "
                f"{policy.layout.tokens} places, those of the answer among them: shorten it, or show smaller pictures"
            )


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
