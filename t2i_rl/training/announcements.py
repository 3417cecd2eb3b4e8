"""What a run says before it falls silent: what is about to be done, and what a person should know of it."""

from collections.abc import Sequence

from models.device import in_words
from models.registry import answers_in_text
from rewards.registry import anywhere
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.training.evaluation import Evaluation
from t2i_rl.training.trainer import Trainer

LOADING = "loading the reward and the model; weights that are not here are downloaded"


def intended(config: TrainConfig) -> list[str]:
    """What is about to be done, while nothing has been loaded yet."""
    rollout, samples = config.rollout, "answers" if answers_in_text(config.model) else "images"
    return [
        f"on {in_words(config.device)}, {config.dtype}: {config.model} by {config.method}, for {config.reward}",
        f"{config.steps} steps of {rollout.prompts_per_step} prompts x {rollout.group_size} {samples}, "
        f"into {config.out}",
        LOADING,
    ]


def preamble(trainer: Trainer, heldout: Sequence[Prompt]) -> list[str]:
    """What a person should know before the first step."""
    training, judging = trainer.config.rollout.sampling, trainer.config.evaluation.sampling
    lines = [f"guidance {training.guidance_scale:g} in training, {judging.guidance_scale:g} on held-out prompts"]
    if not heldout:
        lines = [
            f"guidance {training.guidance_scale:g}; nothing is held out (evaluation.every is 0), so no step is best"
        ]
    if trainer.limit is not None:
        against = trainer.collector.asking.against
        lines = [f"answers of at most {trainer.limit} tokens" + (f", compared with {against}" if against else "")]
    if trainer.left_out:
        lines.append(
            f"{trainer.left_out:,} of {len(trainer.prompts):,} training questions are left out: they have more tokens "
            f"with their pictures than question.max-prompt-tokens ({trainer.config.question.max_prompt_tokens:,}), or "
            "than the model has places"
        )
    tested, trained = {prompt.key for prompt in heldout}, {prompt.key for prompt in trainer.collector.prompts}
    if shared := len(tested & trained):
        lines.append(
            f"{shared} of {len(tested)} held-out prompts are training prompts too: what is measured on them is no "
            "proof of what was learned"
        )
    return lines


def heldout_score(config: TrainConfig, found: Evaluation, noun: str) -> str:
    """What the held-out score is, which is often not what training maximises. noun: what was judged."""
    judged_by = anywhere(config.evaluation.reward or config.reward)
    what = f"the mean of {judged_by}"
    if found.verdict is not None:
        what = f"the share of strict verdicts of {found.verdict.rpartition('/')[0] or judged_by}"
    tags = f", the mean of {len(found.per_tag)} tags" if len(found.per_tag) > 1 else ""
    return f"held-out score: {what}, on {found.images} {noun}{tags}"
