"""Janus against the numbers of the original implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from models.janus import deepseek
from models.janus.checkpoint import BEGIN_OF_IMAGE, BOS, PAD, JanusCheckpoint
from models.janus.policy import JanusPolicy, condition_from_ids
from models.parts import llama
from models.policy import Condition
from tests.parity.golden import golden_folder

GOLDEN = "janus"
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
RIGHT_PADDED = sorted(
    name.removesuffix(".uncond_attention_mask")
    for name in load_file(golden_folder(GOLDEN) / "io.safetensors")
    if name.endswith(".uncond_attention_mask")
)  # the committed subset leaves them out


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def checkpoint(folder: Path, config: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture as a folder in DeepSeek's format, with what its config leaves to the code and a tokenizer."""
    toolkit, there = config["toolkit"], tmp_path_factory.mktemp("deepseek")
    pixels = 2 ** (len(toolkit["vq"]["channel_multiplier"]) - 1)
    stated = config | {"vision_config": {"params": {"image_size": pixels * toolkit["grid_size"]}}}
    (there / "config.json").write_text(json.dumps(stated))
    (there / "model.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    named = {BOS: toolkit["bos_token_id"], PAD: toolkit["pad_token_id"], BEGIN_OF_IMAGE: toolkit["boi_token_id"]}
    Tokenizer(WordLevel(named, unk_token=PAD)).save(str(there / "tokenizer.json"))
    (there / "tokenizer_config.json").write_text("{}")
    return there


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> JanusPolicy:
    return JanusPolicy.load(checkpoint)


def test_every_key_has_its_name_in_transformers(folder: Path, weights: dict[str, Tensor], policy: JanusPolicy) -> None:
    renamed = json.loads((folder / "hf_key_map.json").read_text())
    assert {name: deepseek.transformers_name(name) for name in weights} == renamed
    assert {name: deepseek.deepseek_name(name) for name in renamed.values()} == {
        new: old for old, new in renamed.items()
    }
    loaded = policy.model.state_dict()
    assert loaded.keys() == set(renamed.values())
    assert all(torch.equal(loaded[renamed[name]], value.float()) for name, value in weights.items())


def test_both_formats_and_back_are_bit_for_bit(checkpoint: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    for source, name in ((checkpoint, "transformers"), (tmp_path / "transformers", "deepseek")):
        (tmp_path / name).mkdir()
        JanusCheckpoint.open(source).export(name, tmp_path / name)
    back = load_file(tmp_path / "deepseek" / "model.safetensors")
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


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


@pytest.mark.parametrize("case", RIGHT_PADDED)
def test_the_layout_of_the_released_trainers(policy: JanusPolicy, io: dict[str, Tensor], case: str) -> None:
    """Text padded on the right, positions counted over the padding, which the null row sees. We do not batch so: a
    prompt's logits depend on the longest one beside it."""
    model, tokens = policy.language_model, io[f"{case}.image_ids"].long()
    image = policy._embed(tokens[:, :-1])
    for ids, mask, kind in (
        ("prompt_ids", "attention_mask", "cond"),
        ("uncond_ids", "uncond_attention_mask", "uncond"),
    ):
        text, seen = io[f"{case}.{ids}"].long(), io[f"{case}.{mask}"].bool()
        embedded = torch.cat([model.embed_tokens(text), image], dim=1)
        width = embedded.shape[1]
        seen = torch.nn.functional.pad(seen, (0, image.shape[1]), value=True)
        visible = torch.ones(width, width, dtype=torch.bool).tril() & seen[:, None, None]
        cos, sin = llama.rope_table(model, width)
        states = llama.run(model, embedded, (cos[None, None], sin[None, None]), visible)
        logits = policy.head(states[:, text.shape[1] - 1 :])
        torch.testing.assert_close(logits, io[f"{case}.{kind}_logits"], **TOLERANCE)


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
