"""What T2I-CompBench reads out of its prompts, through spaCy. The model's version changes questions and so scores."""

from typing import Any, Protocol

from rewards.errors import RewardError

MODEL = "en_core_web_sm"
INSTALL = (
    "pip install spacy https://github.com/explosion/spacy-models/releases/download/"
    f"{MODEL}-3.8.0/{MODEL}-3.8.0-py3-none-any.whl"
)


class Language(Protocol):
    """Parts of English sentences.

    name: says which model they are from.
    """

    name: str

    def noun_phrases(self, text: str) -> list[str]: ...

    def nouns(self, text: str) -> list[str]: ...

    def words(self, text: str) -> list[str]: ...

    def without_adjectives(self, text: str) -> str: ...


class Spacy:
    """By spaCy's small English model."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline = pipeline
        self.name = name

    def noun_phrases(self, text: str) -> list[str]:
        return [phrase.text for phrase in self.pipeline(text).noun_chunks]

    def nouns(self, text: str) -> list[str]:
        return [word.text for word in self.pipeline(text) if word.pos_ == "NOUN"]

    def words(self, text: str) -> list[str]:
        return [word.text for word in self.pipeline(text)]

    def without_adjectives(self, text: str) -> str:
        return " ".join(word.text for word in self.pipeline(text) if word.pos_ != "ADJ")


def load_language() -> Language:
    """Raises RewardError with the command that installs it."""
    try:
        import spacy

        pipeline = spacy.load(MODEL)
    except (ImportError, OSError) as error:
        raise RewardError(f"T2I-CompBench's prompts are read by spaCy, which is not here: run {INSTALL}") from error
    return Spacy(pipeline, f"spaCy {spacy.__version__} {MODEL} {pipeline.meta['version']}")
