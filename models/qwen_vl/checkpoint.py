"""Checkpoints of Qwen2.5-VL and Qwen3-VL as transformers has them: opened whole, or refused with one sentence."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers import Qwen3VLForConditionalGeneration as Qwen3VL

from models.errors import ModelError
from models.files.config import read_json
from models.files.hub import fetch
from models.files.pretrained import load_whole

KINDS: dict[str, type[PreTrainedModel]] = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VL}
NEVER_READ = re.compile(r"\.rotary_emb\.inv_freq$")  # tables that older releases stored
MOST_TOKENS = 2**22  # of an answer, beyond every model
FILES = ("*.json", "*.jinja", "*.safetensors")  # of a repository


def open_checkpoint(source: str | Path, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """The model and its processor, from a folder or a hub id. Raises ModelError for what is not a whole one."""
    folder = fetch(source, FILES)
    path = folder / "config.json"
    config = read_json(path)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in KINDS:
        raise ModelError(f"{path} has model_type {family!r}: a Qwen-VL has {' or '.join(map(repr, KINDS))}")
    processor = open_processor(folder)
    model = load_whole(KINDS[family], folder, "the model", NEVER_READ, dtype, device)
    text: Any = model.config.text_config
    longest = text.max_position_embeddings
    if longest > MOST_TOKENS:
        raise ModelError(f"{path} has max_position_embeddings {longest}, beyond every model: copy the checkpoint again")
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ModelError(f"{path} has layers of sliding attention, which are not built here: choose one without")
    known = processor.tokenizer.get_vocab().get(processor.image_token)
    if known != model.config.image_token_id:
        raise ModelError(
            f"{folder}: {processor.image_token} is {known} in the tokenizer and {model.config.image_token_id} in "
            "config.json: copy the checkpoint's own tokenizer"
        )
    return model, processor


def open_processor(folder: Path) -> Any:
    """Tokenizer, image processor and chat template; no code that comes with them is run. Raises ModelError."""
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what the tokenizers library raises is no narrower
        reason = " ".join(str(error).split())
        raise ModelError(f"the processor in {folder} cannot be read ({reason}): copy its files again") from error
    if not hasattr(processor, "image_processor"):
        raise ModelError(f"{folder} has a tokenizer alone: copy preprocessor_config.json or processor_config.json too")
    if not processor.chat_template:
        raise ModelError(f"{folder} has no chat template: copy chat_template.jinja or chat_template.json too")
    return processor


def stop_tokens(model: Any, processor: Any) -> tuple[int, ...]:
    """The tokens that end an answer, by generation_config.json, else the tokenizer's. Raises ModelError without one."""
    stops = model.generation_config.eos_token_id
    if stops is None:
        stops = processor.tokenizer.eos_token_id
    if stops is None:
        raise ModelError(
            "neither generation_config.json nor the tokenizer names a token that ends an answer: copy both"
        )
    return (stops,) if isinstance(stops, int) else tuple(stops)
