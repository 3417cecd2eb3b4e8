"""On a CUDA device: what the CPU's tests say of the tiny model, in float32 and in bfloat16."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.lora import adapt
from models.parts.logits import logits
from models.policy import Policy
from models.registry import load
from t2i_rl.cli import main
from t2i_rl.planning.check_model import findings
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import log_probs
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS
from t2i_rl.rollout.steps import kept

DEVICE = "cuda"
PROMPTS = ["a photo of a ring", "a photo of a red circle and a blue cross"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_sound(dtype: torch.dtype, tmp_path: Path):
    """Cached and teacher-forced, alone and in a batch, pictures."""
    found = findings(load("tiny", dtype, DEVICE), "tiny", Sampling(1.5), 0, tmp_path / "sheet.png")
    assert [str(one) for one in found if not one.fine] == []


def test_the_tokens_are_those_of_the_cpu():
    """The same noise; in float32 near-ties are too rare to be met here."""
    statistics = ["entropy", "kl_cond_uncond", "logp_cond"]
    here, there = (
        sample_group(policy, policy.encode(PROMPTS), 2, Sampling(1.5), Noise(0), statistics)
        for policy in (load("tiny"), load("tiny", device=DEVICE))
    )
    assert torch.equal(there.tokens.cpu(), here.tokens)
    for name in statistics:
        torch.testing.assert_close(there.statistics[name].cpu(), here.statistics[name], atol=1e-4, rtol=1e-3)


def drawn(policy: Policy, prompts: list[str], group: int, capture: bool, **settings: float) -> Rollout:
    """With all that methods measure, in steps that are captured or not."""
    own, names = kept(policy), [name for name in STATISTICS if name != "logp_cfg"]
    if own.capture != capture:
        own.capture, own.steps = capture, None
    found = sample_group(policy, policy.encode(prompts), group, Sampling(1.5, **settings), Noise(0), names)
    assert bool(own.steps.graphs) == capture
    return found


def same(policy: Policy, prompts: list[str], group: int, **settings: float) -> None:
    """Captured and eager in turn, and captured once more in the buffers of before. Kernels that are compiled round
    otherwise, so a token may differ by a near-tie; in float32 none does here."""
    captured, again = (drawn(policy, prompts, group, True, **settings) for _ in range(2))
    eager = drawn(policy, prompts, group, False, **settings)
    assert torch.equal(again.tokens, captured.tokens)
    assert torch.equal(captured.tokens, eager.tokens)
    for name, values in eager.statistics.items():
        torch.testing.assert_close(captured.statistics[name], values, atol=2e-3, rtol=2e-3, msg=name)


@pytest.mark.parametrize("settings", [{}, {"top_k": 50, "temperature": 0.9}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_step_is_the_eager_one(compiled: bool, settings: dict[str, float]):
    """Two rows and twelve, more than one bucket of slots, and prompts of another width."""
    policy = load("tiny", device=DEVICE)
    kept(policy).compiled = compiled
    same(policy, PROMPTS[:1], 1, **settings)
    same(policy, PROMPTS, 3, **settings)
    same(policy, [PROMPTS[0], "a photo of two rings"], 3, **settings)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_reads_the_weights_of_an_update(dtype: torch.dtype, adapted: bool):
    policy = load("tiny", dtype, DEVICE)
    if adapted:
        policy = adapt(policy, "tiny", rank=4, alpha=8.0)
    before = drawn(policy, PROMPTS, 6, True)
    graphs = kept(policy).steps.graphs
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=0.02, fused=True)
    for _ in range(2):
        condition, tokens = before.row_condition, before.tokens.flatten(0, 1)
        log_probs(policy, condition, tokens).sum().backward()
        optimizer.step()
    after = drawn(policy, PROMPTS, 6, True)
    assert kept(policy).steps.graphs is graphs
    assert not torch.equal(after.tokens, before.tokens)
    forced = measure(policy, after, Sampling(1.5), ["logp_cond"], micro_batch=2)["logp_cond"]
    apart = 1e-3 if dtype == torch.float32 else 0.5
    assert (after.statistics["logp_cond"] - forced).abs().mean() < apart


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_not_rounded(dtype: torch.dtype, bias: bool):
    """Values against float64, gradients against those of the rounded product."""
    torch.manual_seed(0)
    last = torch.nn.Linear(256, 512, bias=bias, device=DEVICE, dtype=dtype)
    x = torch.randn(2, 7, 256, device=DEVICE, dtype=dtype, requires_grad=True)
    found = logits(last, x)
    exact = torch.nn.functional.linear(*(one.double() for one in (x, *last.parameters())))
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5 * exact.std()
    pull, leaves = torch.randn_like(found), [x, *last.parameters()]
    pairs = zip(
        torch.autograd.grad((found * pull).sum(), leaves),
        torch.autograd.grad((last(x).float() * pull).sum(), leaves),
        strict=True,
    )
    for one, other in pairs:
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.02)


def test_compiled_layers_are_the_eager_ones():
    """Values and gradients, to the rounding of float32."""
    policy, found = load("tiny", device=DEVICE), []
    tokens = torch.arange(2 * policy.layout.tokens, device=DEVICE).view(2, -1) % 32
    for policy.compiled in (False, True):
        values = log_probs(policy, policy.encode(PROMPTS), tokens)
        pulls = torch.autograd.grad(values.sum(), list(policy.trainable_parameters()), allow_unused=True)
        found.append([values, *(pull for pull in pulls if pull is not None)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["cfg", "critical"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_and_its_continuation(method: str, dtype: str, tmp_path: Path):
    run = tmp_path / "run"
    little = "--rollout.prompts-per-step 2 --rollout.group-size 4 --evaluation.images-per-tag 1 --checkpoint.every 1"
    words = ["train", "--model", "tiny", "--method", method, "--dtype", dtype, "--device", DEVICE, "--out", str(run)]
    assert main([*words, "--steps", "1", *little.split()]) == 0
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 < row["grad_norm"] < 100 for row in rows[1:] if row["zero_variance"] < 1)


COMMAND = "import sys; from t2i_rl.cli import main; sys.exit(main())"


def state(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer moments after the second step."""
    checkpoint = run / "checkpoints" / "step-000002"
    return load_file(checkpoint / "optimizer-00001-of-00001.safetensors") | load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize("method", ["cfg", "critical"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_deterministic_run_goes_on_bit_for_bit(method: str, dtype: str, tmp_path: Path):
    """In processes of their own: cuBLAS reads how it is to choose once, at its first product."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = ["--model", "tiny", "--method", method, "--dtype", dtype, "--device", DEVICE, "--out", str(whole)]
    little = "--rollout.prompts-per-step 2 --rollout.group-size 4 --evaluation.images-per-tag 1 --checkpoint.every 1"
    words += ["--steps", "2", "--deterministic", *little.split()]
    subprocess.run([sys.executable, "-c", COMMAND, "train", *words], check=True)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000002")
    subprocess.run([sys.executable, "-c", COMMAND, "train", "--resume", str(resumed)], check=True)
    found, wanted = state(resumed), state(whole)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("more", [[], ["--lora.rank", "4"], ["--parallel.shard", "1"], ["--parallel.offload"]])
def test_two_gpus_do_what_one_does(more: list[str], tmp_path: Path):
    """Over NCCL: the images of one process, and its weights but for the order of sums; then on again with one."""
    words = ["--model", "tiny", "--method", "cfg", "--device", DEVICE, "--steps", "2", *more]
    words += ["--rollout.prompts-per-step", "4", "--rollout.group-size", "4", "--evaluation.images-per-tag", "1"]
    many = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for start, run in (([sys.executable], "one"), (many, "two")):
        subprocess.run([*start, "-m", "t2i_rl", "train", *words, "--out", str(tmp_path / run)], check=True)
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    for row, wanted in zip(two, one, strict=True):
        for name in ("reward", "heldout", "kl", "grad_norm"):
            assert row.get(name) == pytest.approx(wanted.get(name), rel=1e-2, abs=1e-4)
    assert main(["train", "--resume", str(tmp_path / "two"), "--steps", "3"]) == 0
