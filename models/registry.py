"""From a name to a policy: the models we know, and any folder or hub id of a family we know.

A family is one file that holds a class with the `Policy` protocol and `load(source, dtype, device)`; a model is
one line of `MODELS`. A family of your own is `MODULE:CLASS@SOURCE`, or an entry point by its `model_type`. Nothing here
imports torch before a model is loaded, so that `--help` stays quick.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from models.device import device_of
from models.errors import ModelError
from models.files.adapter import ADAPTER_CONFIG, base_of, is_adapter
from models.files.config import read_json
from models.files.reading import digest, reading
from models.own import MODELS as ENTRY_POINTS
from models.own import SPELT, brought

if TYPE_CHECKING:
    import torch

    from models.policy import Policy

TINY, TINY_VLM = (Path(__file__).parent / name for name in ("tiny", "tiny_vlm"))
OWN = rf"({SPELT})@(.+)"  # a family of your own, and what its `load` takes
HUB_ID = r"\w[\w.-]*/[\w.-]+"

FAMILIES = {  # module and class
    "janus": ("models.janus.policy", "JanusPolicy"),
    "llamagen": ("models.llamagen.policy", "LlamaGenPolicy"),
    "star": ("models.star.policy", "StarPolicy"),
    "qwen_vl": ("models.qwen_vl.policy", "QwenVLPolicy"),
}
ANSWERING = ("qwen_vl",)  # families whose samples are texts, not pictures
MODEL_TYPES = {  # of a config.json
    "janus": "janus",
    "multi_modality": "janus",
    "llamagen": "llamagen",
    "star": "star",
    "qwen2_5_vl": "qwen_vl",
    "qwen3_vl": "qwen_vl",
}
FILES = {  # where it names none
    "t2i_*.pt": "llamagen",
    "vq_ds16_t2i.*": "llamagen",
    "star_*.pth": "star",
    "vae_ch160v4096z32.pth": "star",
}


@dataclass(frozen=True)
class ModelEntry:
    """One known model.

    family: a key of `FAMILIES`; None where only the checkpoint knows.
    source: what the family's `load` takes: a folder, or what the hub calls it.
    scales: sides of the square token maps; None where only the checkpoint knows, and of a model that answers in text.
    guidance: the scale that it is sampled with by default; None where only the checkpoint knows.
    like: the model that it was trained from or is a copy of, so that their sizes are the same.
    copies: further sources of the same weights.
    paper: that published it, where it was trained for one of the two whose methods are here.
    """

    name: str
    family: str | None
    source: str
    licence: str
    scales: tuple[int, ...] | None
    guidance: float | None
    like: str | None = None
    copies: tuple[str, ...] = ()
    paper: str = ""

    @property
    def grid(self) -> str:
        """`24x24` of a single token map, the sides of several; `text` of a model that answers in it."""
        if self.family in ANSWERING:
            return "text"
        sides = self.scales or ()
        return f"{sides[0]}x{sides[0]}" if len(sides) == 1 else " ".join(map(str, sides))


CRITICAL = "arXiv:2509.22485"  # Group Critical-token Policy Optimization
DEEPSEEK, UNSTATED = "DeepSeek Model License", "see its hub page"
# As scripts that sample these models name the files; not seen from here.
STAR_FILE = "taocrayon/STAR/star_rope_d30_"
STAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
STAR_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
STAR_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry("tiny", "janus", str(TINY), "Apache-2.0", (12,), 1.5),
        ModelEntry(
            "janus-pro-1b",
            "janus",
            "deepseek-community/Janus-Pro-1B",
            DEEPSEEK,
            (24,),
            5.0,
            copies=("deepseek-ai/Janus-Pro-1B",),
        ),
        ModelEntry(
            "janus-pro-7b",
            "janus",
            "deepseek-community/Janus-Pro-7B",
            DEEPSEEK,
            (24,),
            5.0,
            copies=("deepseek-ai/Janus-Pro-7B",),
        ),
        # Trained with reinforcement learning by others, in DeepSeek's format.
        ModelEntry(
            "janus-pro-1b-gcpo-hps",
            "janus",
            "zghhui/Janus-Pro-1B-GCPO-HPS",
            UNSTATED,
            (24,),
            5.0,
            "janus-pro-1b",
            paper=CRITICAL,
        ),
        ModelEntry(
            "janus-pro-1b-gcpo-geneval",
            "janus",
            "zghhui/Janus-Pro-1B-GCPO-Geneval",
            UNSTATED,
            (24,),
            5.0,
            "janus-pro-1b",
            paper=CRITICAL,
        ),
        ModelEntry(
            "janus-pro-7b-gcpo-hps",
            "janus",
            "zghhui/Janus-Pro-7B-GCPO-HPS",
            UNSTATED,
            (24,),
            5.0,
            "janus-pro-7b",
            paper=CRITICAL,
        ),
        ModelEntry(
            "janus-pro-7b-gcpo-geneval",
            "janus",
            "zghhui/Janus-Pro-7B-GCPO-Geneval",
            UNSTATED,
            (24,),
            5.0,
            "janus-pro-7b",
            paper=CRITICAL,
        ),
        ModelEntry(
            "janus-pro-7b-gcpo", "janus", "KonstantinosKK/Janus-Pro-7B-GCPO", UNSTATED, (24,), 5.0, "janus-pro-7b"
        ),
        ModelEntry("llamagen-256", "llamagen", "peizesun/llamagen_t2i/t2i_XL_stage1_256.pt", "MIT", (16,), 7.5),
        ModelEntry("llamagen-512", "llamagen", "peizesun/llamagen_t2i/t2i_XL_stage2_512.pt", "MIT", (32,), 7.5),
        # The 256 px model again, in the format of the one below, which was trained from it by others.
        ModelEntry("llamagen-256-base", "llamagen", "zghhui/LlamaGen-T2I", UNSTATED, (16,), 7.5, "llamagen-256"),
        ModelEntry(
            "llamagen-256-gcpo",
            "llamagen",
            "zghhui/LlamaGen-T2I-GCPO",
            UNSTATED,
            (16,),
            7.5,
            "llamagen-256",
            paper=CRITICAL,
        ),
        ModelEntry("star-256", "star", f"{STAR_FILE}256-ar-ckpt-ep3-iter20000.pth", "MIT", STAR_256, 4.0),
        ModelEntry("star-512", "star", f"{STAR_FILE}512-ar-ckpt-ep1-iter30000.pth", "MIT", STAR_512, 4.0),
        ModelEntry("star-1024", "star", f"{STAR_FILE}1024_drop_3-ar-ckpt-ep1-iter21000.pth", "MIT", STAR_1024, 4.0),
        ModelEntry("tiny-vlm", "qwen_vl", str(TINY_VLM), "Apache-2.0", None, 1.0),
        ModelEntry("qwen2.5-vl-7b", "qwen_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0", None, 1.0),
        ModelEntry("qwen3-vl-8b", "qwen_vl", "Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0", None, 1.0),
    )
}


def find(name_or_path: str) -> ModelEntry:
    """The entry of a known name or source, or one for a path here or an `owner/name` of the hub.

    Reads no files of the model (`models.kin` does). Raises ModelError.
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    if own := re.fullmatch(OWN, name_or_path):
        return ModelEntry(name_or_path, own[1], own[2], "unknown", None, None)
    for name, entry in MODELS.items():
        if name_or_path in (entry.source, *entry.copies):
            return replace(entry, name=name_or_path, source=name_or_path, like=entry.like or name)
    if Path(name_or_path).exists() or re.fullmatch(HUB_ID, name_or_path):
        return ModelEntry(name_or_path, None, name_or_path, "unknown", None, None)
    meant = "".join(f"did you mean {one}? " for one in get_close_matches(name_or_path, MODELS, 1))
    raise ModelError(
        f"unknown model {name_or_path!r}: {meant}give a folder, a hub id or one of the names {', '.join(MODELS)}"
    )


