"""Prompt sets by name: what they are, where their files come from, and where they lie here.

`t2i-rl data` makes or downloads them into `prompts` of the cache (`rewards.files.pins.cache_folder`); a run names them
like files (`--prompts geneval-train`). The SHA-256 of a file whose bytes we have seen stands here; that of another is
recorded at its first download and compared from then on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rewards.files.pins import cache_folder, compare, pin, pins, sha256
from t2i_rl.errors import UserError
from t2i_rl.prompts.files import read
from t2i_rl.prompts.geneval import BENCHMARK_SHA256, HELDOUT_SHA256
from t2i_rl.prompts.prompt import Prompt


@dataclass(frozen=True)
class Source:
    """A file: where it lies below the set's address, and the SHA-256 of the bytes we saw, if we saw them."""

    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """A set of prompts.

    about, licence: for people; of what is made here there is no licence to state.
    files: what a run can name, and where it comes from.
    address: what the files lie below, where it is known; nothing for what is only made.
    made: whether `t2i-rl data make` makes it.
    """

    about: str
    files: Mapping[str, Source]
    licence: str = ""
    address: str = ""
    made: bool = False


GITHUB = "https://raw.githubusercontent.com"
COMPBENCH = {
    "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
    "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
    "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    "spatial": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
    "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
    "complex": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
    "3d_spatial": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
    "numeracy": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
}
COMPBENCH_PARTS = {  # of `complex`, for its 3-in-1 score
    "complex_action": "d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e",
    "complex_spatial": "6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02",
    "complex_spatialaction": "e02ddc7fed812e6577e7386ec2137ce0a994a5ce19771661f68df7ac349a6ca9",
}
HELD_OUT = 36  # one in so many of T2I-R1's prompts
ASIDE = 40  # one in so many of ViRL39K's questions
HPS_STYLES = ("anime", "concept-art", "paintings", "photo")

SETS: dict[str, PromptSet] = {
    "geneval": PromptSet(
        "the GenEval benchmark: 553 records of six tags",
        {"geneval": Source("evaluation_metadata.jsonl", BENCHMARK_SHA256)},
        "MIT, (c) 2023 Dhruba Ghosh",
        f"{GITHUB}/djghosh13/geneval/main/prompts",
        made=True,
    ),
    "geneval-train": PromptSet(
        "training prompts in GenEval's grammar, over all 80 classes, none of the benchmark's and none held out",
        {"geneval-train": Source("geneval-train.jsonl")},
        made=True,
    ),
    "geneval-heldout": PromptSet(
        "200 prompts to choose checkpoints by, 40 of each tag, none of the benchmark's or of the training sets'",
        {"geneval-heldout": Source("geneval-heldout.jsonl", HELDOUT_SHA256)},
        made=True,
    ),
    "geneval-train-seen": PromptSet(
        "the same over 60 classes",
        {"geneval-train-seen": Source("geneval-train-seen.jsonl")},
        made=True,
    ),
    "geneval-unseen": PromptSet(
        "the same over the other 20 classes, to test what geneval-train-seen taught",
        {"geneval-unseen": Source("geneval-unseen.jsonl")},
        made=True,
    ),
    "flow-grpo-unseen": PromptSet(
        "Flow-GRPO's test over those 20 classes: 1,024 GenEval records, 256 different ones",
        {
            "flow-grpo-unseen": Source(
                "test_metadata.jsonl", "174536b49af23b0e2abc4e3215fce5d375de13d6040a50642709240a76dc1a24"
            )
        },
        "MIT, (c) 2025 Jie Liu",
        f"{GITHUB}/yifan123/flow_grpo/main/dataset/geneval_unseen_objects",
    ),
    "t2i-compbench": PromptSet(
        "T2I-CompBench++: 300 validation prompts of each of eight categories, the parts of `complex`, the noun table",
        {
            **{f"t2i-compbench/{name}": Source(f"{name}_val.txt", digest) for name, digest in COMPBENCH.items()},
            **{
                f"t2i-compbench/{name}": Source(f"{name.replace('_', '_val_', 1)}.txt", digest)
                for name, digest in COMPBENCH_PARTS.items()
            },
            "t2i-compbench/new_objects": Source(
                "new_objects.txt", "f39a3d2ff6067d7738673cbf465dc659ccc750776162989a5d9916f1d5f3e231"
            ),
        },
        "MIT, (c) 2023 HKU",
        f"{GITHUB}/Karine-Huang/T2I-CompBench/main/examples/dataset",
    ),
    "drawbench": PromptSet(
        "DrawBench: 200 prompts in 11 categories",
        {"drawbench": Source("drawbench_data.csv", "e120fd4d8aa8f6c44b0b3ee92d9dfb7463c67f5b2d427d23a2bf388f80a0c0c1")},
        "Apache-2.0 of the repository of this copy; the Imagen paper's list carries none",
    ),
    "hps": PromptSet(
        "the HPSv2 benchmark: 800 prompts of each of four styles",
        {f"hps/{style}": Source(f"{style}.json") for style in HPS_STYLES},
        "not known to us",
        "https://huggingface.co/datasets/zhwang/HPDv2/resolve/main/benchmark",
    ),
    "t2i-r1": PromptSet(
        "T2I-R1's training prompts: 7,223, six of them T2I-CompBench's validation prompts",
        {"t2i-r1": Source("geneval_and_t2i_data_final.json")},
        "Apache-2.0",
        f"{GITHUB}/CaraJ7/T2I-R1/main/data",
    ),
    "t2i-r1-train": PromptSet(
        "t2i-r1 without T2I-CompBench's validation prompts and those held out: about 7,000, not the 15,000 of HPSv2's "
        "that arXiv:2509.22485 trained on: no address of those is known to us, --prompts FILE takes them",
        {"t2i-r1-train": Source("t2i-r1-train.jsonl")},
        made=True,
    ),
    "t2i-r1-heldout": PromptSet(
        "one in 36 of the same, to choose checkpoints by: about 200",
        {"t2i-r1-heldout": Source("t2i-r1-heldout.jsonl")},
        made=True,
    ),
    **{
        name: PromptSet(about, {name: Source(f"{name}.jsonl")}, "see its hub page", made=True)
        for name, about in {
            "virl39k": "ViRL39K: 38,870 questions of mathematics and science, most with pictures, with their answers",
            "virl39k-train": "virl39k without those held out: about 37,900",
            "virl39k-heldout": "one in 40 of the same, to choose checkpoints by: about 970",
            "mathverse": "the MathVerse benchmark as VPPO's and GCPO's figures take it: 2,180 questions with choices",
            "mathvision": "the MathVision benchmark, likewise: 2,907 questions",
            "mm12k": "the test questions of MMK12, likewise: 2,000 of four subjects",
            "logicvista": "the LogicVista benchmark, likewise: 447 questions",
            "mmmu-pro": "the MMMU-Pro benchmark, likewise: 1,730 questions inside their pictures",
        }.items()
    },
}
NAMES = {name: known for known in SETS.values() for name in known.files}


