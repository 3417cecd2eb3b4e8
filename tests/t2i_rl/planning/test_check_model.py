"""`t2i-rl check`: every line ok on a sound checkpoint of each family, and the right one WRONG on a broken one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.janus.policy import JanusPolicy
from models.lora import adapt
from models.parts import llama
from models.policy import Policy
from models.qwen_vl import policy as qwen_vl
from models.registry import load
from models.star.policy import StarPolicy
from t2i_rl.cli import main
from t2i_rl.planning.check_model import Finding, findings, shapes
from t2i_rl.rollout.sampling import Sampling
from tests.conftest import random_janus
from tests.models.families import FAMILIES, save_family
from tests.models.small_qwen_vl import KINDS, random_qwen
from tests.models.small_star import random_star

CHECKS = ["shapes", "weights", "cached = one pass", "alone = in a batch", "pictures", "speed"]


@pytest.fixture(params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return save_family(request.param, tmp_path / "model")


def found(policy: Policy, tmp_path: Path) -> dict[str, Finding]:
    sampling = Sampling() if policy.stop_tokens else Sampling(guidance_scale=2.0)
    made = findings(policy, "a folder", sampling, 0, tmp_path / "sheet.png")
    return {finding.name: finding for finding in made}


def wrong(policy: Policy, tmp_path: Path) -> set[str]:
    return {name for name, finding in found(policy, tmp_path).items() if not finding.fine}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_sound_checkpoint(checkpoint: Path, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["check", "--model", str(checkpoint), "--dtype", dtype, "--out", str(tmp_path / "out" / "sheet.png")]
    assert main([*words, "--guidance-scale", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert [re.split(r"\s{2,}", line)[1] for line in lines][2:] == CHECKS
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_adapters_are_checked_too(tmp_path: Path):
    base = save_family("janus", tmp_path / "model")
    assert not wrong(adapt(load(str(base)), str(base), rank=2, alpha=4.0), tmp_path)


def nan(policy: JanusPolicy) -> None:
    policy.language_model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")


def unfilled(policy: JanusPolicy) -> None:
    policy.language_model.layers[1].mlp.up_proj.weight.zero_()


def blank(policy: JanusPolicy) -> None:
    policy.model.model.vqmodel.decoder.conv_out.weight.zero_()


def two_bos(policy: JanusPolicy) -> None:
    bos = policy.tokenizer.bos_token_id
    policy._token_ids = lambda prompts: [[bos, *row] for row in JanusPolicy._token_ids(policy, prompts)]


def other_pad(policy: JanusPolicy) -> None:
    encode = policy.encode
    policy.encode = lambda prompts: encode(prompts, ["a ring"] * len(prompts))


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (nan, {"weights", "logits"}),
        (unfilled, {"weights"}),
        (blank, {"pictures"}),
        (two_bos, {"token ids and template"}),
        (other_pad, {"token ids and template"}),
    ],
)
def test_a_broken_janus(broken: Callable[[JanusPolicy], None], names: set[str], tmp_path: Path):
    policy = random_janus()
    with torch.no_grad():
        broken(policy)
    assert names <= wrong(policy, tmp_path) <= names | {"pictures"}


def test_padding_that_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama, "causal_mask", lambda pads, width: None)
    assert "alone = in a batch" in wrong(random_janus(), tmp_path)


def test_a_cache_at_the_wrong_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append = JanusPolicy.append

    def late(self, state, tokens):
        state.cos, state.sin = state.cos.roll(1, 0), state.sin.roll(1, 0)
        append(self, state, tokens)

    monkeypatch.setattr(JanusPolicy, "append", late)
    assert wrong(random_janus(), tmp_path) == {"cached = one pass"}


def test_a_scale_read_at_the_wrong_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = random_star()
    append = StarPolicy.append

    def shifted(self, state, tokens):
        append(self, state, tokens)
        state.hidden = state.hidden.roll(1, 1)

    monkeypatch.setattr(StarPolicy, "append", shifted)
    assert wrong(policy, tmp_path) == {"cached = one pass"}


def test_another_size_than_the_table(tmp_path: Path):
    (finding,) = shapes(random_janus(), "janus-pro-1b")
    assert not finding.fine and re.match(r"\d+ tensors of the table of janus-pro-1b are missing", finding.seen)
    (finding,) = shapes(random_janus(grid=12), "tiny")
    assert not finding.fine


def test_what_is_wrong_is_said_and_the_exit_code_is_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = save_family("janus", tmp_path / "model")
    monkeypatch.setattr(llama, "causal_mask", lambda pads, width: None)
    words = ["check", "--model", str(model), "--out", str(tmp_path / "sheet.png")]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "\nWRONG  alone = in a batch" in said.out
    assert said.err.count("\n") == 1 and "of the checks above say why" in said.err
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert main(words) == 2
    assert "model.safetensors is torn" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_answers(kind: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = save_family(kind, tmp_path / "model")
    assert main(["check", "--model", str(model), "--dtype", dtype, "--out", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    names = [re.split(r"\s{2,}", line)[1] for line in lines]
    assert names[1:] == ["token ids and template", *("answers" if name == "pictures" else name for name in CHECKS)]
    assert re.search(r"of 4 ended within 32 tokens; the first: '", lines[-2]) and "answers/s" in lines[-1]
    assert not (tmp_path / "sheet.png").exists()


def test_pictures_whose_tokens_are_placed_like_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = random_qwen("qwen2_5_vl", tmp_path / "model")
    monkeypatch.setattr(qwen_vl, "mrope_positions", lambda ids, *_: torch.arange(len(ids)).expand(3, -1))
    assert wrong(policy, tmp_path) == {"token ids and template"}


def test_answers_that_begin_at_the_wrong_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = random_qwen("qwen2_5_vl", tmp_path / "model")
    prefill = policy.prefill

    def late(*arguments):
        state = prefill(*arguments)
        state.position = state.position + 1
        return state

    monkeypatch.setattr(policy, "prefill", late)
    assert wrong(policy, tmp_path) == {"cached = one pass"}
