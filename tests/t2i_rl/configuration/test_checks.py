"""Settings that contradict each other, and methods that do not go with a model, are refused in one sentence."""

from dataclasses import replace

import pytest

from models.policy import TokenLayout
from rewards.errors import RewardError
from rewards.http.patience import Patience
from rewards.registry import build
from t2i_rl.cli import main
from t2i_rl.configuration.checks import check_settings
from t2i_rl.configuration.config import LoraConfig, RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.configuration.method_checks import check_layout, reward_range
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.position import SlidingWindow
from t2i_rl.methods.credit.product import Product
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Objective
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus

RASTER = TokenLayout(((4, 4),), (1,) * 16)
SCALES = TokenLayout(((1, 1), (2, 2), (3, 3)), (1, 4, 9))
LINE = TokenLayout(((1, 9),), (1,) * 9)
CUT = RolloutConfig(sampling=Sampling(top_k=5))
GUIDED = UpdateConfig(log_prob="cfg")
ALONE = RolloutConfig(group_size=1)
SUM = "shapes:0.5 shapes-official:2"
BY_SCALE = Method("scales", "", objective=Objective(unit="scale"))
WINDOW = Method("window", "", credit=Product((GuidanceContrast(), SlidingWindow(unit="scale"))))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_goes_with_the_defaults(method: Method):
    check_settings(TrainConfig(update=UpdateConfig(updates_per_rollout=1 + (method.source == "current"))), method)
    check_layout(method, RASTER)


@pytest.mark.parametrize(
    ("method", "config", "says"),
    [
        ("grpo-full-kl", TrainConfig(rollout=CUT, update=GUIDED), "the exact KL is infinite where top-k or top-p"),
        ("grpo", TrainConfig(update=UpdateConfig(unconditional_gradient=False)), "no effect in log-prob mode cond"),
        ("grpo", TrainConfig(lora=LoraConfig(targets=("q_proj",))), "lora.targets has no effect without adapters"),
        (
            "grpo",
            TrainConfig(lora=LoraConfig(rank=4), trainable="head"),
            "trainable has no effect on a run with adapters",
        ),
        ("grpo", TrainConfig(contrast="null"), "contrast has no effect: method grpo"),
        ("cfg", TrainConfig(reward_order="normalize-then-sum"), "give several rewards, or name the parts"),
        (
            "cfg",
            TrainConfig(reward=SUM, reward_weights={"shapes": 1.0}),
            r"reward gives weights \(shapes:0.5 shapes-official:2\) and so does reward-weights",
        ),
        (
            "grpo",
            TrainConfig(
                reward=SUM, reward_weights={"shapes": 0.5, "shapes-official": 1}, reward_order="normalize-then-sum"
            ),
            "keep one of the two",
        ),
        ("stage", TrainConfig(reward=SUM), r"a sum of rewards hardly has equals.* set entropy_reward=none"),
        ("cfg", TrainConfig(reward_server=Patience(timeout=9)), "reward-server has no effect on a reward in this"),
        ("cfg", TrainConfig(reward="shapes:0"), "all weights of the reward are 0, so every image earns the same"),
        ("cfg", TrainConfig(reward_weights={"strict": 0.0}), "all weights of the reward are 0"),
        ("grpo", TrainConfig(rollout=RolloutConfig(resample_rounds=2)), "resample-rounds has no effect: method grpo"),
        (
            "grpo",
            TrainConfig(rollout=ALONE),
            "rollout.group-size is 1, and method grpo compares the images of a prompt",
        ),
        *(
            (
                name,
                TrainConfig(reward_order="normalize-then-sum", reward_weights={"a": 1.0}),
                "cannot normalize several",
            )
            for name in ("dr-grpo", "cfg-released")
        ),
    ],
)
def test_settings_that_contradict_each_other(method: str, config: TrainConfig, says: str):
    with pytest.raises(UserError, match=says) as caught:
        check_settings(config, METHODS[method])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "update", "says"),
    [
        (
            "grpo[objective.beta=0.1]",
            UpdateConfig(beta=0.1),
            r"sets objective.beta, and so does update.beta \(0.1\): keep",
        ),
        (
            "critical[dynamic.clip=1]",
            UpdateConfig(dynamic_clip=0.5),
            "sets dynamic.clip, and so does update.dynamic-clip",
        ),
        (
            "grpo",
            UpdateConfig(dynamic_clip=0.5),
            "update.dynamic-clip has no effect: method grpo has no running weight",
        ),
        ("grpo-full-kl", UpdateConfig(beta=0.0), "the KL form full has no effect while beta is 0"),
    ],
)
def test_settings_that_the_method_cannot_take(method: str, update: UpdateConfig, says: str):
    with pytest.raises(UserError, match=says) as caught:
        run_method(TrainConfig(method=method, update=update))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(reward=SUM, reward_order="normalize-then-sum"),
        TrainConfig(reward="shapes shapes-official", reward_weights={"shapes/strict": 1.0}),
        TrainConfig(reward=SUM, reward_weights={"total": 1.0, "shapes/strict": 1.0}),
        TrainConfig(reward="shapes@http://127.0.0.1:1", reward_server=Patience(timeout=9)),
    ],
)
def test_rewards_that_go_together(config: TrainConfig):
    check_settings(config, METHODS["grpo"])


