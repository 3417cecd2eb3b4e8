"""The scorers through their real doors: random checkpoints by their registry names, in process and over HTTP."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from rewards.catalogue import REWARDS, RewardEntry
from rewards.cut import Cut
from rewards.errors import RewardError
from rewards.registry import build
from rewards.reward import Scores, score_images
from rewards.scorers.hpsv2 import preprocess
from rewards.scorers.imagereward import MEAN, STD, TOKENS
from rewards.scorers.linear_head import linear_head
from tests.rewards.servers import serving
from tests.rewards.tiny_clip import register_tiny_clip, save_tiny_clip
from tests.rewards.tiny_scorers import save_checkpoint, save_head, save_imagereward, save_pickscore

PROMPTS = ["a photo of a red dog", "a photo of two cats", "a photo of a red dog", "a cat"]
NAMES = ("hpsv2", "hpsv2-paper", "hpsv2.0", "hpsv2.0-paper", "pickscore", "imagereward", "clipscore", "aesthetic")


def pictures() -> list[np.ndarray]:
    """Four pictures, of two sizes."""
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (3, 4, 3), dtype=np.uint8) for _ in PROMPTS]
    return [each.repeat(16, 0).repeat(wide, 1) for each, wide in zip(coarse, (12, 16, 12, 16), strict=True)]


def score(reward: object) -> Scores:
    return score_images(reward, pictures(), PROMPTS, [{}] * 4)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each environment variable may point."""
    folder = tmp_path_factory.mktemp("scorers")
    checkpoint = save_checkpoint(folder)
    return {
        "T2I_RL_HPSV2": checkpoint,
        "T2I_RL_HPSV2_0": checkpoint,
        "T2I_RL_CLIP": folder / "clip",
        "T2I_RL_CLIPSCORE": folder / "clip",
        "T2I_RL_AESTHETIC": save_head(folder / "head.pth"),
        "T2I_RL_PICKSCORE": save_pickscore(folder / "pickscore"),
        "T2I_RL_IMAGEREWARD": save_imagereward(folder / "imagereward"),
    }


