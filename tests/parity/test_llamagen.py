"""LlamaGen against the numbers of the original implementation.

The committed subset leaves out LlamaGen's image tokenizer: Janus's, of the same layout and sizes, stands in for it.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.llamagen.policy import LlamaGenPolicy
from models.llamagen.transformer import LlamaGenTransformer, rope_table
from models.parts.vq import load_vq, original_weights
from models.policy import Condition
from t2i_rl.rollout.distribution import filtered
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.parity.golden import golden_folder

GOLDEN = "llamagen"
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def transformer(folder: Path, config: dict) -> LlamaGenTransformer:
    path = folder / "gpt.safetensors"
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    return LlamaGenTransformer.from_weights(weights, config["gpt"], path)


def vq_weights(folder: Path) -> dict[str, Tensor]:
    """The image tokenizer of a set: LlamaGen's lies in a file of its own, Janus's among the other weights."""
    if (folder / "vq.safetensors").is_file():
        return load_file(folder / "vq.safetensors")
    prefix = "gen_vision_model."
    weights = load_file(golden_folder("janus") / "weights.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def policy(folder: Path, config: dict, transformer: LlamaGenTransformer) -> LlamaGenPolicy:
    vq = load_vq(vq_weights(folder), config["grid_size"], folder)
    return LlamaGenPolicy(transformer, vq, text=None, config={})  # type: ignore[arg-type]  # the features are given


def condition(policy: LlamaGenPolicy, io: dict[str, Tensor], rows: list[int]) -> Condition:
    features = [io["t5.features"][row][io["t5.mask"][row].bool()] for row in rows]
    return policy.condition_from_features([str(row) for row in rows], [features, policy.null_rows(features)])


def cases(io: dict[str, Tensor]) -> list[list[int]]:
    """Each prompt alone, and all of them together."""
    every = list(range(len(io["image_ids"])))
    return [*([row] for row in every), every]


def test_features_are_left_padded(policy: LlamaGenPolicy, io: dict[str, Tensor]) -> None:
    found = condition(policy, io, cases(io)[-1]).tensors
    width = found["features"].shape[2]
    assert torch.equal(found["lengths"][0], io["emb_mask"].sum(-1))
    assert torch.equal(found["features"][0], io["cond"][:, -width:])
    assert not io["cond"][:, :-width].any()  # the padding that is left out here


def test_rotary_table(transformer: LlamaGenTransformer, config: dict, io: dict[str, Tensor]) -> None:
    expected = io["rope.cos_sin"]
    half = expected.shape[1]
    text_rows = config["gpt"]["cls_token_num"]
    like = transformer.lm_head.weight
    cos, sin = rope_table(config["grid_size"], text_rows, 2 * half, transformer.rope_base, like)
    torch.testing.assert_close(cos, expected[..., 0].repeat(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, torch.cat([-expected[..., 1], expected[..., 1]], -1), atol=1e-6, rtol=0)


def test_teacher_forced_logits_alone_and_in_a_mixed_batch(policy: LlamaGenPolicy, io: dict[str, Tensor]) -> None:
    for rows in cases(io):
        cond, uncond = policy.head(policy.hidden(condition(policy, io, rows), io["image_ids"][rows], branches=2))
        torch.testing.assert_close(cond, io["cond_logits"][rows], **TOLERANCE)
        torch.testing.assert_close(uncond, io["uncond_logits"][rows], **TOLERANCE)


def test_guided_logits_and_log_probabilities(policy: LlamaGenPolicy, io: dict[str, Tensor], config: dict) -> None:
    tokens = io["image_ids"]
    cond, uncond = policy.head(policy.hidden(condition(policy, io, cases(io)[-1]), tokens, branches=2))
    guided = uncond + config["cfg_scale"] * (cond - uncond)
    torch.testing.assert_close(guided, io["cfg_logits"], **TOLERANCE)
    for kind, logits in (("cond", cond), ("cfg", guided)):
        found = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        torch.testing.assert_close(found, io[f"{kind}_logprobs"], **TOLERANCE)


@pytest.fixture
def policies(policy: LlamaGenPolicy, config: dict) -> dict[str, tuple[LlamaGenPolicy, float]]:
    """What decodes each greedy case, and at which scale."""
    interval = LlamaGenPolicy(policy.transformer, policy.vq, policy.text, {"cfg_interval": config["cfg_interval"]})
    scale = config["cfg_scale"]
    return {"greedy": (policy, scale), "greedy_interval": (interval, scale), "greedy_nocfg": (policy, 1.0)}


@pytest.mark.parametrize("case", ["greedy", "greedy_interval", "greedy_nocfg"])
def test_greedy_decoding_with_the_cache(
    policies: dict[str, tuple[LlamaGenPolicy, float]], case: str, io: dict[str, Tensor]
) -> None:
    policy, scale = policies[case]
    rows, expected = cases(io)[-1], io["greedy_cfg_logits" if case == "greedy" else f"{case}_logits"]
    guidance = policy.guidance(scale)
    state = policy.prefill(condition(policy, io, rows), group_size=1, branches=2)
    for step in range(policy.layout.tokens):
        cond, uncond = policy.next_logits(state)[:, :, 0]
        guided = uncond + guidance[step] * (cond - uncond)
        torch.testing.assert_close(guided, expected[:, step], **TOLERANCE)
        tokens = guided.argmax(-1)
        assert torch.equal(tokens, io[f"{case}_tokens"][:, step])
        if step < policy.layout.tokens - 1:
            policy.append(state, tokens[:, None])


@pytest.mark.parametrize("case", ["greedy", "greedy_interval", "greedy_nocfg"])
def test_the_sampler_finds_the_greedy_tokens(
    policies: dict[str, tuple[LlamaGenPolicy, float]], case: str, io: dict[str, Tensor]
) -> None:
    policy, scale = policies[case]
    sampling = Sampling(guidance_scale=scale, temperature=0)
    for rows in cases(io):
        found: Rollout = sample_group(policy, condition(policy, io, rows), 2, sampling, Noise(seed=0))
        assert torch.equal(found.tokens, io[f"{case}_tokens"][rows][:, None].expand(-1, 2, -1))


def test_filters(io: dict[str, Tensor]) -> None:
    names = [name for name in io if name.startswith("filter.probs")]
    assert names
    for name in names:
        temperature, top_k, top_p = (part[1:] for part in name.removeprefix("filter.probs_").split("_"))
        sampling = Sampling(temperature=decimal(temperature), top_k=int(top_k), top_p=decimal(top_p))
        torch.testing.assert_close(filtered(io["filter.logits"], sampling).softmax(-1), io[name], atol=1e-6, rtol=1e-5)


def decimal(text: str) -> float:
    """`08` is 0.8, `1` is 1."""
    return float(f"{text[0]}.{text[1:] or 0}")


def sets_with_pixels() -> list[str]:
    return ["janus", *(["llamagen"] if (golden_folder("llamagen") / "vq.safetensors").is_file() else [])]


@pytest.mark.parametrize("name", sets_with_pixels())
def test_pixels(name: str, policy: LlamaGenPolicy, config: dict) -> None:
    io = load_file(golden_folder(name) / "io.safetensors")
    vq = load_vq(vq_weights(golden_folder(name)), config["grid_size"], golden_folder(name))
    tokens = io["vq.tokens"].long()
    torch.testing.assert_close(vq.decode(tokens), io["vq.pixels"], atol=1e-4, rtol=0)

    # LlamaGen rounds to bytes, Janus truncates.
    expected = io["vq.uint8"].int() if name == "llamagen" else rounded(io["vq.pixels"]).permute(0, 2, 3, 1).int()
    images = LlamaGenPolicy(policy.transformer, vq, policy.text, {}).decode(tokens)
    difference = images.permute(0, 2, 3, 1).int() - expected
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() <= 1e-3


def rounded(pixels: Tensor) -> Tensor:
    return ((pixels + 1) / 2 * 255).clamp(0, 255).round()


def test_a_copy_in_transformers_style_is_the_same_model(
    policy: LlamaGenPolicy, folder: Path, config: dict, io: dict[str, Tensor]
) -> None:
    renamed = json.loads((folder / "hf_key_map.json").read_text())
    original = policy.transformer.named_weights()
    copied = {}
    for name, tensor in original.items():
        names = renamed[name] if isinstance(renamed[name], list) else [renamed[name]]
        copied |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    twin = LlamaGenTransformer.from_weights(copied, {"num_attention_heads": config["gpt"]["n_head"]}, folder)
    assert twin.named_weights().keys() == copied.keys()
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, policy.transformer.state_dict()[name]), name


def test_the_weights_come_back_as_they_were(policy: LlamaGenPolicy, folder: Path) -> None:
    expected = load_file(folder / "gpt.safetensors"), vq_weights(folder)
    for found, wanted in zip((policy.transformer.named_weights(), original_weights(policy.vq)), expected, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor.float()) for name, tensor in wanted.items())
