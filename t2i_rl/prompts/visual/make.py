"""Published questions with pictures as prompt files of ours: `prompt`, `images`, `answer`, `tag`, `id`, `from`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.question import IMAGE
from t2i_rl.errors import UserError
from t2i_rl.prompts.visual.published import Pictures, Row, find_files, rows
from t2i_rl.prompts.visual.sets import MESSAGES, TABLE, VISUAL, Item, PublishedSet, answer_of, from_messages


class Records:
    """The records of a set, one after the other; `left_out` counts the rows without an answer as they are met."""

    def __init__(self, name: str, source: Path, out: Path) -> None:
        """out: the prompt file, beside which pictures are unpacked and written. Raises UserError for other files."""
        self.set: PublishedSet = VISUAL[name]
        self.files = find_files(source, self.set.files)
        self.pictures = Pictures(source, self.set.files, out.with_suffix(""))
        self.folder = out.parent.absolute()
        self.left_out = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises UserError that names the row for one that cannot be read, and for a set without answers."""
        known = 0
        for file in self.files:
            for place, row in rows(file):
                item, origin = self._read(row, place)
                if item is None:
                    continue
                answer = answer_of(item.answer)
                if answer is None:
                    self.left_out += 1
                    continue
                known += 1
                yield self._record(item, answer, place) | {"from": origin}
        if not known:
            raise UserError(f"{self.files[0]} holds no question with an answer: give the file that has the answers")

    def _read(self, row: Row, place: str) -> tuple[Item | None, str]:
        try:
            return (from_messages(row), MESSAGES) if MESSAGES in row else (self.set.read(row), TABLE)
        except UserError as error:
            raise UserError(f"{place} has {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{place} is not as published ({error!r}): copy the file again") from error

    def _record(self, item: Item, answer: str, place: str) -> dict[str, Any]:
        marks, given = item.text.count(IMAGE), len(item.pictures)
        if marks != given:
            raise UserError(f"{place} has {marks} mark(s) {IMAGE} and {given} picture(s): mend the row, or take it out")
        shown = [self.pictures.place(picture, place).absolute() for picture in item.pictures]
        return {
            "prompt": item.text,
            "images": [str(one.relative_to(self.folder) if self.folder in one.parents else one) for one in shown],
            "answer": answer,
            "tag": str(item.tag) or "all",
            "id": str(item.id),
        }


def lines(records: Records) -> Iterator[str]:
    for record in records:
        yield json.dumps(record, ensure_ascii=False) + "\n"


def downloaded(name: str) -> Path:
    """The folder of the published files of a set, from the hub. Raises UserError where they cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = VISUAL[name].repository
    try:
        wanted = [f"*{pattern}" for pattern in VISUAL[name].files]
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot fetch {repository} from the hub ({reason}): run `hf download --repo-type dataset {repository}` "
            "where there is a connection, and name its folder with --source"
        ) from error
