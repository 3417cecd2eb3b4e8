"""What a run may choose of a policy, on every family: recomputed layers, parameters to train, precision."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.policy import Policy
from models.registry import load
from models.trainable import choose_trainable
from t2i_rl.rollout.log_probs import log_probs
from tests.models.families import ALL_FAMILIES, save_family

PROMPTS = ["a photo of a red circle", "two squares"]


@pytest.fixture(params=ALL_FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(save_family(request.param, tmp_path / "model"))


def drawn_log_probs(policy: Policy) -> Tensor:
    tokens = torch.randint(32, (len(PROMPTS), policy.layout.tokens), generator=torch.Generator().manual_seed(0))
    return log_probs(policy, policy.encode(PROMPTS), tokens)


def gradients(policy: Policy) -> dict[str, Tensor]:
    drawn_log_probs(policy).sum().backward()
    return {name: value.grad for name, value in policy.module.named_parameters() if value.grad is not None}


def sizes_kept(policy: Policy) -> list[int]:
    """Entries of every tensor that the backward pass asks for."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        drawn_log_probs(policy)
    return sizes


def test_recomputed_layers_give_the_same_gradients_and_keep_less(checkpoint: str):
    kept: dict[bool, int] = {}
    found: dict[bool, dict[str, Tensor]] = {}
    for recomputed in (False, True):
        policy = load(checkpoint)
        policy.gradient_checkpointing = recomputed
        kept[recomputed], found[recomputed] = sum(sizes_kept(policy)), gradients(policy)
    assert found[True].keys() == found[False].keys() and len(found[True]) > 10
    assert all(torch.equal(found[True][name], value) for name, value in found[False].items())
    assert kept[True] < kept[False] / 2


def test_half_precision_is_near(checkpoint: str):
    whole = drawn_log_probs(load(checkpoint)).detach()
    for dtype, apart in ((torch.bfloat16, 0.3), (torch.float16, 0.03)):
        policy = load(checkpoint, dtype)
        assert {parameter.dtype for parameter in policy.layers.parameters()} == {dtype}
        half = drawn_log_probs(policy).detach()
        assert half.dtype == torch.float32 and 0 < (half - whole).abs().mean() < apart


def test_chosen_parameters_are_what_is_trained(checkpoint: str):
    policy = load(checkpoint)
    names = [name for name, _ in policy.layers[1].named_parameters()]
    choose_trainable(policy, r"(?<!visual\.)(layers|blocks)\.1\.")
    assert len(list(policy.trainable_parameters())) == len(names)
    moved = gradients(policy)
    assert len(moved) == len(names) and all(".1." in name for name in moved)
    reference = policy.reference()
    shared = {parameter.data_ptr() for parameter in reference.module.parameters()}
    own = {parameter.data_ptr() for parameter in policy.trainable_parameters()}
    assert not own & shared and not list(reference.trainable_parameters())


def test_the_head_of_janus_can_be_trained(tmp_path: Path):
    policy = load(str(save_family("janus", tmp_path / "model")))
    choose_trainable(policy, "generation_head|generation_aligner")
    assert {name.split(".")[1] for name in gradients(policy)} == {"generation_head", "generation_aligner"}


@pytest.mark.parametrize(
    ("pattern", "says"), [("lm_tail", "are in .*model.language_model"), ("(", "no regular expression")]
)
def test_what_names_nothing_is_refused(pattern: str, says: str, tmp_path: Path):
    policy = load(str(save_family("janus", tmp_path / "model")))
    with pytest.raises(ModelError, match=says):
        choose_trainable(policy, pattern)