def test_a_reward_that_is_not_there():
    with pytest.raises(RewardError, match="there is no reward named 'beauty'"):
        check_settings(TrainConfig(reward="beauty"), METHODS["grpo"])


def test_the_exact_kl_goes_with_mode_cfg_where_nothing_is_cut():
    check_settings(TrainConfig(update=GUIDED), METHODS["grpo-full-kl"])


@pytest.mark.parametrize("method", [BY_SCALE, WINDOW], ids=lambda method: method.name)
def test_scales_need_a_model_that_has_them(method: Method):
    with pytest.raises(UserError, match=f"method {method.name} counts in scales, but the model draws one map"):
        check_layout(method, RASTER)
    check_layout(method, SCALES)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("cfg[source=current]", "source=current has no effect with one update per rollout"),
        ("grpo[objective.surrogate=dapo]", "objective.surrogate has no effect with one update per rollout"),
        ("cispo[objective.surrogate.low=0.2]", "objective.surrogate.low has no effect with one update per rollout"),
    ],
)
def test_what_only_later_updates_of_a_rollout_see(method: str, says: str):
    with pytest.raises(UserError, match=f"{says}.*: set update.updates-per-rollout to at least 2") as caught:
        check_settings(TrainConfig(), find_method(method))
    assert "\n" not in str(caught.value)
    check_settings(TrainConfig(update=UpdateConfig(updates_per_rollout=2)), find_method(method))


@pytest.mark.parametrize(
    ("reward", "found"),
    [
        ("shapes", (0, 1)),
        ("geneval@http://127.0.0.1:1", (0, 1)),
        ("hpsv2", (0.2, 0.35)),
        ("hpsv2:1", (0, 1)),  # of a sum every reward is brought to 0..1
        ("geneval:1 hpsv2:0.5", (0, 1.5)),
        ("geneval hpsv2:-0.5", (-0.5, 1)),
    ],
)
def test_where_a_reward_lies(reward: str, found: tuple[float, float]):
    assert reward_range(TrainConfig(reward=reward)) == found


@pytest.mark.parametrize(
    ("method", "says"),
    [("ngrpo", "takes 1 for the highest reward"), ("vgpo", "takes 0.5 for the middle of the rewards")],
)
def test_a_level_goes_with_the_reward(method: str, says: str):
    photos = TrainConfig(prompts="t2i-r1-train", heldout="t2i-r1-heldout")
    name = {"ngrpo": "maximum", "vgpo": "anchor"}[method]
    for config, number, other in (
        (replace(photos, reward="imagereward"), {"ngrpo": "2", "vgpo": "0"}, "lies in about -2..2"),
        (replace(photos, reward="geneval:1 hpsv2:0.5"), {"ngrpo": "1.5", "vgpo": "0.75"}, r"lies in about 0..1.5"),
        (
            TrainConfig(reward_weights={"noise": 2.0}),
            {"ngrpo": "NUMBER", "vgpo": "NUMBER"},
            "between which numbers noise lies is not known",
        ),
    ):
        with pytest.raises(UserError, match=f"{says}, and .*{other}: set scale.{name}={number[method]} in") as caught:
            check_settings(config, METHODS[method])
        assert "\n" not in str(caught.value)
        check_settings(config, find_method(f"{method}[scale.{name}=3]"))
    for config in (TrainConfig(), TrainConfig(reward_weights={"strict": 1.0})):
        check_settings(config, METHODS[method])


