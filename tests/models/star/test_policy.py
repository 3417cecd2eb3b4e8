"""STAR as a policy: what batching, caching, saving and freezing must not change, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ModelError
from models.registry import MODELS, STAR_256, load
from models.star import policy as star
from models.star.policy import RELEASED, StarConfig, StarPolicy, config_of
from models.star.vae import smoothing_of_scale
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.methods.objectives import Objective
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.trainer import Trainer
from tests.models.small_star import TEXT_LENGTH, random_star
from tests.t2i_rl.small_runs import Brightness

PROMPTS = ("a photo of a circle", "a photo of a red square and a blue ring", "two rings")
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
MODES = ("pair", "own")


@pytest.fixture(params=MODES)
def policy(request: pytest.FixtureRequest) -> StarPolicy:
    return random_star(null_text=request.param)


def tokens_of(policy: StarPolicy, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(policy.transformer.sizes.codes, (rows, policy.layout.tokens), generator=generator)


def forced_logits(policy: StarPolicy, prompts: tuple[str, ...], tokens: Tensor) -> Tensor:
    """Teacher-forced logits `[2, R, N, V]`."""
    return policy.head(policy.hidden(policy.encode(prompts), tokens, branches=2))


def decoded_logits(policy: StarPolicy, prompts: tuple[str, ...], tokens: Tensor, group_size: int = 1) -> Tensor:
    """Logits `[2, R, N, V]` on the way through the cache, fed with the given tokens."""
    state = policy.prefill(policy.encode(prompts), group_size, branches=2)
    logits = [policy.next_logits(state)]
    for block in tokens.split(policy.layout.blocks, dim=1)[:-1]:
        policy.append(state, block)
        logits.append(policy.next_logits(state))
    return torch.cat(logits, dim=2)


@pytest.mark.parametrize("logits_of", [forced_logits, decoded_logits])
def test_a_prompt_alone_and_in_a_batch(policy: StarPolicy, logits_of: Callable[..., Tensor]) -> None:
    tokens = tokens_of(policy, len(PROMPTS))
    together = logits_of(policy, PROMPTS, tokens)
    for row, prompt in enumerate(PROMPTS):
        alone = logits_of(policy, (prompt,), tokens[row : row + 1])
        torch.testing.assert_close(together[:, row], alone[:, 0], **CLOSE)


def test_the_cached_scales_equal_one_teacher_forced_pass(policy: StarPolicy) -> None:
    group_size = 2
    prompts = tuple(prompt for prompt in PROMPTS for _ in range(group_size))
    tokens = tokens_of(policy, len(prompts))
    cached = decoded_logits(policy, PROMPTS, tokens, group_size)
    torch.testing.assert_close(cached, forced_logits(policy, prompts, tokens), atol=1e-4, rtol=0)


def test_a_scale_sees_itself_and_the_earlier_ones_alone(policy: StarPolicy) -> None:
    tokens = tokens_of(policy, 1)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % policy.transformer.sizes.codes  # the first token of the third scale
    before, after = (forced_logits(policy, PROMPTS[:1], values) for values in (tokens, changed))
    assert torch.equal(before[:, :, :14], after[:, :, :14])
    assert not torch.allclose(before[:, :, 14:], after[:, :, 14:], atol=1e-3)


def test_the_null_row_takes_the_conditional_text_in_pair_mode_only() -> None:
    pair, own = random_star(), random_star(null_text="own")
    tokens = tokens_of(pair, 1).repeat(2, 1)
    of_pair, of_own = (forced_logits(policy, PROMPTS[:2], tokens) for policy in (pair, own))
    torch.testing.assert_close(of_pair[0], of_own[0], **CLOSE)
    torch.testing.assert_close(of_own[1, 0], of_own[1, 1], **CLOSE)  # the empty prompt, twice
    assert (of_pair[1, 0] - of_pair[1, 1]).abs().max() > 1e-2
    assert (of_own[0] - of_own[1]).abs().max() > 1e-2
    one = pair.hidden(pair.encode(PROMPTS[:2]), tokens, branches=1)
    torch.testing.assert_close(pair.head(one)[0], of_pair[0], **CLOSE)


def test_same_seed_same_image_whatever_the_batch(policy: StarPolicy) -> None:
    sampling = Sampling(guidance_scale=3.0)

    def images(prompts: tuple[str, ...], group_size: int) -> Tensor:
        return sample_group(policy, policy.encode(prompts), group_size, sampling, Noise(7)).tokens

    together = images(PROMPTS, 3)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(images((prompt,), 2)[0], together[row, :2])
    assert len(together.flatten(0, 1).unique(dim=0)) == 9


def test_guidance_is_a_ramp() -> None:
    policy = random_star()
    torch.testing.assert_close(policy.guidance(6.0), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert (policy.guidance(0.0) == 1).all()
    assert policy.default_guidance == 4.0
    assert policy.layout.maps == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert policy.layout.blocks == (1, 4, 9, 16)


def test_the_text_is_padded_and_its_padding_is_never_seen(policy: StarPolicy) -> None:
    condition, tokens = policy.encode(PROMPTS), tokens_of(policy, len(PROMPTS))
    visible = condition.tensors["visible"]
    assert visible.sum(-1).tolist() == [[7, 12, 4], [2, 2, 2]]
    hidden = condition.tensors["hidden"].masked_fill(~visible[..., None], 1e3)
    poisoned = dataclasses.replace(condition, tensors={**condition.tensors, "hidden": hidden})
    assert torch.equal(policy.hidden(poisoned, tokens, branches=2), policy.hidden(condition, tokens, branches=2))


def test_a_prompt_beyond_the_text_encoders_length_is_counted(policy: StarPolicy) -> None:
    whole = " ".join(["red"] * (TEXT_LENGTH - 2))
    assert policy.cut([whole, f"{whole} ring", "red"]) == (TEXT_LENGTH, 1)
    first, second = (policy.encode([f"{whole} {last}"]).tensors["hidden"] for last in ("ring", "circle"))
    assert torch.equal(first, second)


def test_a_negative_prompt_replaces_the_empty_one(policy: StarPolicy) -> None:
    condition = policy.encode(PROMPTS, negative_prompts=PROMPTS)
    for tensor in condition.tensors.values():
        assert torch.equal(tensor[0], tensor[1])


def test_the_whole_transformer_is_trained_and_nothing_else(policy: StarPolicy) -> None:
    forced_logits(policy, PROMPTS, tokens_of(policy, len(PROMPTS))).square().mean().backward()
    trained = {id(parameter) for parameter in policy.trainable_parameters()}
    names = {name for name, parameter in policy.transformer.named_parameters() if id(parameter) not in trained}
    assert names == {"class_emb.weight"}
    for parameter in policy.trainable_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    for module in (policy.vae, policy.text_encoder):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_the_reference_shares_what_is_frozen_and_nothing_else(policy: StarPolicy) -> None:
    reference, tokens = policy.reference(), tokens_of(policy, len(PROMPTS))
    before = forced_logits(policy, PROMPTS, tokens)
    assert reference.vae is policy.vae
    assert not any(parameter.requires_grad for parameter in reference.transformer.parameters())
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    assert torch.equal(forced_logits(reference, PROMPTS, tokens), before)
    assert not torch.equal(forced_logits(policy, PROMPTS, tokens), before)


def test_token_embeddings_of_both_kinds(policy: StarPolicy) -> None:
    tokens = tokens_of(policy, 2)
    rows = policy.token_embeddings(tokens, "codebook")
    assert torch.equal(rows[1, 3], policy.vae.codebook.weight[tokens[1, 3]])
    read = policy.token_embeddings(tokens, "lm_input")
    assert read.shape == (*tokens.shape, policy.transformer.sizes.width)
    torch.testing.assert_close(read[1, 3], policy.transformer.word_embed(rows[1, 3]))


def test_decoding_gives_bytes_whatever_the_batch(policy: StarPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(policy, 5)
    images = policy.decode(tokens)
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, 8, 8)
    assert len(images.unique()) > 10
    monkeypatch.setattr(star, "DECODE_PIXELS", 2 * 8 * 8)
    assert (policy.decode(tokens).int() - images.int()).abs().max() <= 1  # truncation of a rounding difference


def test_the_codes_of_an_image_are_what_each_scale_leaves_over() -> None:
    """The nearest code, one position at a time."""
    vae = random_star().vae
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = vae.encode(image)
    rest = vae.quant_conv(vae.encoder(image))
    for scale, part in enumerate(tokens.split([side**2 for side in vae.scales], dim=1)):
        for vector, token in zip(vae.reduced(rest, scale)[0].flatten(1).T, part[0], strict=True):
            assert (vae.codebook.weight - vector).norm(dim=-1).argmin() == token
        rest = rest - vae.contribution(part, scale)


def test_which_convolution_smooths_each_scale() -> None:
    """Ten scales have exact ties, which VAR's own arithmetic decides."""
    assert smoothing_of_scale(10) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert smoothing_of_scale(14) == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


