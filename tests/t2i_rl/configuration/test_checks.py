"""Settings that contradict each other, and methods that do not go with a model, are refused in one sentence."""

from dataclasses import replace

import pytest

from models.policy import TokenLayout
from rewards.errors import RewardError
from rewards.http.patience import Patience
from rewards.registry import build
from t2i_rl.cli import main
from t2i_rl.configuration.checks import check_layout, check_settings
from t2i_rl.configuration.config import LoraConfig, RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.position import SlidingWindow
from t2i_rl.methods.credit.product import Product
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Objective
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus

RASTER = TokenLayout(((3, 3),), (1,) * 9)
SCALES = TokenLayout(((1, 1), (2, 2), (3, 3)), (1, 4, 9))
LINE = TokenLayout(((1, 9),), (1,) * 9)
CUT = RolloutConfig(sampling=Sampling(top_k=5))
GUIDED = UpdateConfig(log_prob="cfg")
SUM = "shapes:0.5 shapes-official:2"
BY_SCALE = Method("scales", "", objective=Objective(unit="scale"))
WINDOW = Method("window", "", credit=Product((GuidanceContrast(), SlidingWindow(unit="scale"))))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_goes_with_the_defaults(method: Method):
    check_settings(TrainConfig(), method)
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
        ("grpo", TrainConfig(contrast_prompt=""), "contrast-prompt has no effect: method grpo"),
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
    words = "--method grpo --contrast-prompt blurry --negative-prompt x --reward-weights strict 0.5"
    assert main(["train", *words.split(" ")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("t2i-rl: contrast-prompt has no effect: method grpo") and error.count("\n") == 1


def test_the_help_says_where_methods_and_rewards_are_listed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "t2i-rl methods lists them" in text and "docs/rewards.md lists them" in text