def test_where_a_sum_of_parts_lies():
    def found(**weights: float) -> tuple[float, float] | None:
        return reward_range(TrainConfig(reward="geneval hpsv2", reward_weights=weights))

    assert found(**{"geneval/strict": 2.0, "hpsv2": -10.0}) == pytest.approx((-3.5, 0.0))
    assert found(total=1.0) == (0, 2)
    assert found(noise=1.0) is None


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("spo", "tracker")])
def test_which_methods_need_a_group(method: str):
    with pytest.raises(UserError, match=f"method {method} compares the images of a prompt"):
        check_settings(TrainConfig(rollout=ALONE), METHODS[method])


@pytest.mark.parametrize(
    ("method", "rollout", "says"),
    [
        *(
            (f"spo[credit={credit}]", ALONE, "compares the images of a prompt")
            for credit in ("critical", "stage", "tw", "gtpo", "d3s", "ucas", "cfg-critical")
        ),
        ("spo[entropy_reward=stage]", ALONE, "compares the images of a prompt"),
        ("tracker[scale.decay=0]", ALONE, "compares every image with itself"),
        ("spo", replace(ALONE, prompts_per_step=1), "one prompt with one image has none"),
    ],
)
def test_a_single_image_cannot_be_compared(method: str, rollout: RolloutConfig, says: str):
    with pytest.raises(UserError, match=says):
        check_settings(TrainConfig(rollout=rollout), find_method(method))


def test_a_group_in_parts_cannot_be_compared_place_by_place():
    config = TrainConfig(rollout=RolloutConfig(group_size=8, group_batch=4))
    check_settings(config, find_method("cfg"))
    with pytest.raises(UserError, match="cuts groups, and method tw measures group_divergence over whole ones"):
        check_settings(config, find_method("tw"))


@pytest.mark.parametrize(
    "method", ["spo", "tracker", "spo[credit=cfg]", "spo[credit=critical,credit.parts=initial+structure]"]
)
def test_a_single_image_is_enough_for_a_prompts_past(method: str):
    check_settings(TrainConfig(rollout=ALONE), find_method(method))


@pytest.mark.parametrize(
    ("method", "layout", "says"),
    [
        ("critical[dynamic.over=scales]", RASTER, "a running weight over scales, but the model draws one map"),
        ("critical[credit.share=0.05]", RASTER, "chooses none of the 16 tokens"),
        ("cfg-critical", LINE, "chooses none of the 9 tokens"),
        ("critical[credit.parts=initial]", SCALES, "chooses none of the 14 tokens"),
        (
            f"critical[credit.share={1 / 3},credit.keep=complement]",
            LINE,
            "the complement of its sets, which hold all of the 9 tokens",
        ),
    ],
)
def test_a_method_that_updates_no_token(method: str, layout: TokenLayout, says: str):
    with pytest.raises(UserError, match=says) as caught:
        check_layout(find_method(method), layout)
    assert "\n" not in str(caught.value)


def test_rows_need_a_model_that_has_them():
    with pytest.raises(UserError, match="counts in picture rows, but the model's tokens form none"):
        check_layout(METHODS["rank-grpo"], LINE)
    check_layout(METHODS["rank-grpo"], SCALES)
    check_layout(METHODS["grpo"], LINE)


def test_a_trainer_is_refused_before_it_is_built():
    with pytest.raises(UserError, match="counts in scales"):
        Trainer(TrainConfig(), random_janus(), BY_SCALE, build("shapes"), [Prompt("a ring")])
    config = replace(TrainConfig(), update=GUIDED, rollout=CUT)
    with pytest.raises(UserError, match="exact KL is infinite"):
        Trainer(config, random_janus(), METHODS["grpo-full-kl"], build("shapes"), [Prompt("a ring")])


def test_the_command_line_refuses_them_too(capsys: pytest.CaptureFixture[str]):
    words = "--method grpo --contrast text:blurry --negative-prompt x --reward-weights strict 0.5"
    assert main(["train", *words.split(" ")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("t2i-rl: contrast has no effect: method grpo") and error.count("\n") == 1


def test_the_help_says_where_methods_and_rewards_are_listed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "t2i-rl methods lists them" in text and "docs/rewards.md lists them" in text
