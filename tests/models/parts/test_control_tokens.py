"""Which texts are control tokens: every family's, and none of what people write."""

from pathlib import Path

import pytest
from tokenizers import AddedToken

from models.registry import load
from tests.conftest import random_janus
from tests.models.families import ALL_FAMILIES, save_family

SOME = {
    "janus": {"<begin_of_image>", "<|User|>", "<|Assistant|>", "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>"},
    "llamagen": {"<pad>", "</s>", "<unk>"},
    "star": {"<|startoftext|>", "<|endoftext|>"},
    "qwen2_5_vl": {"<|im_start|>", "<|im_end|>", "<|image_pad|>"},
    "qwen3_vl": {"<|im_start|>", "<|im_end|>", "<|image_pad|>"},
}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_names_its_own(family: str, tmp_path: Path) -> None:
    found = load(str(save_family(family, tmp_path / family))).control_tokens
    assert found >= SOME[family]
    assert not found & {"!", "<image>", "<think>", "</think>"}  # STAR's padding, Qwen's mark and words


def test_what_a_tokenizer_adds_beside_its_marks_is_none() -> None:
    """Janus' released vocabulary has added letters, and of its marks not every file says that they are special."""
    policy = random_janus()
    policy.tokenizer.add_tokens([AddedToken("ø", special=False), AddedToken("<｜hole｜>", special=False)])
    policy.tokenizer.add_tokens([AddedToken("!", special=True)], special_tokens=True)
    assert not policy.control_tokens & {"ø", "!", "<｜hole｜>"}
    for token in policy.tokenizer.added_tokens_decoder.values():
        token.special = False
    assert policy.control_tokens >= SOME["janus"]
