"""Janus against the numbers of the original implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from models.janus import JanusPolicy, condition_from_ids
from models.policy import Condition
from tests.parity.golden import golden_folder

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


class IdsOnly:
    """Stands in for the tokenizer: the fixture gives token ids."""

    def __init__(self, pad: int) -> None:
        self.pad_token_id = pad


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden_folder("janus")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def policy(folder: Path, config: dict) -> JanusPolicy:
    language, toolkit, vq = config["language_config"], config["toolkit"], config["toolkit"]["vq"]
    aligner = config["gen_aligner_config"]["params"]
    head = config["gen_head_config"]["params"]
    patch = 2 ** (len(vq["channel_multiplier"]) - 1)
    fields = {name: value for name, value in language.items() if name not in ("model_type", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": language["rope_theta"]}
    model = JanusForConditionalGeneration(
        JanusConfig(
            text_config=LlamaConfig(**fields, rope_parameters=rope),
            vision_config=JanusVisionConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                mlp_ratio=1.0,
                depth=1,
                image_size=patch * toolkit["grid_size"],
                patch_size=patch,
                projection_dim=language["hidden_size"],
                num_image_tokens=toolkit["num_image_tokens"],
            ),
            vq_config=JanusVQVAEConfig(
                embed_dim=vq["codebook_dim"],
                num_embeddings=vq["codebook_size"],
                latent_channels=vq["z_channels"],
                base_channels=vq["base_channels"],
                channel_multiplier=vq["channel_multiplier"],
                num_res_blocks=vq["num_res_blocks"],
                projection_dim=aligner["n_embed"],
                image_token_embed_dim=head["image_token_embed"],
            ),
            tie_word_embeddings=False,
        )
    )
    renamed = json.loads((folder / "hf_key_map.json").read_text())
    weights = {renamed[key]: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith(("model.vision_model.", "model.aligner.")) for key in missing)
    return JanusPolicy(model, IdsOnly(toolkit["pad_token_id"]))  # type: ignore[arg-type]


def condition(policy: JanusPolicy, io: dict[str, Tensor], cases: list[str]) -> Condition:
    branches = [[io[f"{case}.{kind}"][0].tolist() for case in cases] for kind in ("prompt_ids", "uncond_ids")]
    return condition_from_ids(tuple(cases), branches, policy.tokenizer.pad_token_id, policy.device)


def cases_of(io: dict[str, Tensor]) -> list[str]:
    return sorted({key.split(".")[0] for key in io if key.startswith("single")})


def test_teacher_forced_logits_alone_and_in_a_mixed_batch(policy: JanusPolicy, io: dict[str, Tensor]) -> None:
    cases = cases_of(io)
    for group in [[case] for case in cases] + [cases]:
        tokens = torch.cat([io[f"{case}.image_ids"] for case in group]).long()
        logits = policy.head(policy.hidden(condition(policy, io, group), tokens, branches=2))
        for row, case in enumerate(group):
            torch.testing.assert_close(logits[0, row], io[f"{case}.cond_logits"][0], **TOLERANCE)
            torch.testing.assert_close(logits[1, row], io[f"{case}.uncond_logits"][0], **TOLERANCE)


def test_guided_greedy_decoding_with_the_cache(policy: JanusPolicy, io: dict[str, Tensor], config: dict) -> None:
    cases = cases_of(io)
    guidance = policy.guidance(config["toolkit"]["cfg_weight"])
    state = policy.prefill(condition(policy, io, cases), group_size=1, branches=2)
    for step in range(policy.layout.tokens):
        cond, uncond = policy.next_logits(state)[:, :, 0]
        guided = uncond + guidance[step] * (cond - uncond)
        expected = torch.cat([io[f"{case}.greedy_cfg_logits"][:, step] for case in cases])
        torch.testing.assert_close(guided, expected, **TOLERANCE)
        tokens = guided.argmax(-1)
        assert tokens.tolist() == [io[f"{case}.greedy_tokens"][0, step].item() for case in cases]
        if step < policy.layout.tokens - 1:
            policy.append(state, tokens[:, None])


def test_log_probabilities_of_both_definitions(policy: JanusPolicy, io: dict[str, Tensor], config: dict) -> None:
    scale = config["toolkit"]["cfg_weight"]
    for case in cases_of(io):
        tokens = io[f"{case}.image_ids"].long()
        cond, uncond = policy.head(policy.hidden(condition(policy, io, [case]), tokens, branches=2))
        for kind, logits in (("cond", cond), ("cfg", uncond + scale * (cond - uncond))):
            found = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
            torch.testing.assert_close(found, io[f"{case}.{kind}_logprobs"], atol=1e-4, rtol=1e-4)


def test_pixels(policy: JanusPolicy, io: dict[str, Tensor]) -> None:
    tokens = io["vq.tokens"].long()
    with torch.no_grad():
        torch.testing.assert_close(policy.model.model.vqmodel.decode(tokens), io["vq.pixels"], atol=1e-4, rtol=0)
    difference = policy.decode(tokens).permute(0, 2, 3, 1).int() - io["vq.uint8"].int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() <= 1e-3
