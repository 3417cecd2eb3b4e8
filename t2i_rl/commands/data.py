"""`t2i-rl data`: prompt sets are made, downloaded and listed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from t2i_rl.commands.arguments import parse
from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from t2i_rl.prompts.shapes_world import Record

OutFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
USAGE = """usage: t2i-rl data make NAME [OPTIONS] | get NAME [OPTIONS] | list

  make      write a set of prompts that is computed here, or read from published files with pictures: {made}
  get       download a set: {got}
  list      what each set is, whether its checksum is known, where it lies

See t2i-rl data make --help, t2i-rl data get --help"""
MOST_PROMPTS = 10_000_000
TRAINING = {"geneval-train": 50_000, "geneval-train-seen": 50_000, "geneval-unseen": 1024}  # records if not said

PARTS = ("virl39k-train", "virl39k-heldout")


@dataclass(frozen=True, kw_only=True)
class Make:
    """Write a prompt set that is computed, or questions with pictures in our form; the same again writes the same.

    Attributes:
        name: geneval, geneval-train, geneval-heldout, geneval-train-seen, geneval-unseen, t2i-r1-train or
            t2i-r1-heldout; virl39k, mathverse, mathvision, mm12k, logicvista or mmmu-pro; virl39k-train or
            virl39k-heldout.
        n: records; 50000 for training sets and 1024 for geneval-unseen if not given. The others have a fixed size.
        seed: of the choices.
        source: of questions with pictures, the published files: their folder, or one file; fetched from the hub if not
            given.
        out: where to, in place of the cache (from which --prompts NAME reads); pictures lie beside it.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    n: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    seed: int = 0
    source: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    out: OutFile = None


@dataclass(frozen=True, kw_only=True)
class Get:
    """Download a prompt set into the cache, where nothing is there yet, and compare its checksums.

    Attributes:
        name: of the set.
        address: of the folder that the files lie in, a mirror of the usual one.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    address: str = ""


def data(arguments: Sequence[str]) -> None:
    """make, download and list sets of prompts: data make geneval-train"""
    actions = {"make": _make, "get": _get, "list": _list}
    if list(arguments[:1]) in (["-h"], ["--help"]):
        from t2i_rl.prompts.sets import SETS

        made = ", ".join(name for name, known in SETS.items() if known.made)
        got = ", ".join(name for name, known in SETS.items() if known.address or not known.made)
        print(USAGE.format(made=made, got=got))
        return
    if not arguments or arguments[0] not in actions:
        said = f"there is no data command {arguments[0]!r}" if arguments else "nothing is asked for"
        raise UserError(f"{said}: use t2i-rl data make NAME, t2i-rl data get NAME or t2i-rl data list")
    actions[arguments[0]](arguments[1:])


def _make(arguments: Sequence[str]) -> None:
    wanted = parse(Make, arguments, "data make")
    from t2i_rl.prompts import sets as prompt_sets

    known = prompt_sets.find_set(wanted.name)
    if not known.made:
        raise UserError(f"{wanted.name} is not made but downloaded: use t2i-rl data get {wanted.name}")
    if wanted.n is not None and wanted.name not in TRAINING:
        raise UserError(f"{wanted.name} has a fixed size: leave out --n")
    total = TRAINING.get(wanted.name, 1) if wanted.n is None else wanted.n
    if not 0 < total <= MOST_PROMPTS:
        raise UserError(f"n is {total}: it has to be in 1..{MOST_PROMPTS}")
    if wanted.seed < 0:
        raise UserError(f"seed is {wanted.seed}: it has to be 0 or more")
    from rich.progress import track

    from t2i_rl.outputs import whole_file
    from t2i_rl.prompts.geneval import lines
    from t2i_rl.prompts.visual.sets import VISUAL

    out = wanted.out or prompt_sets.place(wanted.name)
    if wanted.name in VISUAL:
        _make_questions(wanted, out)
        return
    if wanted.name in PARTS and wanted.out:
        raise UserError(f"{wanted.name} lies beside virl39k, whose pictures it shows: leave out --out")
    if wanted.source:
        raise UserError(f"{wanted.name} is computed, not read from files: leave out --source")
    found, length = _records(wanted.name, total, wanted.seed)
    with whole_file(out) as file:
        for line in track(lines(found), wanted.name, total=length):
            file.write(line)
    print(f"{out}: {length:,} records")


def _make_questions(wanted: Make, out: Path) -> None:
    from rich.progress import track

    from t2i_rl.outputs import whole_file
    from t2i_rl.prompts.visual import make
    from t2i_rl.prompts.visual.sets import VISUAL

    if wanted.source and not wanted.source.exists():
        raise UserError(f"there is no {wanted.source}: give the folder of the published files with --source")
    records = make.Records(wanted.name, wanted.source or make.downloaded(wanted.name), out)
    written, usual = 0, VISUAL[wanted.name].questions
    with whole_file(out) as file:
        for line in track(make.lines(records), wanted.name, total=usual):
            file.write(line)
            written += 1
    others = f", {usual:,} are usual" if written != usual else ""
    lacking = f", without {records.left_out} that have no answer" if records.left_out else ""
    print(f"{out}: {written:,} questions{others}{lacking}")


def _records(name: str, total: int, seed: int) -> tuple[Iterable[Record], int]:
    """The records of a set that is made, and how many they are."""
    from rewards.detectors.coco import CLASSES
    from t2i_rl.prompts.geneval import SEEN, UNSEEN, benchmark, heldout_records, training_records
    from t2i_rl.prompts.sets import t2i_r1, virl39k

    if name in TRAINING:
        classes = {"geneval-train": CLASSES, "geneval-train-seen": SEEN, "geneval-unseen": UNSEEN}[name]
        return training_records(total, seed, classes), total
    fixed = {"geneval": benchmark, "geneval-heldout": heldout_records}
    parted = virl39k if name in PARTS else t2i_r1
    records = fixed[name]() if name in fixed else parted(held_out=name.endswith("-heldout"))
    return records, len(records)


def _get(arguments: Sequence[str]) -> None:
    wanted = parse(Get, arguments, "data get")
    from t2i_rl.prompts.download import get
    from t2i_rl.prompts.sets import pinned

    for name, path in get(wanted.name, wanted.address).items():
        print(f"{name}  {pinned(name)}  {path}")


def _list(arguments: Sequence[str]) -> None:
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: t2i-rl data list")
        return
    if arguments:
        raise UserError(f"t2i-rl data list lists all sets and takes nothing: leave out {arguments[0]}")
    from t2i_rl.prompts.sets import SETS, command, pinned, place

    for name, known in SETS.items():
        print(f"{name}: {known.about}")
        for label, said in (("licence", known.licence), ("from", known.address)):
            if said:
                print(f"  {label}: {said}")
        for one in known.files:
            path = place(one)
            print(f"  {one}  {pinned(one)}  {path if path.is_file() else f'not here: {command(one)}'}")