@pytest.fixture
def local(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    for variable, path in files.items():
        monkeypatch.setenv(variable, str(path))
    monkeypatch.setattr("rewards.scorers.hpsv2.ARCHITECTURE", register_tiny_clip(tmp_path))
    return files


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_scores_in_process_over_http_and_one_by_one(name: str) -> None:
    reward = build(name)
    scores = score(reward)
    assert scores.total.unique().numel() == 4
    with serving(reward, name) as address:
        served = build(f"{name}@{address}")
        served.check(PROMPTS, [{}] * 4)
        assert served.name == reward.name
        assert torch.equal(score(served).total, scores.total)
    for row, (image, prompt) in enumerate(zip(pictures(), PROMPTS, strict=True)):
        alone = score_images(reward, [image], [prompt], [{}]).total
        torch.testing.assert_close(alone, scores.total[row : row + 1], rtol=1e-5, atol=1e-5)
    assert REWARDS[name].range != (0.0, 1.0)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(("name", "tokens"), [("hpsv2", 77), ("pickscore", 77), ("clipscore", 77), ("imagereward", 35)])
def test_what_is_beyond_the_last_token_is_counted(name: str, tokens: int) -> None:
    """A word is a token here, and a prompt has one at each end."""
    reward = build(name)

    def scores(words: int) -> list[float]:
        prompts = [f"{'a ' * (words - 1)}{last}" for last in ("dog", "cat")]
        return score_images(reward, pictures()[:1] * 2, prompts, [{}] * 2).total.tolist()

    assert len({*scores(tokens - 2)}) == 2 and len({*scores(tokens - 1)}) == 1
    whole, longer, strange = ("a " * (tokens - 2), "a " * (tokens - 1), "é " * (tokens - 1))
    prompts = [whole, longer, "a", strange, longer]
    assert reward.check(prompts, [{}] * 5) == [Cut(reward.name, tokens, 3)]
    assert reward.check([whole, "a"], [{}] * 2) == []
    with serving(reward, name) as address, pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewards.http.client.PROMPTS", 2)
        assert build(f"{name}@{address}").check(prompts, [{}] * 5) == [Cut(reward.name, tokens, 3)]
    both = build(f"{name} aesthetic")
    assert both.check(prompts, [{}] * 5) == [Cut(reward.name, tokens, 3)]


@pytest.mark.usefixtures("local")
def test_more_images_than_a_pass_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = build("clipscore")
    whole = score(reward).total
    monkeypatch.setattr("rewards.scorers.measure.IMAGES_PER_PASS", 3)
    torch.testing.assert_close(score(reward).total, whole, rtol=1e-5, atol=1e-5)
    assert score_images(reward, [], [], []).total.shape == (0,)


@pytest.mark.usefixtures("local")
def test_the_name_says_version_file_and_resize() -> None:
    assert build("hpsv2").name == "hpsv2.1 (HPS_tiny.pt)"
    assert build("hpsv2.0-paper").name == "hpsv2.0 (HPS_tiny.pt, resized without antialiasing)"
    assert build("clipscore").name == "clipscore (cosine, clip)"


def test_hpsv2_keeps_proportions_and_pads_with_black() -> None:
    image = Image.fromarray(np.full((224, 100, 3), 255, dtype=np.uint8))
    for antialias in (True, False):
        pixels = preprocess(image, 224, antialias)  # of just the size, where the released code pads nothing
        black, white = (
            (torch.tensor(level) - torch.tensor(open_clip.OPENAI_DATASET_MEAN))
            / torch.tensor(open_clip.OPENAI_DATASET_STD)
            for level in (0.0, 1.0)
        )
        assert torch.equal(pixels[:, :, :62], black[:, None, None].expand(3, 224, 62))
        assert torch.equal(pixels[:, :, 62:162], white[:, None, None].expand(3, 224, 100))
        assert preprocess(Image.new("RGBA", (900, 2)), 224, antialias).shape == (3, 224, 224)
        assert preprocess(Image.new("RGB", (1000, 1)), 224, antialias).shape == (3, 224, 224)


@pytest.mark.usefixtures("local")
def test_hpsv2_and_clipscore_are_open_clips_cosine(files: dict[str, Path]) -> None:
    reward = build("clipscore")
    model, transform = reward.clip.model, reward.clip.transform  # type: ignore[attr-defined]
    tokens = open_clip.get_tokenizer("ViT-B-32")(PROMPTS)
    for name, seen in (("clipscore", transform), ("hpsv2", lambda image: preprocess(image, 32, True))):
        pixels = torch.stack([seen(Image.fromarray(image)) for image in pictures()])
        with torch.no_grad():
            images, texts, _ = model(pixels, tokens)
        torch.testing.assert_close(score(build(name)).total, (images * texts).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("local")
def test_the_aesthetic_score_does_not_read_the_prompt(files: dict[str, Path]) -> None:
    reward = build("aesthetic")
    layers = torch.load(files["T2I_RL_AESTHETIC"], weights_only=True)
    with torch.no_grad():
        found = F.normalize(reward.clip.encode_images(pictures()), dim=-1)  # type: ignore[attr-defined]
        for number in (0, 2, 4, 6, 7):
            found = found @ layers[f"layers.{number}.weight"].T + layers[f"layers.{number}.bias"]
    torch.testing.assert_close(score(reward).total, found[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.equal(score_images(reward, pictures(), ["x"] * 4, [{}] * 4).total, score(reward).total)


@pytest.mark.usefixtures("local")
def test_pickscore_is_transformers_logit(files: dict[str, Path]) -> None:
    """Through its own tokenizer and processor. Square pictures: of others it may cut out a pixel beside ours."""
    ours = open_clip.SimpleTokenizer()
    merges = [" ".join(pair) for pair in ours.bpe_ranks]
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(word, word): number
        for word, number in ours.encoder.items()
    }
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair.split()) for pair in merges])
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    squares = [image[:48, :48] for image in pictures()]
    asked = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    pixels = processor([Image.fromarray(image) for image in squares], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        model = CLIPModel.from_pretrained(files["T2I_RL_PICKSCORE"])
        logits = model(pixel_values=pixels, input_ids=asked.input_ids, attention_mask=asked.attention_mask)
    found = score_images(build("pickscore"), squares, PROMPTS, [{}] * 4).total
    torch.testing.assert_close(found, logits.logits_per_image.diagonal(), rtol=1e-4, atol=1e-4)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Attention in heads of 64, written out."""
    query, key, value = (each.unflatten(-1, (-1, 64)).transpose(1, 2) for each in (query, key, value))
    scores = query @ key.transpose(-1, -2) / 8
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


@pytest.mark.usefixtures("local")
def test_imagereward_is_blip_written_out(files: dict[str, Path]) -> None:
    """Against the original network in plain torch, on the checkpoint's own names."""
    weights = torch.load(files["T2I_RL_IMAGEREWARD"] / "ImageReward.pt", weights_only=True)

    def linear(stem: str, x: Tensor) -> Tensor:
        return x @ weights[f"{stem}.weight"].T + weights[f"{stem}.bias"]

    def norm(stem: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{stem}.weight"], weights[f"{stem}.bias"], eps)

    reward = build("imagereward")
    pixels = torch.stack([reward.transform(Image.fromarray(image)) for image in pictures()])  # type: ignore[attr-defined]
    eye = "blip.visual_encoder."
    patches = F.conv2d(pixels, weights[f"{eye}patch_embed.proj.weight"], weights[f"{eye}patch_embed.proj.bias"], 8)
    x = torch.cat([weights[f"{eye}cls_token"].expand(4, -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + weights[f"{eye}pos_embed"]
    for layer in range(2):
        stem = f"{eye}blocks.{layer}."
        mixed = attend(*linear(stem + "attn.qkv", norm(stem + "norm1", x, 1e-6)).chunk(3, -1))
        x = x + linear(stem + "attn.proj", mixed)
        x = x + linear(stem + "mlp.fc2", F.gelu(linear(stem + "mlp.fc1", norm(stem + "norm2", x, 1e-6))))
    seen = norm(f"{eye}norm", x, 1e-6)

    # [CLS] words [SEP], "cats" in two pieces
    ids = [[2, 4, 5, 6, 4, 7, 8, 3], [2, 4, 5, 6, 10, 9, 11, 3], [2, 4, 5, 6, 4, 7, 8, 3], [2, 4, 9, 3]]
    visible = torch.tensor([[column < len(row) for column in range(TOKENS)] for row in ids])
    tokens = torch.tensor([row + [0] * (TOKENS - len(row)) for row in ids])
    ear = "blip.text_encoder."
    x = weights[f"{ear}embeddings.word_embeddings.weight"][tokens]
    x = x + weights[f"{ear}embeddings.position_embeddings.weight"][:TOKENS]
    x = norm(f"{ear}embeddings.LayerNorm", x, 1e-12)
    for layer in range(2):
        stem = f"{ear}encoder.layer.{layer}."
        for kind, other, mask in (("attention", None, visible), ("crossattention", seen, None)):
            source = x if other is None else other
            parts = (
                linear(f"{stem}{kind}.self.{part}", y)
                for part, y in zip(("query", "key", "value"), (x, source, source), strict=True)
            )
            x = norm(
                f"{stem}{kind}.output.LayerNorm", x + linear(f"{stem}{kind}.output.dense", attend(*parts, mask)), 1e-12
            )
        inner = linear(stem + "output.dense", F.gelu(linear(stem + "intermediate.dense", x)))
        x = norm(stem + "output.LayerNorm", x + inner, 1e-12)
    x = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        x = linear(f"mlp.layers.{number}", x)
    torch.testing.assert_close(score(reward).total, (x[:, 0] - MEAN) / STD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "variable", "command"),
    [
        ("hpsv2", "T2I_RL_HPSV2", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
        ("hpsv2.0", "T2I_RL_HPSV2_0", "hf download xswu/HPSv2 HPS_v2_compressed.pt"),
        ("pickscore", "T2I_RL_PICKSCORE", "hf download yuvalkirstain/PickScore_v1 config.json"),
        ("imagereward", "T2I_RL_IMAGEREWARD", "hf download THUDM/ImageReward ImageReward.pt"),
        ("clipscore", "T2I_RL_CLIPSCORE", "hf download timm/vit_base_patch32_clip_224.openai"),
        ("aesthetic", "T2I_RL_CLIP", "hf download timm/vit_large_patch14_clip_224.openai"),
        ("geneval-facebook", "T2I_RL_DETECTOR_FACEBOOK", "hf download facebook/mask2former-swin-small-coco-instance"),
        ("geneval", "T2I_RL_DETECTOR", "curl -L -o"),
    ],
)
def test_weights_that_are_not_there_are_asked_for_in_one_sentence(
    name: str, variable: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("rewards.files.weights.hf_hub_download", offline)
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(RewardError) as refused:
        build(name)
    assert command in str(refused.value) and variable in str(refused.value) and "\n" not in str(refused.value)
    monkeypatch.setenv(variable, str(tmp_path / "absent.pth"))
    with pytest.raises(RewardError, match=rf"absent\.pth.*{variable} may name a copy"):
        build(name)


def test_the_head_of_the_aesthetic_score_is_asked_for_too(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path))
    monkeypatch.setenv("T2I_RL_CLIP", str(files["T2I_RL_CLIP"]))
    monkeypatch.delenv("T2I_RL_AESTHETIC", raising=False)
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(RewardError, match=r"linearMSE\.pth \(no connection\): run `curl -L -o .*T2I_RL_AESTHETIC may"):
        build("aesthetic")


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if name not in key}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("blip.visual_encoder"), r"no weights of ImageReward's BLIP for embeddings\.patch_embedding\.weight"),
        (without("crossattention"), "no weights of ImageReward's BLIP for encoder.layer.0.crossattention"),
        (without("blocks.1.norm1.bias"), r"holds nothing for encoder\.layers\.1\.layer_norm1\.bias"),
        (without("layers.2."), "which do not lead from 64 numbers to one"),
        (without("mlp.layers"), "which do not lead from 64 numbers to one"),
    ],
)
def test_an_imagereward_that_is_not_whole_is_refused(
    change: Callable, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_imagereward(tmp_path / "imagereward")
    weights = torch.load(folder / "ImageReward.pt", weights_only=True)
    torch.save(change(weights), folder / "ImageReward.pt")
    monkeypatch.setenv("T2I_RL_IMAGEREWARD", str(folder))
    with pytest.raises(RewardError, match=complaint):
        build("imagereward")
    (folder / "vocab.txt").unlink()
    with pytest.raises(RewardError, match=r"vocab\.txt does not exist: .*hf download google-bert/bert-base-uncased"):
        build("imagereward")


def test_a_pickscore_that_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pickscore(tmp_path / "pickscore")
    monkeypatch.setenv("T2I_RL_PICKSCORE", str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file(without("visual_projection")(weights), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RewardError, match=r"the weights lack visual_projection\.weight"):
        build("pickscore")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RewardError, match=r"cannot load .* as a CLIP"):
        build("pickscore")


def test_a_head_of_other_features_is_refused(tmp_path: Path) -> None:
    layers = torch.load(save_head(tmp_path / "head.pth"), weights_only=True)
    with pytest.raises(
        RewardError, match=r"the file: the layers have the shapes \[\[12, 16\].* from 20 numbers to one"
    ):
        linear_head(layers, 20, "the file")
    assert len(linear_head(layers, 16, "the file")) == 5


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(device: str) -> NoReturn:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")

    monkeypatch.setitem(REWARDS, "hpsv2", RewardEntry(needs))
    with pytest.raises(RewardError, match=r"'hpsv2' needs the package open_clip: run `pip install -r rewards/req"):
        build("hpsv2")


def test_a_clip_folder_is_a_source_for_hpsv2_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RL_HPSV2", str(save_tiny_clip(tmp_path / "tiny")))
    assert build("hpsv2").name == "hpsv2.1 (tiny)"