def elsewhere(model: str, folder: Path) -> str:
    """A checkpoint of a model in another folder, by the name that leads to the model's family again."""
    own = re.fullmatch(OWN, model)
    return f"{own[1]}@{folder}" if own else str(folder)


def family_of(source: str) -> str:
    """The family of a checkpoint, by the `model_type` of its config.json, else by its files' names.

    Raises ModelError where neither says.
    """
    from models.files.hub import fetch

    path = fetch(source, ("config.json",))
    folder = path if path.is_dir() else path.parent
    config, model_type = folder / "config.json", None
    if config.is_file():
        model_type = read_json(config).get("model_type")
        if isinstance(model_type, str) and model_type in MODEL_TYPES:
            return MODEL_TYPES[model_type]
        if isinstance(model_type, str) and (installed := [*entry_points(group=ENTRY_POINTS, name=model_type)]):
            return installed[0].value
    for pattern, family in FILES.items():
        if any(folder.glob(pattern)):
            return family
    said = f"has model_type {model_type!r}" if config.is_file() else "does not exist"
    raise ModelError(
        f"{config} {said}, so what {source} holds is unknown: give a checkpoint whose model_type is one of "
        f"{', '.join(MODEL_TYPES)}, with config and weights"
    )


def answers_in_text(name_or_path: str) -> bool | None:
    """Whether a model answers in text, as far as its name or its files here say; None where they do not."""
    try:
        entry = find(name_or_path)
        if entry.family is not None:
            return entry.family in ANSWERING
        if is_adapter(entry.source):
            return answers_in_text(base_of(Path(entry.source)))
        return family_of(entry.source) in ANSWERING if Path(entry.source).exists() else None
    except ModelError:  # said again, with more, where the model is loaded
        return None


