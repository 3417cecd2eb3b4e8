"""PAD fills the unconditional row: its embedding takes no gradient, whatever the checkpoint's format says of it."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.janus.checkpoint import Format, JanusCheckpoint
from models.janus.policy import JanusPolicy
from t2i_rl.rollout.log_probs import TokenDistribution, log_probs
from t2i_rl.rollout.sampling import LogProb, Sampling
from tests.conftest import random_janus

PROMPTS = ["a photo of a red circle", "a photo of two rings and a square"]
FORMATS: tuple[Format, ...] = ("transformers", "deepseek")


@pytest.fixture
def formats(tmp_path: Path) -> dict[Format, Path]:
    """The same weights twice; transformers' config names the PAD, as the published one does."""
    folders = {format: tmp_path / format for format in FORMATS}
    policy = random_janus()
    policy.save(folders["transformers"])
    path = folders["transformers"] / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["pad_token_id"] = policy.tokenizer.pad_token_id
    path.write_text(json.dumps(config))
    folders["deepseek"].mkdir()
    JanusCheckpoint.open(folders["transformers"]).export("deepseek", folders["deepseek"])
    return folders


def gradients(policy: JanusPolicy, mode: LogProb) -> dict[str, Tensor]:
    tokens = torch.randint(32, (len(PROMPTS), policy.layout.tokens), generator=torch.Generator().manual_seed(0))
    distribution = TokenDistribution(mode, Sampling(guidance_scale=5.0))
    log_probs(policy, policy.encode(PROMPTS), tokens, distribution).sum().backward()
    return {name: value.grad for name, value in policy.module.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("mode", ["cond", "cfg"])
def test_both_formats_have_the_same_gradients(formats: dict[Format, Path], mode: LogProb):
    ours, theirs = (gradients(JanusPolicy.load(formats[format]), mode) for format in FORMATS)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("format", FORMATS)
def test_pad_alone_is_left_out(formats: dict[Format, Path], format: Format):
    """The other ids of both rows, such as BOS and begin-of-image, are trained."""
    policy = JanusPolicy.load(formats[format])
    rows = gradients(policy, "cfg")["model.language_model.embed_tokens.weight"].abs().sum(1)
    used = policy.encode(PROMPTS).tensors["ids"].unique()
    pad = policy.tokenizer.pad_token_id
    assert pad in used and set(rows.nonzero()[:, 0].tolist()) == {*used.tolist()} - {pad}
