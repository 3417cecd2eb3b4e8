"""LlamaGen as a policy: what batching, caching, padding, saving and freezing must not change."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from models.llamagen import policy as llamagen
from models.llamagen.policy import LlamaGenPolicy
from models.llamagen.transformer import halves, neighbours
from models.policy import Condition
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.models.tiny_llamagen import CAPTION_WIDTH, CODES, GRID, PIXELS, TEXT_ROWS, save_release

PROMPTS = ("a photo of a circle", "a photo of a red square and a blue ring", "two rings")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamagen")
    save_release(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def policy(release: Path) -> LlamaGenPolicy:
    return LlamaGenPolicy.load(release)


def tokens_of(policy: LlamaGenPolicy, rows: int) -> Tensor:
    return torch.randint(CODES, (rows, policy.layout.tokens), generator=torch.Generator().manual_seed(0))


def forced_logits(policy: LlamaGenPolicy, condition: Condition, tokens: Tensor) -> Tensor:
    """Teacher-forced logits `[2, R, N, V]`."""
    return policy.head(policy.hidden(condition, tokens, branches=2))


def decoded_logits(policy: LlamaGenPolicy, condition: Condition, tokens: Tensor, group_size: int = 1) -> Tensor:
    """Logits `[2, R, N, V]` on the way through the cache, fed with the given tokens."""
    state = policy.prefill(condition, group_size, branches=2)
    logits = [policy.next_logits(state)]
    for token in tokens[:, :-1].split(1, dim=1):
        policy.append(state, token)
        logits.append(policy.next_logits(state))
    return torch.cat(logits, dim=2)


def test_the_released_files_are_enough(policy: LlamaGenPolicy) -> None:
    assert policy.layout.maps == ((GRID, GRID),)
    assert policy.layout.blocks == (1,) * GRID**2
    assert policy.default_guidance == 7.5
    config = policy.transformer.model.config
    assert (config.num_attention_heads, config.num_hidden_layers, config.rms_norm_eps) == (2, 2, 1e-5)


@pytest.mark.parametrize("logits_of", [forced_logits, decoded_logits])
def test_a_prompt_alone_and_in_a_mixed_batch(policy: LlamaGenPolicy, logits_of) -> None:
    tokens = tokens_of(policy, len(PROMPTS))
    together = logits_of(policy, policy.encode(PROMPTS), tokens)
    for row, prompt in enumerate(PROMPTS):
        alone = logits_of(policy, policy.encode([prompt]), tokens[row : row + 1])
        torch.testing.assert_close(together[:, row], alone[:, 0], **CLOSE)
    assert (together[:, 0] - together[:, 1]).abs().amax((1, 2)).min() > 0.1


def test_padding_left_out_equals_padding_masked(policy: LlamaGenPolicy) -> None:
    """As the original runs: every caption in as many rows as the null caption has, padding hidden by the mask."""
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    features = condition.tensors["features"]
    padded = F.pad(features, (0, 0, TEXT_ROWS - features.shape[2], 0))
    padded[1] = policy.transformer.captions.uncond_embedding  # the original hides rows of it, not zeros
    wide = Condition(condition.prompts, {**condition.tensors, "features": padded})
    assert features.shape[2] < TEXT_ROWS
    expected = forced_logits(policy, wide, tokens)
    torch.testing.assert_close(forced_logits(policy, condition, tokens), expected, **CLOSE)


def test_the_cached_steps_equal_one_teacher_forced_pass(policy: LlamaGenPolicy) -> None:
    group_size = 2
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS) * group_size)
    cached = decoded_logits(policy, condition, tokens, group_size)
    forced = forced_logits(policy, condition.repeat(group_size), tokens)
    torch.testing.assert_close(cached, forced, **CLOSE)


def test_the_branches_differ_and_one_branch_is_the_first_of_two(policy: LlamaGenPolicy) -> None:
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    both = policy.hidden(condition, tokens, branches=2)
    torch.testing.assert_close(policy.hidden(condition, tokens, branches=1)[0], both[0], **CLOSE)
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_the_same_noise_gives_the_same_image_in_every_batch(policy: LlamaGenPolicy) -> None:
    sampling = Sampling(guidance_scale=3.0)
    together = sample_group(policy, policy.encode(PROMPTS), 3, sampling, Noise(seed=1)).tokens
    for row, prompt in enumerate(PROMPTS):
        alone = sample_group(policy, policy.encode([prompt]), 2, sampling, Noise(seed=1)).tokens
        assert torch.equal(alone[0], together[row, :2])
    assert len(together.flatten(0, 1).unique(dim=0)) == 9


def test_the_null_branch_is_as_long_as_the_prompt(policy: LlamaGenPolicy) -> None:
    condition = policy.encode(PROMPTS)
    lengths = condition.tensors["lengths"]
    assert lengths[0].tolist() == [6, 11, 3]  # the words and the end of the sentence
    assert torch.equal(lengths[0], lengths[1])
    null = policy.transformer.captions.uncond_embedding
    for row, length in enumerate(lengths[1].tolist()):
        assert torch.equal(condition.tensors["features"][1, row, -length:], null[-length:])
        assert not condition.tensors["features"][1, row, :-length].any()


def test_a_negative_prompt_replaces_the_null_caption(policy: LlamaGenPolicy) -> None:
    condition = policy.encode(PROMPTS, negative_prompts=PROMPTS[::-1])
    for name in ("features", "lengths"):
        assert torch.equal(condition.tensors[name][1], condition.tensors[name][0].flip(0))


def test_guidance_ends_with_its_interval(policy: LlamaGenPolicy) -> None:
    assert torch.equal(policy.guidance(2.0), torch.full((GRID**2,), 2.0))
    interval = LlamaGenPolicy(policy.transformer, policy.vq, policy.text, {"cfg_interval": 3})
    assert interval.guidance(2.0).tolist() == [2.0] * 5 + [1.0] * (GRID**2 - 5)


def test_the_transformer_is_trained_and_nothing_else(policy: LlamaGenPolicy) -> None:
    trained = {id(parameter) for parameter in policy.trainable_parameters()}
    assert trained == {id(parameter) for parameter in policy.transformer.parameters()}
    null = policy.transformer.captions.uncond_embedding
    assert not null.requires_grad and id(null) not in trained

    logits = forced_logits(policy, policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS)))
    logits.log_softmax(-1)[..., 0].mean().backward()
    for name, parameter in policy.transformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in policy.vq.parameters())


def test_the_reference_stays_where_it_is(policy: LlamaGenPolicy) -> None:
    reference = policy.reference()
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    before = forced_logits(policy, condition, tokens)
    assert reference.vq is policy.vq and reference.text is policy.text
    assert not any(parameter.requires_grad for parameter in reference.trainable_parameters())
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    assert torch.equal(forced_logits(reference, condition, tokens), before)
    assert not torch.equal(forced_logits(policy, condition, tokens), before)


def test_a_saved_checkpoint_comes_back(policy: LlamaGenPolicy, release: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.01)
    policy.save(tmp_path / "step")
    loaded = LlamaGenPolicy.load(tmp_path / "step")
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    assert loaded.layout == policy.layout
    assert torch.equal(loaded.encode(PROMPTS).tensors["features"], condition.tensors["features"])
    assert torch.equal(forced_logits(loaded, condition, tokens), forced_logits(policy, condition, tokens))
    assert torch.equal(loaded.decode(tokens), policy.decode(tokens))
    saved = load_file(tmp_path / "step" / "model.safetensors")
    assert saved.keys() == torch.load(release / f"t2i_tiny_{PIXELS}.pt")["model"].keys()
    assert not (tmp_path / "step" / "t5").exists()

    shutil.copytree(tmp_path / "step", tmp_path / "again")
    loaded.save(tmp_path / "again")  # over an older one
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == saved.keys()


def test_lower_precision_keeps_pixels_in_float32(release: Path) -> None:
    policy = LlamaGenPolicy.load(release, torch.bfloat16)
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    logits = forced_logits(policy, condition, tokens)
    assert logits.dtype == torch.float32
    assert policy.hidden(condition, tokens, branches=1).dtype == torch.bfloat16
    assert policy.vq.decode(tokens).dtype == torch.float32
    exact = LlamaGenPolicy.load(release)
    expected = forced_logits(exact, exact.encode(PROMPTS), tokens)
    assert (logits - expected).abs().mean() < 0.1 * expected.std()


def test_token_embeddings_of_both_kinds(policy: LlamaGenPolicy) -> None:
    tokens = tokens_of(policy, 2)
    read = policy.token_embeddings(tokens, "lm_input")
    assert torch.equal(read[1, 3], policy.transformer.model.embed_tokens.weight[tokens[1, 3]])
    drawn = policy.token_embeddings(tokens, "codebook")
    row = policy.vq.quantize.embedding.weight[tokens[1, 3]]
    torch.testing.assert_close(drawn[1, 3], row / row.norm())


def test_decoding_gives_bytes_whatever_the_batch(policy: LlamaGenPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(policy, 5)
    images = policy.decode(tokens)
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, PIXELS, PIXELS)
    assert len(images.unique()) > 10
    monkeypatch.setattr(llamagen, "DECODE_BATCH", 2)
    assert (policy.decode(tokens).int() - images.int()).abs().max() <= 1


def test_rotary_pairs_across_the_halves_are_the_neighbours() -> None:
    weight = torch.arange(2 * 8.0)[:, None].expand(-1, 3)  # two heads of 8 channels
    assert halves(weight, 2)[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(neighbours(halves(weight, 2), 2), weight)


def test_captions_have_the_encoders_width(policy: LlamaGenPolicy) -> None:
    assert policy.encode(PROMPTS).tensors["features"].shape == (2, len(PROMPTS), 11, CAPTION_WIDTH)
