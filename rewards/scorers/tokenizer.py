"""CLIP's tokens of a text, as open_clip has them, in a time that grows with the text alone."""

import open_clip
from tokenizers.models import BPE


class ClipTokenizer(open_clip.SimpleTokenizer):
    """open_clip's own merging of a word takes the square of its length, and keeps every word that was ever seen."""

    def __init__(self, context_length: int) -> None:
        super().__init__(context_length=context_length)
        self.merging = BPE(self.encoder, list(self.bpe_ranks), end_of_word_suffix="</w>")

    def bpe(self, token: str) -> str:
        """The parts of a word, a blank between them; the tokenizer's own marks are whole."""
        return self.cache.get(token) or " ".join(part.value for part in self.merging.tokenize(token))

    def has_more(self, text: str) -> bool:
        """Whether a text has more tokens than are left of it."""
        room = self.context_length - 2  # but for the tokens of its ends
        # A token is a byte or more, and cleaning lengthens no ASCII: most texts need not be read for this.
        return not (text.isascii() and len(text) <= room) and len(self.encode(text)) > room
