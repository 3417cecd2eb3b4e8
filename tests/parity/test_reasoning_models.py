"""Vision-language models and their negative prompts against numbers of transformers and of the released data class.

The committed subset has no weights: the logits of a full set are compared where it has some.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from models.question import Question
from models.qwen_vl.checkpoint import open_processor
from models.qwen_vl.pictures import read_picture, tower_inputs
from models.qwen_vl.policy import QwenVLPolicy
from models.qwen_vl.positions import mrope_positions
from models.qwen_vl.prompts import chat, content, prompt_ids
from t2i_rl.prompts.contrasts import CONTRASTS, blackened, contrast, instructed, positive
from t2i_rl.prompts.picture_sizes import fit, fitted
from tests.parity.golden import golden_folder

GOLDEN = "reasoning"
FOLDER = golden_folder(GOLDEN)
FAMILIES = sorted(path.parent.name for path in FOLDER.glob("*/prompts.json"))
WHOLE = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
INSTRUCTION = (
    "You first think through the reasoning process as an internal monologue, enclosed within <think> </think> tags. "
    "Then, provide your final answer enclosed within \\boxed{}."
)
NAMES = {"neutral-no-image": "text:Answer the question."}  # kinds that are no name of ours
LOGITS = {"atol": 5e-5, "rtol": 1e-4}


class Given:
    """Numbers in place of a generator's."""

    def __init__(self, uniforms: list[Tensor]) -> None:
        self.uniforms = iter(uniforms)

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        found = next(self.uniforms).numpy()
        assert found.shape == shape
        return found