def load(name_or_path: str, dtype: "torch.dtype | None" = None, device: str = "cpu", draws: bool = False) -> "Policy":
    """The policy of a known name, a path here or a hub id, in float32 unless told otherwise; adapters with their base.

    draws: whether a model will not do that answers in text; it is refused before its weights are read.
    Raises ModelError for an unknown name, and for a checkpoint that is not all there.
    """
    entry = find(name_or_path)
    device = device_of(device)
    import torch

    if is_adapter(entry.source):
        return _load_adapter(Path(entry.source), dtype, device, draws)
    kin = entry.family or family_of(entry.source)
    if draws and kin in ANSWERING:
        raise ModelError(f"{name_or_path} answers in text, and this draws pictures: choose another (t2i-rl models)")
    family = brought(":".join(FAMILIES.get(kin) or (kin,)), ENTRY_POINTS)
    if not hasattr(family, "load"):
        raise ModelError(f"{kin} is no family of models, for it has no load(source, dtype, device): give it one")
    policy: Policy = family.load(entry.source, dtype or torch.float32, device)
    _check_whole(policy, kin)
    if entry.scales not in (None, tuple(height for height, _ in policy.layout.maps)):
        raise ModelError(
            f"{entry.source} has token maps of {list(policy.layout.maps)}, but {entry.name} has {entry.grid}: "
            "copy it again"
        )
    return policy


def _check_whole(policy: "Policy", family: str) -> None:
    """Raise ModelError for a policy that lacks a part of the protocol."""
    from models.policy import Policy

    parts = [*Policy.__annotations__, *(name for name in vars(Policy) if not name.startswith("_"))]
    if missing := [name for name in parts if not hasattr(policy, name)]:
        raise ModelError(
            f"{family} is no family of models yet, for what it loads has no {', '.join(missing)}: give it what "
            "models/policy.py describes"
        )


def _load_adapter(folder: Path, dtype: "torch.dtype | None", device: str, draws: bool) -> "Policy":
    from models import lora

    name = base_of(folder)
    if is_adapter(name):
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} names {name} as its base, which holds adapters itself: the base of an adapter "
            "is a whole model, so name that, or merge first"
        )
    try:
        with reading() as files:
            base = load(name, dtype, device, draws)
    except ModelError as error:
        raise ModelError(f"the adapter {folder} needs its base {name}: {error}") from error
    return lora.attach(base, folder, digest(files))
