"""Plans against hand arithmetic, and against what a layer is seen to keep."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.architectures import Architecture, architecture
from models.policy import Policy
from t2i_rl.cli import main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.presets import find_preset
from t2i_rl.planning import rollout_batch
from t2i_rl.planning.plan import floors, kept_by_layer, memory, most_prompts, peaks
from t2i_rl.planning.plan_config import PlanConfig
from tests.conftest import random_janus
from tests.models.small_star import TEXT_LENGTH, random_star

PLAN = PlanConfig(model="janus-pro-7b", gpus=8, group_size=16, prompts_per_step=16, prompt_tokens=40, rollout_batch=1)
LANGUAGE = 102400 * 4096 + 30 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096  # parameters
MATRICES = 30 * (4 * 4096**2 + 3 * 4096 * 11008)
HEAD = 4096 * 4096 + 16384 * 4096


@pytest.fixture(scope="module")
def janus() -> Architecture:
    return architecture("janus-pro-7b")


def test_memory_by_hand(janus: Architecture):
    found = memory(janus, PLAN)
    assert found["always"]["weights"] == 2 * LANGUAGE
    assert found["always"]["float32 copies"] == 4 * LANGUAGE / 8
    assert found["always"]["gradients"] == 4 * LANGUAGE / 8
    assert found["always"]["moments"] == 2 * 4 * LANGUAGE / 8
    assert found["always"]["reference"] == 2 * LANGUAGE / 8
    # They stay, in a number of slots that is a multiple of 64: 615 are used.
    assert found["always"]["keys and values"] == 2 * 16 * 640 * 30 * 2 * 4096 * 2
    assert found["sampling"]["logits"] == 16 * 16384 * 4 * 6
    assert found["pixels"]["image decoder"] == 16 * 358e6
    assert found["update"]["gathered layers"] == 2 * (2 * MATRICES / 30 + LANGUAGE - MATRICES)
    assert found["update"]["activations"] == 4 * (40 + 575) * 30 * (8 * 4096 + 4 * 11008) * 2


def test_float32_needs_no_copies(janus: Architecture):
    found = memory(janus, replace(PLAN, gpus=1, dtype="float32"))["always"]
    assert found["float32 copies"] == 0
    assert found["weights"] == found["gradients"] == found["reference"] == 4 * LANGUAGE


def test_copies_of_two_parts(janus: Architecture):
    """Each GPU has the model in bfloat16 and half of it in float32, with moments; copies add nothing."""
    found = memory(janus, replace(PLAN, shard=2))["always"]
    assert found["weights"] == 2 * LANGUAGE and found["float32 copies"] == found["gradients"] == 4 * LANGUAGE / 2


def test_other_models_on_one_gpu_by_hand():
    """Numbers worked out on paper: entries, then bytes."""
    small = memory(architecture("janus-pro-1b"), PlanConfig(model="janus-pro-1b", group_size=8))
    # Embeddings 102400 x 2048; 24 layers of 4 x 2048^2 + 3 x 2048 x 5632 + 2 x 2048; the last norm.
    assert 102400 * 2048 + 24 * (16_777_216 + 34_603_008 + 4096) + 2048 == 1_442_940_928
    assert small["always"]["weights"] == small["always"]["reference"] == 2_885_881_856
    assert small["always"]["float32 copies"] == small["always"]["gradients"] == 5_771_763_712
    assert small["always"]["moments"] == 11_543_527_424
    # 16 rows of 640 slots, a key and a value of 2048 in 24 layers.
    assert small["always"]["keys and values"] == 16 * 640 * 2 * 2048 * 24 * 2 == 2_013_265_920
    assert small["update"]["gathered layers"] == 0
    # 4 images, 615 positions, 24 layers of 6 x 2048 + 2 x 2048 + 4 x 5632.
    assert small["update"]["activations"] == 4 * 615 * 24 * 38_912 * 2

    found = memory(architecture("llamagen-512"), PlanConfig(model="llamagen-512", group_size=8, prompt_tokens=20))
    # Two tables of 16384 x 1280; 36 layers of 4 x 1280^2 + 3 x 1280 x 3584 + 2 x 1280; norm; caption projection.
    trained = 2 * 16384 * 1280 + 36 * (6_553_600 + 13_762_560 + 2560) + 1280 + 2048 * 1280 + 1280**2
    assert found["always"]["weights"] == 2 * (trained + 120 * 2048)  # the null caption is a buffer
    assert found["always"]["moments"] == 8 * trained
    # Of the caption, two slots: 1025, so 1088.
    assert found["always"]["keys and values"] == 16 * 1088 * 2 * 1280 * 36 * 2


def test_checkpointing_keeps_inputs_and_one_layer(janus: Architecture):
    found = memory(janus, replace(PLAN, gradient_checkpointing=True))["update"]["activations"]
    assert found == 4 * (40 + 575) * (30 * 4096 + 8 * 4096 + 4 * 11008) * 2


def test_adapters_need_no_second_copy(janus: Architecture):
    planned = memory(janus, replace(PLAN, lora_rank=16))
    found, adapters = planned["always"], 16 * 30 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    # What each adapter reads is kept in float32: 4096 channels of query, key, value, output, gate, up; 11008 of down.
    assert planned["update"]["adapters' inputs"] == 4 * (40 + 575) * 30 * (6 * 4096 + 11008) * 4
    assert found["weights"] == 2 * LANGUAGE and found["reference"] == found["float32 copies"] == 0
    assert found["merged adapters"] == 2 * MATRICES  # what decoding reads
    assert (found["adapters"], found["gradients"], found["moments"]) == (4 * adapters, 4 * adapters, 8 * adapters)


def test_floors_by_hand(janus: Architecture):
    """16 prompts on 8 GPUs: 2 prompts and 32 images each, sampled a prompt at a time."""
    found = floors(janus, PLAN)
    pairs = sum(40 + token for token in range(1, 576))  # the last of 576 tokens is never read
    decoding = 575 * 2 * MATRICES + 576 * 2 * HEAD + pairs * 4 * 4096 * 30
    reading = 40 * 2 * MATRICES + 40 * 41 / 2 * 4 * 4096 * 30
    assert found["operations"][0] == 2 * (32 * decoding + 2 * reading)
    assert found["bytes"][0] == 2 * 576 * (MATRICES + HEAD) * 2 + 2 * 32 * pairs * 2 * 4096 * 30 * 2
    forward = 615 * 2 * MATRICES + 615 * 616 / 2 * 4 * 4096 * 30
    # The prompt's own pairs and the tokens' make one triangle; forward, backward twice, the reference.
    assert found["operations"][1] == 32 * (4 * forward + 4 * 576 * 2 * HEAD)
    # AdamW: copy, gradient and two moments read, all but the gradient written, and the weight itself.
    assert found["bytes"][1] == 8 * 4 * MATRICES * 2 + (7 * 4 + 2) * LANGUAGE / 8


@pytest.mark.parametrize(
    ("room", "wanted"),
    [(1.0, 1), (0.0, 1), (1.3, 1), (2.0, 2), (4.5, 4), (11.9, 6), (12.0, 12), (99.0, 12)],
)
def test_as_many_prompts_as_fit_in_batches_of_one_size(janus: Architecture, room: float, wanted: int):
    """room: in prompts of which the buffers and logits fit, beside all else."""
    plan = replace(PLAN, gpus=1, prompts_per_step=12, group_size=4, lora_rank=16)
    one, two = (peaks(janus, replace(plan, rollout_batch=count)) for count in (1, 2))
    each = {phase: two[phase] - one[phase] for phase in one}
    most = max(one[phase] + (room - 1) * each[phase] for phase in one)
    assert most_prompts(janus, plan, most + 1) == wanted


@pytest.mark.parametrize(
    ("words", "card", "wanted"),
    [
        ("--preset janus-pro-1b-hps-critical --dtype bfloat16", 80, 8),
        ("--preset janus-pro-1b-hps-critical --dtype bfloat16", 24, 4),  # as many images as an evaluation samples
        ("--preset janus-pro-1b-hps-critical --dtype bfloat16 --rollout.micro-batch 3", 80, 3),
        ("--preset tiny-shapes-cfg --device cpu", 80, 0),
    ],
)
def test_a_run_that_leaves_it_open_takes_what_the_card_holds(
    words: str, card: int, wanted: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rollout_batch, "device_of", lambda device: "cpu" if device == "cpu" else "cuda")
    monkeypatch.setattr(rollout_batch, "memory_of", lambda device: card * 10**9)
    assert rollout_batch.with_rollout_batch(resolve(words.split())).rollout.micro_batch == wanted


def test_star_reads_its_weights_once_per_scale():
    model = architecture("star-256")
    plan = PlanConfig(model="star-256", prompts_per_step=1, group_size=2, rollout_batch=1)
    matrices = 30 * (3 + 1 + 1 + 1 + 4 + 4) * 1920**2
    scales, ends = (1, 4, 9, 16, 25, 36, 64, 100, 169, 256), (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    found = floors(model, plan)
    assert found["bytes"][0] == (10 * (matrices + 4096 * 1920) + 2 * 2 * sum(ends) * 2 * 1920 * 30) * 2
    pairs = sum(block * end for block, end in zip(scales, ends, strict=True))
    operations = 680 * 2 * (matrices + 4096 * 1920) + pairs * 4 * 1920 * 30
    assert found["operations"][0] == 2 * 2 * operations


def entries_kept(policy: Policy, layers: int) -> float:
    """Per token: float32 entries that the first layers keep for the backward pass, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.module.parameters()}
    alive: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            alive[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    del policy.layers[layers:]
    tokens = torch.zeros(4, policy.layout.tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.hidden(policy.encode(["a red ring"] * 4), tokens, branches=1)
    return sum(tensor.untyped_storage().nbytes() for tensor in alive.values()) / 4 / 4


@pytest.mark.parametrize("family", ["janus", "star"])
def test_a_layer_keeps_what_the_formula_says(family: str, janus: Architecture):
    policy = random_janus() if family == "janus" else random_star()
    by_two, by_one = entries_kept(policy, 2), entries_kept(policy, 1)
    if family == "janus":
        positions = policy.layout.tokens - 1 + int(policy.encode(["a red ring"]).tensors["lengths"][0])
        model = replace(janus, width=32, kv_width=32, mlp=48)
        here = 2 * 32  # without the fused kernel, RMSNorm keeps its output before the weight too
    else:
        positions = policy.layout.tokens
        model = replace(janus, family="star", width=32, kv_width=32, mlp=64)
        # Without it, attention's output is copied; and the text's keys and values, projected and normalised.
        here = 2 * 32 + 3 * 32 * TEXT_LENGTH / positions
    assert (by_two - by_one) / positions - here == pytest.approx(kept_by_layer(model), rel=0.04)


def test_the_command(capsys: pytest.CaptureFixture[str]):
    words = ["plan", "--model", "janus-pro-7b", "--gpus", "8", "--group-size", "16"]  # of train's preset, but for these
    assert main([*words, "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "language model                 6,490.9" in said and "it fits into 90% of 80 GB" in said
    assert "what is trained is split in 8 parts" in said and "bound by sampling" in said
    assert main([*words[:3], "--memory-gb", "24"]) == 0
    said = capsys.readouterr().out
    assert "it does NOT fit into 90% of 24 GB" in said and "split in" not in said


def test_a_plan_is_of_what_train_would_do(capsys: pytest.CaptureFixture[str]):
    column = find_preset("janus-pro-7b-geneval-cfg")
    plan = PlanConfig.of(column, "janus-pro-7b")
    assert (plan.dtype, plan.group_size, plan.update_batch, plan.reference) == ("float32", 16, 4, True)
    assert main(["plan", "--model", "deepseek-ai/Janus-Pro-7B"]) == 0
    by_model = capsys.readouterr().out
    assert main(["plan", "--preset", "janus-pro-7b-geneval-cfg"]) == 0
    assert capsys.readouterr().out == by_model and "177.36" in by_model
    assert main(["plan", "--preset", "janus-pro-7b-geneval-cfg-lora", "--memory-gb", "24"]) == 0
    assert "it fits into 90% of 24 GB" in capsys.readouterr().out


def test_what_is_sampled_at_once(janus: Architecture):
    """The whole group, a part of it or the held-out images, whichever are most."""
    keys = memory(janus, PLAN)["sampling"]["keys and values"]
    assert memory(janus, replace(PLAN, group_batch=4))["sampling"]["keys and values"] == keys / 4
    assert memory(janus, replace(PLAN, group_batch=4, evaluation_batch=8))["sampling"]["keys and values"] == keys / 2


def test_parameters_by_name(janus: Architecture):
    plan = replace(PLAN, gpus=1, trainable="generation_head")
    head = 4096 * 4096 + 4096 + 16384 * 4096 + 16384
    assert memory(janus, plan)["always"]["gradients"] == 4 * head


def test_what_cannot_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert "nothing here says what sizes" in capsys.readouterr().err
    assert main(["plan", "--gpus", "2"]) == 2
    assert capsys.readouterr().err == "t2i-rl: missing: --model (see t2i-rl plan --help)\n"
