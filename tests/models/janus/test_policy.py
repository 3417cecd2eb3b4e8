"""Janus as a policy: what batching, caching, saving and freezing must not change."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.export import convert
from models.janus import policy as janus
from models.janus.policy import JanusPolicy
from tests.conftest import random_janus

PROMPTS = ("a photo of a circle", "a photo of a red square and a blue ring", "a photo of two rings")
SAME_LENGTH = ("a photo of a circle", "a photo of a square")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def tokens_of(policy: JanusPolicy, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = policy.model.config.vq_config.num_embeddings
    return torch.randint(codes, (rows, policy.layout.tokens), generator=generator)


def forced_logits(policy: JanusPolicy, prompts: tuple[str, ...], tokens: Tensor) -> Tensor:
    """Teacher-forced logits `[2, R, N, V]`."""
    return policy.head(policy.hidden(policy.encode(prompts), tokens, branches=2))


def decoded_logits(policy: JanusPolicy, prompts: tuple[str, ...], tokens: Tensor, group_size: int = 1) -> Tensor:
    """Logits `[2, R, N, V]` on the way through the cache, fed with the given tokens."""
    state = policy.prefill(policy.encode(prompts), group_size, branches=2)
    logits = [policy.next_logits(state)]
    for token in tokens[:, :-1].split(1, dim=1):
        policy.append(state, token)
        logits.append(policy.next_logits(state))
    return torch.cat(logits, dim=2)


@pytest.mark.parametrize("logits_of", [forced_logits, decoded_logits])
def test_a_prompt_alone_and_in_a_mixed_batch(policy: JanusPolicy, logits_of) -> None:
    tokens = tokens_of(policy, len(PROMPTS))
    together = logits_of(policy, PROMPTS, tokens)
    for row, prompt in enumerate(PROMPTS):
        alone = logits_of(policy, (prompt,), tokens[row : row + 1])
        torch.testing.assert_close(together[:, row], alone[:, 0], **CLOSE)


def test_the_cached_steps_equal_one_teacher_forced_pass(policy: JanusPolicy) -> None:
    group_size, scale = 2, 5.0
    state = policy.prefill(policy.encode(PROMPTS), group_size, branches=2)
    logits, tokens = [], []
    for _ in range(policy.layout.tokens):
        logits.append(policy.next_logits(state))
        cond, uncond = logits[-1]
        tokens.append((uncond + scale * (cond - uncond)).argmax(-1))
        if len(tokens) < policy.layout.tokens:
            policy.append(state, tokens[-1])
    cached, greedy = torch.cat(logits, dim=2), torch.cat(tokens, dim=1)

    prompts = tuple(prompt for prompt in PROMPTS for _ in range(group_size))
    forced = forced_logits(policy, prompts, greedy)
    torch.testing.assert_close(cached, forced, atol=1e-4, rtol=0)
    assert torch.equal((forced[1] + scale * (forced[0] - forced[1])).argmax(-1), greedy)
    assert len(greedy.unique()) > 4  # an image of one token would show nothing


def test_the_branches_differ_and_one_branch_is_the_first_of_two(policy: JanusPolicy) -> None:
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    both = policy.hidden(condition, tokens, branches=2)
    torch.testing.assert_close(policy.hidden(condition, tokens, branches=1)[0], both[0], **CLOSE)
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_the_null_row_keeps_its_ends_and_pads_the_rest(policy: JanusPolicy) -> None:
    condition = policy.encode(PROMPTS)
    ids, lengths = condition.tensors["ids"], condition.tensors["lengths"]
    assert torch.equal(lengths[0], lengths[1])
    for row, length in enumerate(lengths[0].tolist()):
        cond, null = ids[0, row, -length:], ids[1, row, -length:]
        assert (null[0], null[-1]) == (cond[0], cond[-1])
        assert (null[1:-1] == policy.tokenizer.pad_token_id).all()


def test_a_negative_prompt_replaces_the_null_row(policy: JanusPolicy) -> None:
    condition = policy.encode(PROMPTS, negative_prompts=PROMPTS)
    assert torch.equal(condition.tensors["ids"][0], condition.tensors["ids"][1])


def test_image_logits_never_pass_the_text_head(policy: JanusPolicy) -> None:
    class Forbidden(torch.nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            raise AssertionError("the text head was called")

    tokens = tokens_of(policy, len(PROMPTS))
    expected = forced_logits(policy, PROMPTS, tokens)
    policy.model.lm_head = Forbidden()
    assert torch.equal(forced_logits(policy, PROMPTS, tokens), expected)
    torch.testing.assert_close(decoded_logits(policy, PROMPTS, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("prompts", "distinct"),
    [
        (SAME_LENGTH, 3),  # two prompts and one null row
        (SAME_LENGTH * 2, 3),
        (PROMPTS[:2], 4),  # two lengths, two null rows
    ],
)
def test_prefill_reads_each_distinct_row_once(
    policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch, prompts: tuple[str, ...], distinct: int
) -> None:
    read: list[int] = []
    original = janus.llama.run

    def counting(model, x, *arguments):
        read.append(len(x))
        return original(model, x, *arguments)

    monkeypatch.setattr(janus.llama, "run", counting)
    state = policy.prefill(policy.encode(prompts), group_size=3, branches=2)
    assert read == [distinct]
    assert policy.next_logits(state).shape[:2] == (2, len(prompts) * 3)


def test_save_and_load_give_the_same_logits(policy: JanusPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    loaded = JanusPolicy.load(tmp_path)
    tokens = tokens_of(policy, len(PROMPTS))
    assert loaded.layout == policy.layout
    assert torch.equal(forced_logits(loaded, PROMPTS, tokens), forced_logits(policy, PROMPTS, tokens))


def test_the_checkpoint_may_ask_for_plain_roles(policy: JanusPolicy, tmp_path: Path) -> None:
    path, again = tmp_path / "one", tmp_path / "two"
    policy.save(path)
    config = json.loads((path / "config.json").read_text())

    def read(style: str) -> JanusPolicy:
        (path / "config.json").write_text(json.dumps({**config, "prompt_style": style}))
        return JanusPolicy.load(path)

    plain = read("plain")
    plain.save(again)
    for name in ("three", "four"):
        (tmp_path / name).mkdir()
    convert(str(again), tmp_path / "three", "deepseek")
    convert(str(tmp_path / "three"), tmp_path / "four", "transformers")
    expected = "User: a ring\n\nAssistant:<begin_of_image>"
    for known in (plain, *(JanusPolicy.load(tmp_path / name) for name in ("two", "three", "four"))):
        row = known.encode([" a ring "]).tensors["ids"][0, 0]
        assert row[1:].tolist() == known.tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert policy.encode(["a ring"]).tensors["ids"][0, 0].tolist() != row.tolist()
    with pytest.raises(ModelError, match=r"prompt_style 'chat': choose one of pro, plain"):
        read("chat")


def test_the_reference_shares_what_is_frozen_and_nothing_else(policy: JanusPolicy) -> None:
    reference = policy.reference()
    tokens = tokens_of(policy, len(PROMPTS))
    before = forced_logits(policy, PROMPTS, tokens)
    for mine, theirs in zip(policy.model.parameters(), reference.model.parameters(), strict=True):
        assert (mine is theirs) == (not mine.requires_grad)
        assert not theirs.requires_grad
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    assert torch.equal(forced_logits(reference, PROMPTS, tokens), before)
    assert not torch.equal(forced_logits(policy, PROMPTS, tokens), before)


def test_only_the_language_model_is_trained(policy: JanusPolicy) -> None:
    trained = {id(parameter) for parameter in policy.trainable_parameters()}
    assert trained == {id(parameter) for parameter in policy.language_model.parameters()}

    forced_logits(policy, PROMPTS, tokens_of(policy, len(PROMPTS))).square().mean().backward()
    with_gradient = {id(p) for p in policy.model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == trained


def test_token_embeddings_of_both_kinds(policy: JanusPolicy) -> None:
    tokens = tokens_of(policy, 2)
    vq = policy.model.config.vq_config
    read = policy.token_embeddings(tokens, "lm_input")
    assert read.shape == (*tokens.shape, policy.model.config.text_config.hidden_size)
    one = policy.model.prepare_embeddings_for_image_generation(tokens[1:, 3:4])[0, 0]
    torch.testing.assert_close(read[1, 3], one, **CLOSE)
    drawn = policy.token_embeddings(tokens, "codebook")
    assert drawn.shape == (*tokens.shape, vq.embed_dim)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(tokens.shape))
    row = policy.model.model.vqmodel.quantize.embedding.weight[tokens[1, 3]]
    torch.testing.assert_close(drawn[1, 3], row / row.norm())


def test_decoding_gives_bytes_whatever_the_batch(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(policy, 5)
    images = policy.decode(tokens)
    side = policy.model.config.vq_config.num_patches * 2 ** (len(policy.model.config.vq_config.channel_multiplier) - 1)
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, side, side)
    assert len(images.unique()) > 10
    monkeypatch.setattr(janus, "DECODE_BATCH", 2)
    assert (policy.decode(tokens).int() - images.int()).abs().max() <= 1  # truncation of a rounding difference


def test_the_layout_is_the_grid() -> None:
    policy = random_janus(grid=3)
    assert policy.layout.maps == ((3, 3),)
    assert policy.layout.blocks == (1,) * 9
    assert torch.equal(policy.guidance(2.0), torch.full((9,), 2.0))
