"""Random BLIP, OWLv2 and DPT checkpoints in transformers' format that every test can afford."""

import json
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

WORDS = [
    "a",
    "the",
    "red",
    "green",
    "blue",
    "bench",
    "bowl",
    "cup",
    "cat",
    "dog",
    "yes",
    "no",
    "?",
    "of",
    "photo",
    "and",
]


def sharpen(model: torch.nn.Module, factor: float) -> None:
    """Initialisation is nearly flat: every picture would look alike to a test."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(factor)


def save_blip(folder: Path) -> Path:
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "bos_token_id": words.index("[DEC]"),
        "pad_token_id": 0,
        "sep_token_id": 3,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 48,
    }
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = BlipForQuestionAnswering(config)
    sharpen(model, 12)
    model.save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def save_owlv2(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    signs = sorted({sign for word in WORDS for sign in word})
    vocabulary = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=48)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": vocabulary.index("<|startoftext|>"),
        "eos_token_id": vocabulary.index("<|endoftext|>"),
        "pad_token_id": vocabulary.index("<|endoftext|>"),
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))
    sharpen(model, 8)
    model.save_pretrained(folder)
    processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_dpt(folder: Path) -> Path:
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
    )
    model = DPTForDepthEstimation(config)
    sharpen(model, 6)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class Plain:
    """English by word lists, in place of spaCy."""

    name = "word lists"
    NOUNS = ("bench", "bowl", "cup", "cat", "dog", "dogs", "cats", "cups")
    ADJECTIVES = ("red", "green", "blue")

    def words(self, text: str) -> list[str]:
        return text.replace(".", " .").replace(",", " ,").split()

    def nouns(self, text: str) -> list[str]:
        return [word for word in self.words(text) if word in self.NOUNS]

    def noun_phrases(self, text: str) -> list[str]:
        return [phrase.strip(" .") for phrase in text.split(" and ")]

    def without_adjectives(self, text: str) -> str:
        return " ".join(word for word in self.words(text) if word not in self.ADJECTIVES)
