"""What a run needs before its first step: prompts, rewards, the model; all that can be refused is refused here."""

from dataclasses import replace
from functools import partial

import torch

from models.device import device_of
from models.files.adapter import is_adapter
from models.files.reading import digest, reading
from models.policy import Policy
from models.registry import answers_in_text, load
from models.trainable import choose_trainable
from rewards.catalogue import Samples
from rewards.cut import sentence
from rewards.files.noted import noted
from rewards.registry import build
from rewards.reward import Reward
from rewards.trial import try_own
from t2i_rl.configuration.asking import asking_of
from t2i_rl.configuration.checks import check_records, check_settings, check_shares
from t2i_rl.configuration.config import TrainConfig, resolved
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.parallel.devices import own_device
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.planning.rollout_batch import with_rollout_batch
from t2i_rl.prompts.contrasts import ANY_TEXT
from t2i_rl.prompts.cut import cut_by
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import pixels
from t2i_rl.rollout.words import check_asked, check_prompts
from t2i_rl.training import checkpoints
from t2i_rl.training.announcements import intended
from t2i_rl.training.origins import Origins, code_of, origin_of
from t2i_rl.training.picture_record import check_pictures
from t2i_rl.training.prompt_record import prompts_of
from t2i_rl.training.trackers import check_tracker
from t2i_rl.training.trainer import Trainer


def prepare(
    config: TrainConfig, source: str, ranks: Ranks, said: str = ""
) -> tuple[Trainer, list[Prompt], dict[str, Reward], Origins]:
    """Everything that can be refused, refused before a file is written; the rewards are the held-out prompts', of which
    the first is the score.

    What takes long comes last, after a word on what is about to be.
    """
    config = with_rollout_batch(replace(config, device=device_of(config.device)))
    device = device_of(own_device(config.device))
    method = run_method(config)
    check_settings(config, method)
    check_shares(config, ranks.world)
    prompts, heldout = prompts_of(config, "prompts"), heldout_of(config)
    judged_by = config.evaluation.reward or config.reward
    check_records(config.reward, prompts)
    for specification in (judged_by, *config.evaluation.also):
        check_records(specification, heldout)
    for name in config.track:
        check_tracker(name)
    if source == config.model and is_adapter(source):
        raise UserError(f"{source} is an adapter: merge it first, with t2i-rl export --model {source} --out FOLDER")
    for line in filter(None, (said, *intended(config))):
        print(line, flush=True)
    samples: Samples = "answers" if answers_in_text(source) else "pictures"
    if samples == "answers":
        check_pictures(config.out, "prompts", prompts)
        check_pictures(config.out, "heldout", heldout)
    with noted() as made_of:
        reward = build(config.reward, device, config.reward_server, samples)
        judge = reward if judged_by == config.reward else build(judged_by, device, config.reward_server, samples)
        others = [name for name in config.evaluation.also if heldout]
        judges = {judged_by: judge} | {name: build(name, device, config.reward_server, samples) for name in others}
        sets = [("training prompts", prompts, reward), *(("held-out prompts", heldout, one) for one in judges.values())]
        found = [one.check([each.text for each in asked], [each.metadata for each in asked]) for _, asked, one in sets]
    dtype, reference = getattr(torch, config.dtype), None
    checkpoints.check_source(config.model)
    policy, model = _policy(config, source, dtype, device)
    check_prompts(policy, [*prompts, *heldout, *_other_words(config)])
    if policy.stop_tokens:
        check_asked(policy, heldout, asking_of(config, method, answers=True), "a held-out question")
    for (which, asked, _), by_scorer in zip(sets, found, strict=True):
        for cut in (*cut_by(policy, config.model, [one.text for one in asked]), *(by_scorer or ())):
            print(sentence(cut, len(asked), which), flush=True)
    tried = {name: (heldout[0], one) for name, one in judges.items() if heldout} | {config.reward: (prompts[0], reward)}
    for specification, (first, one) in tried.items():
        try_own(specification, one, first.text, first.metadata, partial(_picture_size, policy, device))
    # A policy with adapters is its own reference, for it has them still to switch off.
    if method.needs_reference and source != config.model and not config.lora.rank:
        reference = origin_of(config.out, config, device)
    origins = Origins(model, made_of, code_of(config, policy, method))
    origins.check(config.out, config.model)
    config = resolved(config, policy.default_guidance)
    return Trainer(config, policy, method, reward, prompts, reference, ranks), heldout, judges, origins


def _picture_size(policy: Policy, device: str) -> tuple[int, int]:
    """Height and width of what the model draws."""
    with torch.no_grad():
        drawn = pixels(policy, torch.zeros(1, policy.layout.tokens, dtype=torch.long, device=device))
    return drawn.shape[-2], drawn.shape[-1]


def heldout_of(config: TrainConfig) -> list[Prompt]:
    """The held-out prompts; none of a run that is never evaluated."""
    return prompts_of(config, "heldout") if config.evaluation.every else []


def _other_words(config: TrainConfig) -> list[Prompt]:
    """What the model is asked beside its prompts."""
    words = {
        "rollout.sampling.negative-prompt": config.rollout.sampling.negative_prompt,
        "evaluation.sampling.negative-prompt": config.evaluation.sampling.negative_prompt,
        "contrast": (config.contrast or "").removeprefix(ANY_TEXT),
        "question.instruction": config.question.instruction,
    }
    return [Prompt(text, origin=name) for name, text in words.items()]


def _policy(config: TrainConfig, source: str, dtype: torch.dtype, device: str) -> tuple[Policy, str]:
    """The model with what the run trains of it: its own choice, parameters by name, or adapters.

    And what tells the model that the run began with from others, where it is that which was read.
    """
    with reading() as files:
        policy = load(source, dtype, device)
    began = digest(files) if source == config.model else ""
    if config.trainable:
        choose_trainable(policy, config.trainable)
    if config.lora.rank and source == config.model:
        from models.lora import adapt

        lora = config.lora
        policy = adapt(policy, source, lora.rank, lora.alpha, lora.targets, config.seed, began)
    return policy, began
