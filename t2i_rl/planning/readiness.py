"""What stands between a command line and its first step: looked for without loading a weight.

Each reason is the sentence with which the run itself would be refused, but for memory: that is arithmetic
(`t2i_rl.planning.plan`), by which a run is warned and a dry run refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from models.device import device_of, in_words, memory_of
from models.errors import ModelError
from models.files.adapter import is_adapter
from models.files.config import read_json
from models.kin import kin
from models.registry import answers_in_text
from models.registry import find as find_model
from rewards.catalogue import REWARDS
from rewards.errors import RewardError
from rewards.registry import parse
from t2i_rl.configuration.checks import check_records, check_shares
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.outputs import check_free
from t2i_rl.parallel.devices import processes
from t2i_rl.planning.plan_config import PlanConfig
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import check_questions
from t2i_rl.prompts.reading import load_prompts


def obstacles(config: TrainConfig) -> list[str]:
    """Why the run would not start; nothing where it would."""
    found = []
    for look in LOOKS:
        try:
            look(config)
        except (UserError, ModelError, RewardError) as error:
            found.append(str(error))
    return found


def _folder(config: TrainConfig) -> None:
    check_free(config.out)


def _shares(config: TrainConfig) -> None:
    check_shares(config, processes())


def _device(config: TrainConfig) -> None:
    device_of(config.device)


def _prompts(config: TrainConfig) -> None:
    _asked(config.reward, config.model, load_prompts(config.prompts))


def _heldout(config: TrainConfig) -> None:
    if config.evaluation.every:
        _asked(config.evaluation.reward or config.reward, config.model, load_prompts(config.heldout))


def _asked(reward: str, model: str, prompts: Sequence[Prompt]) -> None:
    check_records(reward, prompts)
    if answers_in_text(model):
        check_questions(prompts)


def _endpoints(config: TrainConfig) -> None:
    """Rewards that ask a model by HTTP know where it is."""
    asked = parse(config.reward) + (parse(config.evaluation.reward) if config.evaluation.reward else [])
    for term in asked:
        if term.entry.endpoint and not term.addresses:
            from rewards.judges.endpoint import Endpoint

            Endpoint.from_environment(term.entry.endpoint)


def _own_rewards(config: TrainConfig) -> None:
    """Those of one's own, on pictures of noise with the first prompt."""
    names = {config.reward: config.prompts}
    if config.evaluation.every:
        names |= {name: config.heldout for name in (config.evaluation.reward, *config.evaluation.also) if name}
    for name, source in names.items():
        own = [term.name for term in parse(name) if term.name not in REWARDS and not term.addresses]
        if not own:
            continue
        from rewards.registry import build
        from rewards.trial import try_own

        (first, *_) = load_prompts(source)
        for one in own:
            reward = build(one, device_of(config.device), samples=parse(one)[0].entry.scores)
            try_own(one, reward, first.text, first.metadata, lambda: (_side(config.model),) * 2)


def _side(model: str) -> int:
    """Of what the model draws, in pixels: as its config says where it lies here, else 16 by token."""
    entry = find_model(model)
    config = Path(entry.source) / "config.json"
    vision = read_json(config).get("vision_config", {}) if config.is_file() else {}
    return int(vision.get("image_size", 16 * (entry.scales or (24,))[-1]))


def _model(config: TrainConfig) -> None:
    if is_adapter(config.model):
        raise UserError(
            f"{config.model} is an adapter: merge it first, with t2i-rl export --model {config.model} --out FOLDER"
        )


def _adapted_layers(config: TrainConfig) -> None:
    like = kin(config.model)
    if like is not None and config.lora.targets:
        from models.architectures import architecture
        from models.lora import linear_names

        linear_names(architecture(like).layers, config.model, config.lora.targets)


def _memory(config: TrainConfig) -> None:
    said = memory(config)
    if said is not None and not said[1]:
        raise UserError(said[0])


def memory(config: TrainConfig) -> tuple[str, bool] | None:
    """What the run needs at most by the plan, in words, and whether the device has it; one that is not here may.

    None for a model whose sizes are not known. Raises ModelError for a `trainable` that none of its parameters has.
    """
    like = kin(config.model)
    if like is None:
        return None
    from models.architectures import architecture
    from t2i_rl.planning import fitting
    from t2i_rl.planning.plan import USABLE, peaks

    plan, device = PlanConfig.of(config, like, processes()), None
    try:
        device = device_of(config.device)
        plan = replace(plan, memory_gb=memory_of(device) / 1e9)
    except ModelError:
        pass
    model = architecture(like)
    most = max(peaks(model, plan).values())
    count = f"each of {plan.gpus} processes" if plan.gpus > 1 else "1 process"
    what = (
        f"by the plan, training takes {most / 1e9:.1f} GB at its peak ({plan.dtype}, {count}), rewards in this process "
        "besides"
    )
    if device is None:
        return what, True
    room = USABLE * memory_of(device)
    if most <= room:
        return f"{what}, of {in_words(device)}", True
    mend = f"what would fit: {fitting.in_words(fitting.what_fits(model, plan, room))}"
    return f"{what}, which is more than {USABLE:.0%} of {in_words(device)}: {mend}", False


LOOKS: tuple[Callable[[TrainConfig], None], ...] = (
    _folder,
    _shares,
    _device,
    _prompts,
    _heldout,
    _endpoints,
    _own_rewards,
    _model,
    _adapted_layers,
    _memory,
)
