"""The texts that a tokenizer takes for its own marks wherever they stand, also in what a person wrote."""

from transformers import PreTrainedTokenizerBase


def control_tokens(tokenizer: PreTrainedTokenizerBase, own: tuple[str, ...] = ()) -> frozenset[str]:
    """The special tokens and the family's own, those in angle brackets alone.

    Others are what people write: the vocabulary that STAR reads pads with "!", that of Janus has single letters.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return frozenset(token for token in (*special, *own) if token.startswith("<") and token.endswith(">"))
