"""Text encoders and their tokenizers from folders in transformers' format; whole, or refused with one sentence."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.errors import ModelError
from models.files.pretrained import Model, load_whole

# What the encoders' files hold besides: T5's decoder, the rest of a whole CLIP, a table that follows from its size.
NEVER_READ = re.compile(
    r"^(decoder|lm_head|vision_model|visual_projection|text_projection)\.|^logit_scale$|\.position_ids$"
)


def load_encoder(kind: type[Model], folder: Path, dtype: torch.dtype, device: str) -> Model:
    """The encoder, frozen. Raises ModelError, also for weights that transformers would make up or pass over."""
    return load_whole(kind, folder, "the text encoder", NEVER_READ, dtype, device)


def longer(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int) -> int:
    """How many of the texts have more tokens, those at the ends included."""
    if not texts:
        return 0
    return sum(len(ids) > tokens for ids in tokenizer(list(texts), verbose=False)["input_ids"])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer; no code that comes with it is run. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what the tokenizers library raises is no narrower
        reason = " ".join(str(error).split())
        raise ModelError(f"the tokenizer in {folder} cannot be read ({reason}): copy it again") from error