def find_set(name: str) -> PromptSet:
    """The set of that name. Raises UserError."""
    if name not in SETS:
        raise UserError(f"there is no prompt set {name!r}: choose one of {', '.join(SETS)}")
    return SETS[name]


def place(name: str) -> Path:
    """Where the file of that name lies, or would. Raises UserError for a name that is none."""
    if name not in NAMES:
        members = f" ({', '.join(SETS[name].files)})" if name in SETS else ""
        raise UserError(f"{name!r} names no single prompt file{members}: t2i-rl data list shows the names")
    return cache_folder() / "prompts" / (name + PurePosixPath(NAMES[name].files[name].path).suffix)


def command(name: str) -> str:
    """What brings the file of that name here."""
    owner = next(one for one, known in SETS.items() if name in known.files)
    if SETS[owner].made:
        return f"t2i-rl data make {owner}"
    return f"t2i-rl data get {owner}" + ("" if SETS[owner].address else " --address URL")


def prompt_file(name: str) -> Path:
    """The file of that name, as it was first seen. Raises UserError if it is not here, RewardError if it changed."""
    path = place(name)
    if not path.is_file():
        raise UserError(f"the prompts {name} are not here yet: run {command(name)}")
    verify(name, path, sha256(path), f"remove it and run {command(name)}")
    if NAMES[name].address and not NAMES[name].files[name].sha256:
        pin(_key(name), path)
    return path


def _key(name: str) -> str:
    return f"prompts:{name}"


def verify(name: str, origin: str | Path, digest: str, mend: str) -> None:
    """The bytes are those that were seen: by us, or on this machine at the first download.

    Raises UserError or RewardError that names where they are from.
    """
    expected = NAMES[name].files[name].sha256
    if expected is None:
        compare(_key(name), origin, digest)
    elif digest != expected:
        raise UserError(
            f"{origin} does not hold the prompts {name} as we know them (SHA-256 {digest[:8]}..., not "
            f"{expected[:8]}...): {mend}"
        )


def pinned(name: str) -> str:
    """Whether the file's checksum is known, in a word."""
    source = NAMES[name].files[name]
    if source.sha256:
        return f"pinned {source.sha256[:8]}"
    if not NAMES[name].address:
        return "no pin"
    recorded = pins().get(_key(name))
    return f"recorded {recorded['sha256'][:8]}" if recorded else "unpinned"


def _plain(text: str) -> str:
    return text.strip().lower().rstrip(".")


def is_held_out(prompt: str) -> bool:
    """Whether it is one of the prompts of T2I-R1 in `HELD_OUT` that are not trained on: the text decides alone."""
    return int(hashlib.sha256(_plain(prompt).encode()).hexdigest(), 16) % HELD_OUT == 0


def t2i_r1(held_out: bool) -> list[dict[str, Any]]:
    """T2I-R1's prompts that are held out, or all others; texts that differ in case or a full stop count as the same.

    Neither are those of T2I-CompBench.
    """
    tested = {
        _plain(line)
        for name in COMPBENCH
        for line in prompt_file(f"t2i-compbench/{name}").read_text(encoding="utf-8").splitlines()
    }
    path = prompt_file("t2i-r1")
    own = [one for one in read(path.read_text(encoding="utf-8"), str(path)) if _plain(one.text) not in tested]
    return [dict(one.metadata) for one in own if is_held_out(one.text) == held_out]


def virl39k(held_out: bool) -> list[dict[str, Any]]:
    """ViRL39K's questions that are held out, or all others: the pictures decide, so that all questions about one are on
    the same side; without any, the text."""
    path = prompt_file("virl39k")
    own = read(path.read_text(encoding="utf-8"), str(path))
    return [dict(one.metadata) for one in own if _is_aside(one) == held_out]


def _is_aside(question: Prompt) -> bool:
    seen = "\n".join(question.metadata.get("images", ())) or question.text
    return int(hashlib.sha256(seen.encode()).hexdigest(), 16) % ASIDE == 0
