"""A random Qwen-VL of either family that every test can afford: three layers, patches of 4 pixels, a line of words."""

import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from models.qwen_vl.policy import QwenVLPolicy

KINDS = ("qwen2_5_vl", "qwen3_vl")
PATCH, MERGE = 4, 2
WORDS = "? . a and are blue circle color count how is left many of one photo red square system the there three two user"
SPECIAL = [
    f"<|{name}|>"
    for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,  # the deep features of two are added to the first two
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VISION = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": PATCH}


def picture(seed: int, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save_processor(kind: str, folder: Path) -> None:
    """The files that a released checkpoint has, from which transformers builds tokenizer and processor."""
    words = ["[UNK]", *WORDS.split(), "assistant", *SPECIAL]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL
    )
    fast.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    pictures = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 32 * 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }
    name = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    image = {"image_processor_type": "Qwen2VLImageProcessor", **pictures}
    (folder / "preprocessor_config.json").write_text(json.dumps({"processor_class": f"{name}Processor", **image}))
    video = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[kind]
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"video_processor_type": video, **pictures}))


def random_qwen(kind: str, folder: Path, seed: int = 0) -> QwenVLPolicy:
    """The policy; `folder` is a place for the processor's files."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_processor(kind, folder)
    processor = AutoProcessor.from_pretrained(folder)
    numbers = processor.tokenizer.get_vocab()
    marks = {
        f"{mark}_token_id": numbers[f"<|{token}|>"]
        for mark, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    ends = {"bos_token_id": numbers["<|endoftext|>"], "eos_token_id": numbers["<|im_end|>"]}
    text = {**TEXT, **ends, "vocab_size": len(numbers)}
    vision = {**VISION, "out_hidden_size": TEXT["hidden_size"]}
    if kind == "qwen2_5_vl":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        config = Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**vision, "window_size": 16, "fullatt_block_indexes": [1]},
            **marks,
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        config = Qwen3VLConfig(
            text_config={**text, "head_dim": 8, "rope_parameters": rope},
            vision_config={**vision, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]},
            **marks,
        )
        model = Qwen3VLForConditionalGeneration(config)
    # transformers' initialisation is nearly flat: without sharper weights every answer looks alike to a test.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6) if parameter.ndim >= 2 else parameter.add_(0.1 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = [numbers["<|im_end|>"], numbers["<|endoftext|>"]]
    return QwenVLPolicy(model, processor)