# A step of training


@pytest.mark.parametrize(
    "method",
    [
        METHODS["cfg"],
        METHODS["critical"],
        dataclasses.replace(METHODS["grpo"], objective=Objective(unit="scale", beta=0.01)),
    ],
    ids=["cfg", "critical", "ratio of a scale"],
)
def test_a_step_of_training(method) -> None:
    policy = random_star()
    before = [parameter.detach().clone() for parameter in policy.trainable_parameters()]
    config = TrainConfig(
        steps=2,
        rollout=RolloutConfig(2, group_size=3, micro_batch=2, sampling=Sampling(guidance_scale=2.0)),
        update=UpdateConfig(learning_rate=1e-3, schedule="constant", micro_batch=3, updates_per_rollout=2),
    )
    trainer = Trainer(config, policy, method, Brightness(), [Prompt(prompt) for prompt in PROMPTS])
    metrics = trainer.step(1)
    assert metrics["logprob_gap"] < 1e-4
    assert metrics["grad_norm"] > 0
    pairs = zip(before, policy.trainable_parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs if new.grad is None or new.grad.any())


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("star") / "saved"
    random_star().save(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "star"))


def release(folder: Path, **more: Tensor) -> None:
    """Turn a saved folder into what one downloads."""
    weights = load_file(folder / "star.safetensors") | more
    torch.save({"trainer": {"var_wo_ddp": weights, "epoch": 3}, "args": {"depth": 2}}, folder / "star.pth")
    tokenizer = load_file(folder / "vae.safetensors")
    tokenizer["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 32)
    torch.save(tokenizer, folder / "vae_ch160v4096z32.pth")
    (folder / "star.safetensors").unlink()
    (folder / "vae.safetensors").unlink()


def test_a_saved_policy_is_the_same(folder: Path) -> None:
    policy, loaded = random_star(), StarPolicy.load(folder)
    tokens = tokens_of(policy, len(PROMPTS))
    assert loaded.layout == policy.layout
    assert loaded.config == policy.config
    assert torch.equal(forced_logits(loaded, PROMPTS, tokens), forced_logits(policy, PROMPTS, tokens))
    assert torch.equal(loaded.decode(tokens), policy.decode(tokens))
    assert sum(parameter.numel() for parameter in loaded.trainable_parameters()) > 0


def test_the_released_files_load_and_the_sampler_variant_too(copied: Path) -> None:
    policy = random_star()
    extra = {name: torch.zeros(3) for name in ("word_embed_head.weight", "pos_start_last", "lvl_embed_2.weight")}
    extra |= {"feat_extract_blocks.0.attn.proj.bias": torch.zeros(3), "head_logits2.bias": torch.zeros(3)}
    release(copied, **extra)
    loaded, tokens = StarPolicy.load(copied), tokens_of(policy, 2)
    loaded.save(copied / "again")
    for same in (loaded, StarPolicy.load(copied / "again")):
        assert torch.equal(forced_logits(same, PROMPTS[:2], tokens), forced_logits(policy, PROMPTS[:2], tokens))
        assert torch.equal(same.decode(tokens), policy.decode(tokens))


def test_low_precision_stays_close_and_decodes_in_float32(folder: Path) -> None:
    policy, half = StarPolicy.load(folder), StarPolicy.load(folder, torch.bfloat16)
    tokens = tokens_of(policy, 2)
    logits = forced_logits(half, PROMPTS[:2], tokens)
    assert logits.dtype == torch.float32
    exact = forced_logits(policy, PROMPTS[:2], tokens)
    assert (logits - exact).abs().mean() < 0.05 * exact.std()
    assert torch.equal(half.decode(tokens), policy.decode(tokens))
    assert decoded_logits(half, PROMPTS[:2], tokens).dtype == torch.float32


def edited(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def configure(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json does not exist: write"),
    "another family": (lambda f: configure(f / "config.json", model_type="janus"), "model_type is 'janus', not 'star'"),
    "unknown setting": (lambda f: configure(f / "config.json", depth=30), "there is no setting depth"),
    "falling scales": (lambda f: configure(f / "config.json", scales=[1, 3, 2, 4]), "must start with 1 and rise"),
    "too few scales": (lambda f: configure(f / "config.json", scales=[1, 2, 4]), "has 3 scales, but .* has 4"),
    "no such mode": (lambda f: configure(f / "config.json", null_text="row 0"), "one of pair, own"),
    "no transformer": (lambda f: (f / "star.safetensors").unlink(), "has no transformer, .*taocrayon/STAR: put"),
    "no tokenizer of images": (lambda f: (f / "vae.safetensors").unlink(), "vae_ch160v4096z32.pth does not exist"),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "text_encoder does not exist: put the folder"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer does not exist: put the folder"),
    "missing weight": (
        lambda f: edited(f / "star.safetensors", lambda w: w.pop("blocks.1.ffn.fc2.bias")),
        "lacks 1 weights, such as blocks.1.ffn.fc2.bias",
    ),
    "misshapen weight": (
        lambda f: edited(f / "star.safetensors", lambda w: w.update({"blocks.1.attn.q_bias": torch.zeros(7)})),
        r"blocks.1.attn.q_bias is \(7,\), but by config and other weights it should be \(32,\)",
    ),
    "learned positions": (
        lambda f: edited(f / "star.safetensors", lambda w: w.update({"pos_1LC": torch.zeros(1, 30, 32)})),
        "such as pos_1LC: it is another variant",
    ),
    "missing weight of the image tokenizer": (
        lambda f: edited(f / "vae.safetensors", lambda w: w.pop("decoder.mid.attn_1.qkv.bias")),
        "lacks 1 weights, such as decoder.mid.attn_1.qkv.bias",
    ),
    "another image tokenizer": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "vae.safetensors"),
        "it is not VAR's image tokenizer",
    ),
    "a width that no image tokenizer has": (
        lambda f: edited(f / "vae.safetensors", lambda w: w.update({"decoder.norm_out.weight": torch.zeros(7)})),
        "make no image tokenizer",
    ),
    "torn transformer": (lambda f: cut(f / "star.safetensors"), "star.safetensors is torn"),
    "torn release": (lambda f: (release(f), cut(f / "star.pth")), "star.pth is torn"),
    "torn image tokenizer": (lambda f: (release(f), cut(f / "vae_ch160v4096z32.pth")), "z32.pth is torn"),
    "torn text encoder": (
        lambda f: cut(f / "text_encoder" / "model.safetensors"),
        "text_encoder/model.safetensors is torn",
    ),
    "a text encoder of another size": (
        lambda f: configure(f / "text_encoder" / "config.json", num_hidden_layers=3),
        "the text encoder in .* do not fit: encoder.layers.2.* is missing",
    ),
    "no state dict": (lambda f: (release(f), torch.save({"trainer": {}}, f / "star.pth")), "nothing under trainer.var"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_name(copied: Path, case: str) -> None:
    break_it, sentence = BROKEN[case]
    break_it(copied)
    with pytest.raises(ModelError, match=sentence):
        StarPolicy.load(copied)


class Bomb:
    """A pickle that writes a file when it is opened by an unwary reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["star.pth", "vae_ch160v4096z32.pth"])
def test_a_pickle_that_would_run_code_is_refused(copied: Path, tmp_path: Path, name: str) -> None:
    release(copied)
    torch.save({"trainer": {"var_wo_ddp": Bomb(tmp_path / "ran")}}, copied / name)
    with pytest.raises(ModelError, match=f"{name}.*holds code, which is never run"):
        StarPolicy.load(copied)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub on this machine, whose files are those of the released 256 px model."""
    hub = tmp_path / "hub"
    random_star(scales=STAR_256).save(hub / "taocrayon/STAR")
    release(hub / "taocrayon/STAR")
    (hub / "taocrayon/STAR/config.json").unlink()
    (hub / "taocrayon/STAR/star.pth").rename(hub / MODELS["star-256"].source)
    (hub / "taocrayon/STAR/CLIP").mkdir()
    for name in ("text_encoder", "tokenizer"):
        (hub / "taocrayon/STAR" / name).rename(hub / "taocrayon/STAR/CLIP" / name)
    (hub / "FoundationVision/var").mkdir(parents=True)
    (hub / "taocrayon/STAR/vae_ch160v4096z32.pth").rename(hub / "FoundationVision/var/vae_ch160v4096z32.pth")

    def fetch(source: str | Path, patterns: tuple[str, ...] = ("*",)) -> Path:
        return hub / source

    monkeypatch.setattr("models.star.policy.fetch", fetch)
    return hub


def test_a_name_is_enough(hub: Path) -> None:
    policy, expected = load("star-256"), random_star(scales=STAR_256)
    tokens = tokens_of(expected, 1)
    assert torch.equal(forced_logits(policy, PROMPTS[:1], tokens), forced_logits(expected, PROMPTS[:1], tokens))


def test_the_downloaded_files_make_a_folder(hub: Path) -> None:
    folder = hub / "taocrayon/STAR"
    (hub / "FoundationVision/var/vae_ch160v4096z32.pth").rename(folder / "vae_ch160v4096z32.pth")
    transformer = hub / MODELS["star-256"].source
    assert load(str(folder)).config == load(str(transformer)).config == StarConfig(STAR_256)
    for size, config in RELEASED.items():
        assert config_of(Path(f"star_rope_d30_{size}-ar-ckpt.pth")) == config
        assert config_of(hub / Path(MODELS[f"star-{size}"].source)) == config
        assert MODELS[f"star-{size}"].scales == config.scales
    (folder / "star_rope_d30_512.pth").touch()
    with pytest.raises(
        ModelError, match=r"several transformers \(star_.*_256.*, star_rope_d30_512.pth\): name the file"
    ):
        load(str(folder))


def test_code_beside_a_tokenizer_is_not_run(copied: Path, tmp_path: Path) -> None:
    (copied / "tokenizer" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configure(
        copied / "tokenizer" / "tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]},
    )
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be read"):
        StarPolicy.load(copied)
    assert not (tmp_path / "ran").exists()
