"""Settings: who wins, what is refused, and that they survive being written down."""

import dataclasses
import json
from pathlib import Path

import pytest

from rewards.errors import RewardError
from rewards.http.patience import IMAGES, Patience
from rewards.http.wire import Limits
from t2i_rl.configuration.config import TrainConfig, fixed, to_json
from t2i_rl.errors import UserError
from t2i_rl.settings import override, read_settings


def test_settings_that_may_be_absent_or_hold_names(tmp_path: Path):
    config = override(TrainConfig(), {"contrast": "text:a ring", "reward-weights": {"strict": 1}}, "x.toml")
    assert (config.contrast, config.reward_weights) == ("text:a ring", {"strict": 1.0})
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert override(TrainConfig(), read_settings(path), "config.json") == config
    assert override(config, {"contrast": None}, "x.json").contrast is None
    assert fixed(config)["reward_weights.strict"] == 1.0 and fixed(TrainConfig())["reward_weights"] == {}


def test_nested_settings_and_both_spellings():
    settings = {
        "seed": 3,
        "out": "runs/a",
        "rollout": {"group-size": 4, "sampling": {"top_k": 7}},
        "update": {"learning_rate": 1, "betas": [0.5, 0.9], "schedule": "linear"},
    }
    config = override(TrainConfig(), settings, "x.toml")
    assert (config.seed, config.out) == (3, Path("runs/a"))
    assert (config.rollout.group_size, config.rollout.sampling.top_k) == (4, 7)
    assert (config.update.learning_rate, config.update.betas, config.update.schedule) == (1.0, (0.5, 0.9), "linear")
    assert config.rollout.prompts_per_step == TrainConfig().rollout.prompts_per_step


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tempo": 1}, "x.toml has the unknown key 'tempo': it may hold model, method"),
        ({"update": {"rate": 1}}, "x.toml, update, has the unknown key 'rate'"),
        ({"rollout": 3}, "x.toml, rollout, has to hold named settings, not 3"),
        ([1], "x.toml has to hold named settings"),
        ({"steps": "many"}, "x.toml: steps is 'many': it has to be of type int"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": True}, "steps is True"),
        ({"seed": None}, "seed is None"),
        ({"out": 3}, "out is 3"),
        ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
        ({"update": {"schedule": "cubic"}}, "schedule is 'cubic': choose one of constant, linear, cosine"),
        ({"update": {"betas": [0.9]}}, "betas is [0.9]: it has to be a list of 2 numbers"),
        ({"update": {"betas": ["a", "b"]}}, "betas is 'a': it has to be of type float"),
        ({"update": {"betas": [0.9, 1.0]}}, "update.betas is (0.9, 1.0)"),
        ({"update": {"learning_rate": float("nan")}}, "update.learning-rate is nan: it has to be above 0"),
        ({"update": {"learning_rate": 1e38}}, "update.learning-rate is 1e+38: it has to be above 0 and at most 1e6"),
        ({"update": {"max_grad_norm": 0}}, "update.max-grad-norm is 0.0"),
        ({"update": {"final_ratio": 2}}, "update.final-ratio is 2.0"),
        ({"update": {"weight_decay": -1}}, "update.weight-decay is -1.0"),
        ({"update": {"warmup_steps": -1}}, "update.warmup-steps is -1"),
        ({"update": {"updates_per_rollout": 0}}, "update.updates-per-rollout is 0"),
        ({"update": {"beta": -1}}, "update.beta is -1.0: it has to be 0 or more"),
        ({"update": {"dynamic_clip": 0}}, "update.dynamic-clip is 0.0: it has to be above 0"),
        ({"update": {"micro_batch": 0}}, "update.micro-batch is 0"),
        ({"rollout": {"group_size": 0}}, "rollout.group-size is 0: it has to be at least 1"),
        ({"rollout": {"prompts_per_step": 0}}, "rollout.prompts-per-step is 0"),
        ({"rollout": {"micro_batch": -1}}, "rollout.micro-batch is -1"),
        ({"rollout": {"sampling": {"temperature": 0}}}, "rollout.sampling.temperature is 0.0"),
        ({"rollout": {"sampling": {"top_p": 0}}}, "top-p is 0.0"),
        ({"rollout": {"sampling": {"top_k": -1}}}, "top-k is -1"),
        ({"rollout": {"sampling": {"guidance_scale": float("inf")}}}, "guidance-scale is inf"),
        ({"evaluation": {"every": -1}}, "evaluation.every is -1: it has to be 0 (never) or more"),
        ({"rollout": {"group_batch": -1}}, "rollout.group-batch is -1"),
        ({"evaluation": {"images_per_tag": 0}}, "evaluation.images-per-tag is 0"),
        ({"evaluation": {"batch": 0}}, "evaluation.batch is 0"),
        ({"checkpoint": {"every": 0}}, "checkpoint.every is 0"),
        ({"checkpoint": {"keep_last": 0}}, "checkpoint.keep-last is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"rollout": {"resample_rounds": 0}}, "rollout.resample-rounds is 0"),
        ({"update": {"log_prob": "uncond"}}, "log_prob is 'uncond': choose one of cond, cfg"),
        ({"update": {"unconditional_gradient": 1}}, "unconditional_gradient is 1: it has to be of type bool"),
        ({"reward_weights": 3}, "reward_weights is 3: it has to hold named numbers"),
        ({"reward_weights": {"strict": "much"}}, "reward_weights, strict is 'much': it has to be of type float"),
        ({"reward_weights": {"strict": float("nan")}}, "it has to be names with finite numbers"),
        ({"contrast": 3}, "contrast is 3: it has to be of type str"),
        ({"seed": -1}, "seed is -1"),
        ({"on_reward_failure": "hope"}, "on_reward_failure is 'hope': choose one of stop, drop_group"),
        ({"reward_server": {"timeout": "long"}}, "x.toml, reward_server: timeout is 'long'"),
        ({"lora": {"rank": -1}}, "lora.rank is -1"),
        ({"lora": {"alpha": 0}}, "lora.alpha is 0.0"),
        ({"lora": {"targets": "q_proj"}}, "targets is 'q_proj': it has to be a list"),
        ({"lora": {"targets": [3]}}, "targets is 3: it has to be of type str"),
    ],
)
def test_what_is_refused(settings: object, says: str):
    with pytest.raises(UserError) as caught:
        override(TrainConfig(), settings, "x.toml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timeout": 0}, "reward-server.timeout is 0.0: it has to be above 0, in seconds"),
        ({"connect": float("inf")}, "reward-server.connect is inf"),
        ({"attempts": 0}, "reward-server.attempts is 0: it has to be at least 1"),
        ({"pause": float("nan")}, "reward-server.pause is nan: it has to be 0 or more"),
        ({"longest": -1}, "reward-server.longest is -1.0"),
        ({"images": IMAGES + 1}, "reward-server.images is 65: it has to be in 1..64"),
    ],
)
def test_what_no_patience_is(settings: object, says: str):
    with pytest.raises(RewardError) as caught:
        override(TrainConfig(), {"reward_server": settings}, "x.toml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_request_holds_what_a_server_takes():
    assert Limits().images == IMAGES


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.toml").write_text("steps = ")
    (tmp_path / "a.json").write_text('{"steps": 1,}')
    (tmp_path / "latin.toml").write_bytes(b'out = "caf\xe9"\n')
    for name, says in (
        ("a.toml", "is not valid TOML"),
        ("a.json", "is not valid JSON"),
        ("latin.toml", "is not valid TOML"),
        ("absent.toml", "No such file"),
        (".", "Is a directory"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            read_settings(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_toml_and_json_say_the_same(tmp_path: Path):
    (tmp_path / "a.toml").write_text('method = "grpo"\n[rollout.sampling]\ntop-p = 0.5\n')
    (tmp_path / "a.json").write_text(json.dumps({"method": "grpo", "rollout": {"sampling": {"top-p": 0.5}}}))
    assert read_settings(tmp_path / "a.toml") == read_settings(tmp_path / "a.json")


def test_what_may_differ_in_a_continuation():
    config = TrainConfig()
    other = dataclasses.replace(config, steps=7, out=Path("elsewhere"), device="cuda")
    assert fixed(other) == fixed(config)
    patient = dataclasses.replace(config, on_reward_failure="drop_group", reward_server=Patience(timeout=9))
    assert fixed(patient) == fixed(config)
    smaller = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, micro_batch=1))
    assert fixed(smaller) == fixed(config)  # what did not fit may go on in smaller parts
    for changed in (
        dataclasses.replace(config, method="grpo"),
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, update=dataclasses.replace(config.update, betas=(0.9, 0.95))),
        dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, group_size=2)),
    ):
        assert fixed(changed) != fixed(config)
    assert fixed(config)["rollout.sampling.top_p"] == 1.0
    assert json.loads(json.dumps(fixed(config))) == fixed(config)