class Fixture:
    """One family's prompts: what each kind of a row asks, and the numbers that are known of it."""

    def __init__(self, family: str) -> None:
        self.folder = FOLDER / family
        self.prompts = json.loads((self.folder / "prompts.json").read_text())
        self.io = load_file(self.folder / "io.safetensors")
        self.rows = [row for row in range(len(self.prompts)) if f"{row}/completion" in self.io]

    def kinds(self, row: int) -> list[str]:
        return [kind for kind in self.prompts[row]["kinds"] if f"{row}/{kind}/ids" in self.io]

    def asked(self, row: int, kind: str) -> Question:
        known = self.prompts[row]
        each = range(known["pictures"])
        raw = Question(known["question"], tuple(self.io[f"{row}/picture_{i}"].numpy() for i in each))
        if kind == "positive":
            return positive(raw, INSTRUCTION)
        noise: Any = Given([self.io[f"{row}/uniforms_{i}"] for i in each])
        return contrast(NAMES.get(kind, kind), raw, INSTRUCTION, noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_negative_prompt_becomes_the_same_tokens(family: str):
    fixture = Fixture(family)
    processor, config = open_processor(fixture.folder), json.loads((fixture.folder / "config.json").read_text())
    merge, image = processor.image_processor.merge_size, config["image_token_id"]
    seen = set()
    for row in fixture.rows:
        for kind in fixture.kinds(row):
            asked, known = fixture.asked(row, kind), fixture.prompts[row]["kinds"][kind]
            assert asked.text == known["text"]
            assert chat(processor, asked.text) == known["chat"]
            grids = [read_picture(processor.image_processor, pixels).grid for pixels in asked.pictures]
            expected = fixture.io.get(f"{row}/{kind}/grid_thw", torch.empty(0, 3, dtype=torch.int32))
            assert [[1, *grid] for grid in grids] == expected.tolist()
            ids = prompt_ids(processor, image, asked, [height * width // merge**2 for height, width in grids])
            assert ids == fixture.io[f"{row}/{kind}/ids"].tolist()
            assert mrope_positions(ids, image, grids, merge).tolist() == fixture.io[f"{row}/{kind}/positions"].tolist()
            seen.add(kind)
    assert CONTRASTS.keys() <= seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patches_of_a_picture(family: str):
    fixture = Fixture(family)
    processor = open_processor(fixture.folder).image_processor
    for name in (name for name in fixture.io if name.endswith("/pixel_values")):
        row, kind, _ = name.split("/")
        pictures = [read_picture(processor, pixels) for pixels in fixture.asked(int(row), kind).pictures]
        pixels, grids = tower_inputs(processor, pictures, torch.empty(0))
        torch.testing.assert_close(pixels, fixture.io[name], atol=1e-5, rtol=0)
        assert grids.tolist() == fixture.io[f"{row}/{kind}/grid_thw"].tolist()


@pytest.mark.parametrize("family", WHOLE)
def test_the_logits_of_every_kind_alone_and_together(family: str):
    """Rows of all lengths, left-padded beside each other, and as the second branch; completions of mixed lengths."""
    fixture, policy = Fixture(family), QwenVLPolicy.load(FOLDER / family)
    cases = [(row, kind) for row in fixture.rows for kind in fixture.kinds(row)]
    asked, first = [fixture.asked(*case) for case in cases], fixture.asked(fixture.rows[0], "positive")
    completions = [fixture.io[f"{row}/completion"].long() for row, _ in cases]
    with torch.no_grad():
        for (row, kind), question, tokens in zip(cases, asked, completions, strict=True):
            logits = policy.head(policy.hidden(policy.encode([question]), tokens[None], 1))[0, 0]
            torch.testing.assert_close(logits, fixture.io[f"{row}/{kind}/logits"], **LOGITS)
        tokens = torch.nn.utils.rnn.pad_sequence(completions, batch_first=True)
        states = policy.hidden(policy.encode([first] * len(asked), asked), tokens, 2)
        for (row, kind), own in zip(cases, policy.head(states[1]), strict=True):
            expected = fixture.io[f"{row}/{kind}/logits"]
            torch.testing.assert_close(own[: len(expected)], expected, **LOGITS)


@pytest.mark.parametrize("family", WHOLE)
def test_the_logits_on_the_way_through_the_cache(family: str):
    fixture, policy = Fixture(family), QwenVLPolicy.load(FOLDER / family)
    asked = [fixture.asked(row, "positive") for row in fixture.rows]
    against = [fixture.asked(row, "wrong-answer") for row in fixture.rows]
    completions = [fixture.io[f"{row}/completion"].long() for row in fixture.rows]
    tokens = torch.nn.utils.rnn.pad_sequence(completions, batch_first=True)
    state = policy.prefill(policy.encode(asked, against), group_size=1, branches=2)
    logits = [policy.next_logits(state)]
    for token in tokens[:, :-1].split(1, dim=1):
        policy.append(state, token)
        logits.append(policy.next_logits(state))
    for branch, kind in zip(torch.cat(logits, dim=2), ("positive", "wrong-answer"), strict=True):
        for row, own in zip(fixture.rows, branch, strict=True):
            expected = fixture.io[f"{row}/{kind}/logits"]
            torch.testing.assert_close(own[: len(expected)], expected, **LOGITS)
    ends = [row[-1].item() in policy.stop_tokens for row in completions]
    assert all(ends)
    texts = [fixture.prompts[row]["completion"].removesuffix("<|im_end|>") for row in fixture.rows]
    assert policy.decode(tokens) == texts


def test_what_is_blackened():
    io = load_file(FOLDER / "masked.safetensors")
    for case in sorted({name.split("/")[0] for name in io}):
        picture, uniforms = io[f"{case}/picture"].numpy(), io[f"{case}/uniforms"].numpy()
        np.testing.assert_array_equal(blackened(picture, uniforms), io[f"{case}/masked"].numpy())


def test_the_sizes_of_pictures(tmp_path: Path):
    """The data's, then the image processor's own, with the limits of the published checkpoints."""
    known = [open_processor(FOLDER / family).image_processor for family in FAMILIES]
    processors = {processor.patch_size * processor.merge_size: processor for processor in known}
    for case in json.loads((FOLDER / "sizes.json").read_text()):
        least, most, factor = case["min_pixels"], case["max_pixels"], case["factor"]
        assert list(fitted(case["width"], case["height"], least, most)) == case["resized"]
        width, height = case["resized"]
        processor = processors[factor]
        processor.size = {"shortest_edge": 4 * factor**2, "longest_edge": 16384 * factor**2}
        rows, columns = read_picture(processor, np.zeros((height, width, 3), np.uint8)).grid
        assert [columns * factor // 2, rows * factor // 2] == case["model"]
        assert rows * columns // 4 == case["image_tokens"]


@pytest.mark.parametrize(("mode", "size"), product(("RGB", "L", "P", "RGBA", "1"), ((40, 30), (9, 5))))
def test_a_picture_is_resized_before_its_colours(mode: str, size: tuple[int, int]):
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)).convert(mode)
    found = fit(picture, least=400, most=900)
    assert found.mode == "RGB" and 340 < found.width * found.height <= 900
    assert found.tobytes() == picture.resize(found.size).convert("RGB").tobytes()


def test_the_messages_of_the_release():
    """The 7B script's negative text gets the instruction twice; the others are texts like any."""
    for case in json.loads((FOLDER / "released_prompts.json").read_text()):
        noise, raw = np.random.default_rng(0), Question(case["question"])
        if case["setting"].startswith("7b"):
            asked = positive(raw, INSTRUCTION).text
            name = {"7b": "wrong-answer-released"}.get(
                case["setting"], f"text:{instructed('Answer the question.', INSTRUCTION)}"
            )
            against = contrast(name, raw, INSTRUCTION, noise).text
        else:
            asked, against = case["question"], f"{case['question']}, but generate the wrong answer"
        for text, kind in ((asked, "positive"), (against, "negative")):
            assert [{"role": "user", "content": content(text)}] == case[kind]
