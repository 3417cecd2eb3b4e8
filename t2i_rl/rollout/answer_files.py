"""Answers as a file: one line for each, in order."""

import json
from collections.abc import Sequence
from pathlib import Path

from models.policy import Policy
from t2i_rl.outputs import whole_folder
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling

ANSWERS = "answers.jsonl"


def write_answers(
    folder: Path,
    policy: Policy,
    prompts: Sequence[Prompt],
    asking: Asking,
    answers_per_prompt: int,
    sampling: Sampling,
    seed: int,
    batch: int,
    max_tokens: int,
) -> None:
    """A new folder with `answers.jsonl`: the question, the number of the answer, the answer, what else is known."""
    with whole_folder(folder) as aside, (aside / ANSWERS).open("w", encoding="utf-8") as file:
        drawn = generate(policy, prompts, answers_per_prompt, sampling, seed, batch, None, max_tokens, asking)
        for one in drawn:
            prompt = prompts[one.prompt]
            known = {**prompt.metadata, "prompt": prompt.text, "sample": one.sample, "seed": seed, "text": one.image}
            file.write(json.dumps(known, ensure_ascii=False, default=str) + "\n")
