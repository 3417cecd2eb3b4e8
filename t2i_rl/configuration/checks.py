"""Settings that are right each for itself and wrong together: refused when a run is put together, in one sentence."""

from __future__ import annotations  # with TYPE_CHECKING: the command line asks before torch is imported

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.registry import answers_in_text
from rewards.http.patience import Patience
from rewards.registry import parse
from t2i_rl.configuration.answer_checks import check_samples
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.method_checks import check_method
from t2i_rl.errors import UserError
from t2i_rl.parallel.settings import check_groups
from t2i_rl.prompts.reading import SHAPES_SPLITS, check_words
from t2i_rl.prompts.sets import NAMES

if TYPE_CHECKING:
    from t2i_rl.methods.method import Method
    from t2i_rl.prompts.prompt import Prompt


OF_PHOTOGRAPHS = ("geneval", "hpsv2", "pickscore", "imagereward", "clipscore", "aesthetic")  # how their names begin
SHAPES = {"prompts": "shapes:train", "heldout": "shapes:heldout"}
OF_GENEVAL = {"prompts": "geneval-train", "heldout": "geneval-heldout"}
OF_ANY = {"prompts": "t2i-r1-train", "heldout": "t2i-r1-heldout"}


def check_settings(config: TrainConfig, method: Method) -> None:
    """Raise UserError for what contradicts itself or would have no effect, RewardError for an unknown reward."""
    _check_rewards(config, method)
    _check_prompts(config)
    if (answers := answers_in_text(config.model)) is not None:
        check_samples(config, method, answers)
    check_method(config, method)
    sampling, update = config.rollout.sampling, config.update
    cut = sampling.top_k > 0 or sampling.top_p < 1
    if method.objective.kl == "full" and update.log_prob == "cfg" and cut:
        raise UserError(
            f"method {method.name}: the exact KL is infinite where top-k or top-p cut tokens off: "
            "set update.log-prob to cond, or switch both off"
        )
    if update.log_prob == "cond" and not update.unconditional_gradient:
        raise UserError("update.unconditional-gradient has no effect in log-prob mode cond: set update.log-prob to cfg")
    if config.lora.targets and not config.lora.rank:
        raise UserError("lora.targets has no effect without adapters: set lora.rank")
    if config.trainable and config.lora.rank:
        raise UserError("trainable has no effect on a run with adapters, for they are all it trains: leave one out")
    if update.mini_batches > config.rollout.prompts_per_step:
        raise UserError(
            f"update.mini-batches is {update.mini_batches}, more than the {config.rollout.prompts_per_step} prompts of "
            "a step: groups are never split"
        )
    check_words(config.rollout.sampling.negative_prompt, "negative-prompt")


def check_shares(config: TrainConfig, processes: int) -> None:
    """Raise UserError where a process would have no group of a step, or all of them one GPU."""
    if processes > 1 and ":" in config.device:
        raise UserError(
            f"device is {config.device}, which is one GPU, and there are {processes} processes: leave it out, and "
            "each takes its own"
        )
    check_groups(config.rollout.prompts_per_step, processes)


def _check_rewards(config: TrainConfig, method: Method) -> None:
    terms, weights = parse(config.reward), config.reward_weights
    heldout = parse(config.evaluation.reward or config.reward)
    if comparing := next((term.name for term in heldout if term.entry.comparing), None):
        raise UserError(
            f"{comparing} compares the images of a group, and held-out images are none: name another reward for them, "
            "--evaluation.reward"
        )
    own = {term.name: term.weight for term in terms if term.weight is not None}
    normalized = config.reward_order == "normalize-then-sum"
    if own and weights and "total" not in weights and not (normalized and own == weights):
        raise UserError(
            f"reward gives weights ({config.reward}) and so does reward-weights, which leaves them without effect: "
            "keep one of the two"
        )
    given = weights or {term.name: 1.0 if term.weight is None else term.weight for term in terms}
    if not any(given.values()):
        raise UserError(
            "all weights of the reward are 0, so every image earns the same and nothing is learned: set one"
        )
    if method.entropy_reward is not None and len(terms) > 1:
        raise UserError(
            f"method {method.name} has an entropy reward, for the best images of one verifiable reward, and a sum of "
            "rewards hardly has equals: choose one reward, or set entropy_reward=none in the method"
        )
    if normalized and not config.part_weights:
        raise UserError(
            "reward-order is normalize-then-sum, of nothing: give several rewards, or name the parts in reward-weights"
        )
    if normalized and (method.scale != "group" or method.entropy_reward is not None):
        raise UserError(
            f"method {method.name} cannot normalize several rewards: that needs the scale group and no entropy "
            "reward; set reward-order to sum-then-normalize"
        )
    if config.reward_server != Patience() and not any(term.addresses for term in terms):
        raise UserError(
            "reward-server has no effect on a reward in this process: name its servers, as in NAME@http://HOST:PORT"
        )


def _check_prompts(config: TrainConfig) -> None:
    """The shapes world and its reward belong together; other rewards know photographs, and their prompts are of those.

    A file of prompts can be of either; `check_records` looks into it.
    """
    for flag, prompts, reward in (
        ("prompts", config.prompts, config.reward),
        ("heldout", config.heldout, config.evaluation.reward or config.reward),
    ):
        for name in (term.name for term in parse(reward)):
            if name.startswith("shapes") and prompts in NAMES:
                raise UserError(
                    f"{flag} is {prompts}, but the reward {name} sees coloured shapes alone: "
                    f"name prompts of theirs, --{flag} {SHAPES[flag]}, or another reward, such as --reward geneval"
                )
            if name.startswith(OF_PHOTOGRAPHS) and prompts in SHAPES_SPLITS:
                fitting = OF_GENEVAL if name.startswith("geneval") else OF_ANY
                raise UserError(
                    f"{flag} is {prompts}, but the reward {name} knows no coloured shapes: "
                    f"name other prompts, such as --{flag} {fitting[flag]}, or --reward shapes"
                )


def check_records(reward: str, prompts: Sequence[Prompt]) -> None:
    """Raise RewardError for a prompt that GenEval's rules could not judge, before their networks are fetched."""
    for known in filter(None, (term.entry.classes() for term in parse(reward))):
        from rewards.geneval.reward import check_metadata

        for prompt in prompts:
            check_metadata(prompt.text, prompt.metadata, known)
