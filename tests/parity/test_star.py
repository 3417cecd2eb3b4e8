"""STAR against the numbers of the original implementation."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.policy import Condition
from models.star.policy import NullText, StarConfig, StarPolicy
from models.star.transformer import StarTransformer
from models.star.vae import StarVae, sizes_of
from t2i_rl.rollout.distribution import filtered
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.models.small_star import random_text_encoder, word_tokenizer
from tests.parity.golden import golden_folder

GOLDEN = "star"
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
MODES = ("own", "pair")
ENCODED = sorted(
    name.removesuffix(".encode_input")
    for name in load_file(golden_folder(GOLDEN) / "io.safetensors")
    if name.endswith(".encode_input")
)  # the committed subset leaves the image encoder out


@pytest.fixture(scope="module")
def vae(folder: Path, config: dict) -> StarVae:
    path, scales = folder / "vae.safetensors", config["var"]["patch_nums"]
    weights = load_file(path)
    sizes = sizes_of(path, weights)
    assert (sizes.base_channels, sizes.num_res_blocks) == (config["vae"]["ch"], config["vae"]["num_res_blocks"])
    absent = StarVae(scales, sizes).to_tensors() if not ENCODED else {}
    return StarVae.from_tensors(path, absent | weights, scales)


@pytest.fixture(scope="module")
def policies(folder: Path, config: dict, vae: StarVae) -> dict[NullText, StarPolicy]:
    """The policy in both of its modes; texts come as features, so the text encoder is any."""
    path, var = folder / "var.safetensors", config["var"]
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    transformer = StarTransformer.from_tensors(path, weights)
    text = random_text_encoder(width=var["in_dim_cross"]), word_tokenizer()
    return {
        mode: StarPolicy(StarConfig(tuple(var["patch_nums"]), var["enable_logit_norm"], mode), transformer, vae, *text)
        for mode in MODES
    }


def condition(io: dict[str, Tensor]) -> Condition:
    def both(name: str) -> Tensor:
        return torch.stack([io[f"text_{name}"], io[f"null_{name}"].expand_as(io[f"text_{name}"])])

    tensors = {"hidden": both("hidden"), "visible": both("mask").bool(), "pooled": both("pooled")}
    return Condition(tuple(f"prompt {row}" for row in range(len(io["text_mask"]))), tensors)


def test_rotary_table(policies: dict[NullText, StarPolicy], io: dict[str, Tensor]) -> None:
    torch.testing.assert_close(policies["own"].rope[:, 0], io["rope.cos"], **TOLERANCE)
    torch.testing.assert_close(policies["own"].rope[:, 1], io["rope.sin"], **TOLERANCE)


def test_inputs_of_the_later_scales(vae: StarVae, io: dict[str, Tensor]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(vae.inputs(io["idx"]), io["var_input"], **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_teacher_forced_logits_alone_and_in_a_batch(
    policies: dict[NullText, StarPolicy], io: dict[str, Tensor], config: dict, mode: NullText
) -> None:
    policy, every = policies[mode], condition(io)
    scale = policy.guidance(config["cfg"]).repeat_interleave(torch.tensor(policy.layout.blocks))[:, None]
    for rows in [[row] for row in range(len(every))] + [list(range(len(every)))]:
        with torch.no_grad():
            cond, uncond = policy.head(policy.hidden(every.take(rows), io["idx"][rows], branches=2))
        torch.testing.assert_close(cond, io["own.cond_logits"][rows], **TOLERANCE)
        torch.testing.assert_close(uncond, io[f"{mode}.uncond_logits"][rows], **TOLERANCE)
        guided = uncond + scale * (cond - uncond)
        torch.testing.assert_close(guided, io[f"{mode}.cfg_logits"][rows], **TOLERANCE)
        for kind, logits in (("cond", cond), ("cfg", guided)):
            if mode == "own":
                found = logits.log_softmax(-1).gather(-1, io["idx"][rows][..., None])[..., 0]
                torch.testing.assert_close(found, io[f"own.{kind}_logprobs"][rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_guided_greedy_sampling(
    policies: dict[NullText, StarPolicy], io: dict[str, Tensor], config: dict, mode: NullText
) -> None:
    policy, every = policies[mode], condition(io)
    sampled = sample_group(policy, every, 1, Sampling(temperature=0.0, guidance_scale=config["cfg"]), Noise(0))
    assert torch.equal(sampled.tokens[:, 0], io[f"{mode}.greedy_tokens"])


@pytest.mark.parametrize("mode", MODES)
def test_guided_logits_with_the_cache(
    policies: dict[NullText, StarPolicy], io: dict[str, Tensor], config: dict, mode: NullText
) -> None:
    policy, guidance = policies[mode], policies[mode].guidance(config["cfg"])
    expected = io[f"{mode}.greedy_cfg_logits"].split(policy.layout.blocks, dim=1)
    tokens = io[f"{mode}.greedy_tokens"].split(policy.layout.blocks, dim=1)
    state = policy.prefill(condition(io), group_size=1, branches=2)
    for scale, (logits, chosen) in enumerate(zip(expected, tokens, strict=True)):
        cond, uncond = policy.next_logits(state)
        torch.testing.assert_close(uncond + guidance[scale] * (cond - uncond), logits, **TOLERANCE)
        if scale + 1 < len(tokens):
            policy.append(state, chosen)


def test_feature_maps_after_each_scale(vae: StarVae, io: dict[str, Tensor]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(vae.features(io["own.greedy_tokens"]), io["own.greedy_fhat"], **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_pixels(policies: dict[NullText, StarPolicy], vae: StarVae, io: dict[str, Tensor], mode: NullText) -> None:
    tokens = io[f"{mode}.greedy_tokens"]
    with torch.no_grad():
        pixels = vae.pixels(vae.features(tokens)[-1])
    torch.testing.assert_close(pixels, io[f"{mode}.greedy_image"], atol=1e-4, rtol=0)
    expected = (io[f"{mode}.greedy_image"] * 255).to(torch.uint8).int()
    if mode == "own":
        assert torch.equal(expected, io["own.greedy_uint8"].permute(0, 3, 1, 2).int())
    difference = policies[mode].decode(tokens).int() - expected
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() <= 1e-3


@pytest.mark.parametrize("case", ENCODED)
def test_tokens_of_an_image(vae: StarVae, io: dict[str, Tensor], case: str) -> None:
    with torch.no_grad():
        assert torch.equal(vae.encode(io[f"{case}.encode_input"]), io[f"{case}.encode_tokens"])


def test_sampling_filters(io: dict[str, Tensor]) -> None:
    cases = [name for name in io if name.startswith("filter.probs_")]
    assert cases
    for case in cases:
        top_k, top_p = case.removeprefix("filter.probs_k").split("_p")
        sampling = Sampling(top_k=int(top_k), top_p=int(top_p) / 10, guidance_scale=1.0)
        found = filtered(io["filter.logits"], sampling).softmax(-1)
        torch.testing.assert_close(found, io[case], atol=1e-5, rtol=1e-5)
