"""Presets: what the papers' columns say, and what picks one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.catalogue import REWARDS
from t2i_rl.cli import main
from t2i_rl.commands.train import resolution, resolve
from t2i_rl.configuration.answer_presets import ANSWERS
from t2i_rl.configuration.config import EvaluationSampling, TrainConfig, to_json
from t2i_rl.configuration.presets import BY_NAMES, PRESETS, find_preset, preset, preset_name
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.variants import base_name
from t2i_rl.prompts.sets import NAMES
from t2i_rl.settings import override, read_settings

FULL = [name for name in PRESETS if not name.startswith("tiny-") and name not in ANSWERS]
# Images of a step, group, learning rate, beta, guidance, steps: the columns of both papers, and the launch script's.
COLUMNS = {
    "janus-pro-7b-geneval-cfg": (128, 16, 5e-6, 0.03, 5.0, 1600),
    "janus-pro-7b-geneval-cfg-released": (128, 16, 5e-6, 0.03, 5.0, 1600),
    "llamagen-256-hps-critical": (4 * 2 * 2 * 8, 8, 1e-5, 0.04, 1.0, 900),
    "janus-pro-1b-geneval-critical": (4 * 2 * 4, 4, 3e-6, 0.01, 5.0, 1600),
    "janus-pro-1b-hps-critical": (4 * 2 * 4, 4, 1e-6, 0.01, 5.0, 1600),
    "janus-pro-7b-geneval-critical": (4 * 2 * 4, 4, 3e-6, 0.01, 5.0, 1600),
    "janus-pro-7b-hps-critical": (4 * 4 * 8, 8, 1e-6, 0.01, 5.0, 1600),
}
CLIPS = {"llamagen-256-hps": 0.5, "janus-pro-1b-geneval": 1.0, "janus-pro-1b-hps": 0.5}
CLIPS |= {"janus-pro-7b-geneval": 0.6, "janus-pro-7b-hps": 1.0}
BETAS = {**dict.fromkeys(CLIPS, 0.01), "llamagen-256-hps": 0.04}
BETAS |= {"janus-pro-7b-geneval-cfg": 0.03, "janus-pro-7b-hps-cfg": 0.01, "star-256-hps": 0.01}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_named_for_what_it_trains(name: str) -> None:
    config = PRESETS[name]
    method = base_name(config.method)
    assert name == f"{config.model}-{config.reward.removesuffix('v2')}-{method}"
    own = find_method(config.method).objective
    assert run_method(config).objective == (
        own if config.update.beta is None else replace(own, beta=config.update.beta)
    )
    assert preset(config.model, config.reward, method) == config
    assert find_preset(name) == config


def test_no_two_presets_are_of_the_same_names() -> None:
    assert len(BY_NAMES) == len(PRESETS)
    several = {name for name, method in METHODS.items() if method.source == "current"}  # want several updates
    assert {method for model, reward, method in BY_NAMES if (model, reward) == ("tiny", "shapes")} == {
        *METHODS
    } - several


@pytest.mark.parametrize("name", COLUMNS)
def test_the_columns_of_the_papers(name: str) -> None:
    config = PRESETS[name]
    rollout, method = config.rollout, run_method(config)
    assert (
        rollout.prompts_per_step * rollout.group_size,
        rollout.group_size,
        config.update.learning_rate,
        method.objective.beta,
        rollout.sampling.guidance_scale,
        config.steps,
    ) == COLUMNS[name]
    assert rollout.sampling.temperature == 1 and config.update.max_grad_norm == 1


@pytest.mark.parametrize("column", CLIPS)
def test_the_clip_of_the_running_weight_by_model(column: str) -> None:
    paper, released = (run_method(PRESETS[f"{column}-{name}"]) for name in ("critical", "critical-released"))
    assert paper.dynamic is not None and released.dynamic is not None
    assert (paper.dynamic.clip, paper.dynamic.detach) == (CLIPS[column], True)
    assert (released.dynamic.clip, released.dynamic.detach) == (0.5, False)
    assert paper.objective == released.objective


def test_llamagen_compares_images_by_the_codebook_as_released() -> None:
    kinds = {name: run_method(PRESETS[name]).credit.embeddings for name in FULL if "critical" in name}
    assert kinds.pop("llamagen-256-hps-critical-released") == "codebook"
    assert {*kinds.values()} == {"lm_input"}


def test_adam_of_the_paper_and_of_the_launch_script() -> None:
    assert PRESETS["janus-pro-7b-geneval-cfg"].update.betas == (0.99, 0.999)
    assert PRESETS["janus-pro-7b-geneval-cfg-released"].update.betas == (0.9, 0.999)


@pytest.mark.parametrize("name", FULL)
def test_no_preset_chooses_its_best_checkpoint_on_a_benchmark(name: str) -> None:
    config = PRESETS[name]
    assert config.prompts in ("geneval-train", "t2i-r1-train")
    assert config.heldout == config.prompts.replace("train", "heldout")
    assert {config.prompts, config.heldout} <= {*NAMES}
    assert config.evaluation.sampling == EvaluationSampling()  # as t2i-rl eval, whatever training does


def test_without_a_preset_there_are_the_defaults() -> None:
    assert preset("some/model", "shapes", "grpo") == TrainConfig(model="some/model", reward="shapes", method="grpo")


@pytest.mark.parametrize("name", FULL)
def test_written_down_and_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(to_json(PRESETS[name]))
    assert override(TrainConfig(), read_settings(path), "config.json") == PRESETS[name]


@pytest.mark.parametrize("name", FULL)
def test_its_name_or_what_it_is_of_pick_a_preset(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]
    method = base_name(config.method)
    flags = ["--model", config.model, "--reward", config.reward, "--method", method]
    assert resolve(["--preset", name]) == resolve(flags) == config
    assert resolve(["--preset", name, "--method", method]) == config
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"model": config.model, "reward": config.reward, "method": method}))
    assert resolve(["--config", str(file)]) == config
    file.write_text(to_json(config))
    assert resolve(["--config", str(file)]) == config


def test_flag_over_run_file_over_named_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 7\nreward = "geneval-official"\n[rollout]\ngroup-size = 2\n')
    config = resolve(["--preset", "janus-pro-7b-geneval-critical", "--config", str(file), "--steps", "9"])
    assert (config.steps, config.reward, config.rollout.group_size) == (9, "geneval-official", 2)
    assert config.method == "critical" and config.update.learning_rate == 3e-6


@pytest.mark.parametrize("method", ["grpo", "cfg", "critical"])
@pytest.mark.parametrize("name", FULL)
def test_the_baseline_of_a_column_has_its_beta_and_clip(name: str, method: str) -> None:
    """The papers give both for a model and a reward, and compare methods under them."""
    column = name.removesuffix("-released").removesuffix("-critical").removesuffix("-grpo")
    released = name.endswith("-critical-released")
    found = run_method(resolve(["--preset", name, "--method", method]))
    assert found.objective.beta == BETAS[column]
    if method == "critical":
        assert found.dynamic is not None and found.dynamic.clip == (0.5 if released else CLIPS.get(column, 0.5))


def test_another_method_with_the_settings_of_a_preset() -> None:
    """A method takes of the column what it has a place for, and what it spells out stays as it is."""
    name = "janus-pro-7b-geneval-critical"
    column = PRESETS[name].update
    assert (column.beta, column.dynamic_clip) == (0.01, 0.6)
    for method, beta, clip in (
        ("grpo", 0.01, None),
        ("dapo", None, None),  # without a KL, it stays so
        ("grpo[dynamic=critical]", 0.01, 0.6),  # the paper's weight on all tokens
        ("critical[dynamic.clip=0.5]", 0.01, None),
        ("critical[objective.beta=0.1]", None, 0.6),
    ):
        found = resolve(["--preset", name, "--method", method])
        assert (found.method, found.update) == (method, replace(column, beta=beta, dynamic_clip=clip))
    spelt = resolve(["--preset", name, "--method", "critical[dynamic.clip=0.5,objective.beta=0.1]"])
    method = run_method(spelt)
    assert method.dynamic is not None and (method.objective.beta, method.dynamic.clip) == (0.1, 0.5)
    flags = ["--model", "janus-pro-7b", "--reward", "geneval", "--method", spelt.method]
    assert resolve(flags) == spelt


def test_a_run_file_or_flag_gives_any_method_a_kl(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = "dapo"\n[update]\nbeta = 0.02\n')
    assert run_method(resolve(["--config", str(file)])).objective.beta == 0.02
    found = run_method(resolve(["--method", "critical", "--update.beta", "0", "--update.dynamic-clip", "0.7"]))
    assert found.objective.beta == 0 and found.dynamic is not None and found.dynamic.clip == 0.7
    assert found.needs_reference


def test_a_reward_that_is_served_elsewhere_keeps_its_preset() -> None:
    served = "shapes@http://127.0.0.1:8100"
    assert preset("tiny", served, "cfg") == replace(preset("tiny", "shapes", "cfg"), reward=served)
    several = f"{served} hpsv2:0.5"
    assert preset("tiny", several, "cfg") == replace(preset("tiny", "shapes", "cfg"), reward=several)


def test_a_combination_without_a_preset_takes_the_nearest_of_its_model() -> None:
    for reward, method, nearest in (
        ("aesthetic", "cfg", "janus-pro-7b-geneval-cfg"),
        ("hpsv2", "cfg", "janus-pro-7b-hps-cfg-released"),
        ("hpsv2", "gspo", "janus-pro-7b-hps-cfg-released"),
        (None, "critical", "janus-pro-7b-geneval-critical"),
    ):
        assert preset_name("janus-pro-7b", reward, method) == nearest
        found = preset("janus-pro-7b", reward, method)
        assert found.rollout == PRESETS[nearest].rollout and found.reward == (reward or PRESETS[nearest].reward)
        assert base_name(found.method) == method


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(
        UserError, match=r"no preset 'huge': choose one of janus-pro-7b-geneval-cfg, .*tiny-shapes-METHOD"
    ):
        resolve(["--preset", "huge"])


def test_a_reward_that_is_not_there_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(REWARDS, "geneval")
    assert main(["train", "--preset", "janus-pro-7b-geneval-cfg"]) == 2
    error = capsys.readouterr().err
    assert "'geneval'" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FULL)
def test_every_column_can_be_had_with_adapters(name: str) -> None:
    column, adapted = find_preset(name), find_preset(f"{name}-lora")
    assert adapted.lora.rank == 32 and adapted.update.gradient_checkpointing and adapted.dtype == "bfloat16"
    assert adapted.update.learning_rate == pytest.approx(10 * column.update.learning_rate)
    assert (adapted.model, adapted.method, adapted.steps) == (column.model, column.method, column.steps)
    assert adapted.rollout == replace(column.rollout, group_batch=4)
    assert resolve(["--preset", f"{name}-lora"]) == adapted


def test_the_toy_has_no_preset_with_adapters() -> None:
    with pytest.raises(UserError, match="no preset 'tiny-shapes-cfg-lora'"):
        find_preset("tiny-shapes-cfg-lora")


@pytest.mark.parametrize(
    ("model", "of"),
    [
        ("deepseek-ai/Janus-Pro-7B", "janus-pro-7b"),
        ("deepseek-community/Janus-Pro-1B", "janus-pro-1b"),
        ("janus-pro-7b-gcpo-hps", "janus-pro-7b"),
        ("llamagen-256-gcpo", "llamagen-256"),
        ("llamagen-512", "llamagen-256"),
        ("star-512", "star-256"),
        ("star-1024", "star-256"),
    ],
)
def test_a_real_model_never_trains_the_toy(model: str, of: str) -> None:
    found = resolution(["--model", model, "--method", "critical"])
    column = find_preset(str(found.preset))
    assert column.model == of and found.config.model == model
    assert found.config.prompts == column.prompts and found.config.update.learning_rate == column.update.learning_rate
    assert f"preset {found.preset} (" in found.said() and of in found.said()


def test_a_model_of_another_size_has_its_own_guidance_and_batches() -> None:
    """As many tokens at once: the 512 px model has four times those of the 256 px one."""
    column, found = find_preset("llamagen-256-hps-critical"), preset("llamagen-512", None, "critical")
    assert (column.rollout.sampling.guidance_scale, found.rollout.sampling.guidance_scale) == (1.0, None)
    assert (column.update.micro_batch, found.update.micro_batch) == (4, 1)
    assert (column.evaluation.batch, found.evaluation.batch) == (16, 4)
    assert preset("llamagen-256-gcpo", None, "critical") == replace(column, model="llamagen-256-gcpo")


def test_a_folder_is_known_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "janus", "text_config": {"num_hidden_layers": 30}}')
    assert preset(str(tmp_path), None, "cfg") == replace(PRESETS["janus-pro-7b-geneval-cfg"], model=str(tmp_path))


def test_a_preset_is_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "janus-pro-1b-hps-critical"]) == 0
    (tmp_path / "run.json").write_text(capsys.readouterr().out)
    assert resolve(["--config", str(tmp_path / "run.json")]) == PRESETS["janus-pro-1b-hps-critical"]
    assert main(["presets"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    names = [name for name in PRESETS if not name.startswith("tiny-")]
    assert listed == [*names, *(f"{name}-lora" for name in names), "tiny-shapes-METHOD", "tiny-vlm-math-METHOD"]


@pytest.mark.parametrize("model", ["qwen2.5-vl-7b", "qwen3-vl-8b"])
def test_runs_of_answers(model: str) -> None:
    """They fit the paper's eight cards, choose by questions of no benchmark, and their methods share one loss."""
    from models.architectures import architecture
    from t2i_rl.planning.plan import USABLE, peaks
    from t2i_rl.planning.plan_config import PlanConfig

    column = find_preset(f"{model}-math-cfg")
    plan = PlanConfig.of(column, model, 8)
    assert plan.prompt_tokens == 200 + 1280 and max(peaks(architecture(model), plan).values()) < USABLE * 80e9
    assert (column.prompts, column.heldout) == ("virl39k-train", "virl39k-heldout")
    for name, contrast in (("grpo", None), ("dapo", None), ("vppo", "masked-image"), ("cfg", None)):
        own = find_preset(f"{model}-math-{name}")
        assert own.contrast == contrast and run_method(own).objective == METHODS["cfg-text"].objective
        for words in (["--model", model], ["--preset", f"{model}-math-cfg"], ["--preset", f"{model}-math-vppo"]):
            assert resolve([*words, "--method", name]) == own
    assert not run_method(find_preset(f"{model}-math-grpo")).needs_reference
