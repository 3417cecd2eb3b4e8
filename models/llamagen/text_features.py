"""Caption features of a T5 encoder, computed once per caption and kept on disk.

The features of a caption are the encoder's last hidden states at its real tokens, the end-of-sentence token
included: padding to a fixed length and masking, as the originals do, changes nothing at those rows. Each caption
is encoded alone, so that its features do not depend on what it is asked together with.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from models.errors import ModelError
from models.files.hub import fetch
from models.llamagen.captions import clean_caption
from models.parts.text_encoders import load_encoder, load_tokenizer, longer

FILES = ("*.json", "*.model", "*.safetensors")  # of an encoder on the hub: no second copy in other formats


def default_cache() -> Path:
    """The user's cache folder, by the XDG convention. Raises ModelError for a user without one."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2i-rl" / "text-features"
    except RuntimeError as error:
        raise ModelError("this user has no home folder: let XDG_CACHE_HOME name one for text features") from error


class TextFeatures:
    """A T5 encoder behind a cache; its weights are read when the first new caption is asked for."""

    def __init__(
        self,
        source: str | Path,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        cache: Path | None = None,
        clean: bool = True,
    ) -> None:
        """source: a folder or hub id of an encoder and its tokenizer in transformers' format.

        cache: `default_cache()` if not given.
        max_tokens: longer captions lose their tail and keep the end-of-sentence token.
        clean: apply the cleaning that the training captions went through; without it only lower case.
        Raises ModelError if the folder holds no encoder.
        """
        folder = fetch(source, FILES)
        for name in ("config.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder / name} does not exist: put the text encoder (google/flan-t5-xl for the released "
                    "LlamaGen) there, in transformers' format"
                )
        self.source = str(folder.resolve()) if Path(source).exists() else str(source)
        self.folder, self.max_tokens, self.dtype, self.device, self.clean = folder, max_tokens, dtype, device, clean
        self.cache = (cache or default_cache()) / self._identity()

    def __call__(self, captions: Sequence[str]) -> list[Float[Tensor, "n C"]]:
        """One matrix per caption, a row per token, in the encoder's precision, on its device."""
        return [self._features(caption) for caption in map(self._read, captions)]

    def longer(self, captions: Sequence[str]) -> int:
        """How many captions have more than `max_tokens`."""
        return longer(self.tokenizer, [self._read(caption) for caption in captions], self.max_tokens)

    def _read(self, caption: str) -> str:
        return clean_caption(caption) if self.clean else caption.lower().strip()

    def _features(self, caption: str) -> Float[Tensor, "n C"]:
        path = self.cache / f"{hashlib.sha256(caption.encode()).hexdigest()}.safetensors"
        try:
            return load_file(path)["features"].to(self.device)
        except (FileNotFoundError, SafetensorError, KeyError):  # new, or torn by a full disk: computed again
            features = self._encode(caption)
        aside = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": features.contiguous()}, aside)
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(
                f"cannot keep text features in {path.parent} ({reason}): make room there, or let XDG_CACHE_HOME "
                "name another folder"
            ) from error
        return features

    @torch.no_grad()
    def _encode(self, caption: str) -> Float[Tensor, "n C"]:
        tokens = self.tokenizer(caption, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return self.encoder(tokens["input_ids"].to(self.device)).last_hidden_state[0]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    @cached_property
    def encoder(self) -> T5EncoderModel:
        return load_encoder(T5EncoderModel, self.folder, self.dtype, self.device)

    def _identity(self) -> str:
        """A short hash of what the features depend on besides the caption."""
        # A file counts by name, size and time of change: reading gigabytes at every start would cost more
        # than computing some features twice.
        files = [(path.name, path.stat()) for path in sorted(self.folder.iterdir()) if path.is_file()]
        parts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
        return hashlib.sha256(repr((parts, self.max_tokens, str(self.dtype))).encode()).hexdigest()[:16]
