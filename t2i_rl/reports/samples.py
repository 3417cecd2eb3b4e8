"""The samples of a run for a page: the same held-out prompts at each evaluation, with what was thought of them."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.question import IMAGE
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.pictures.answers import answers_path, read_answers
from t2i_rl.pictures.pages import data_uri
from t2i_rl.pictures.strips import ROWS, alike, read_strip, strip_path
from t2i_rl.prompts.prompt import UNTAGGED, Prompt, balanced, tag_of
from t2i_rl.prompts.questions import question_of
from t2i_rl.training.picture_record import check_pictures
from t2i_rl.training.prompt_record import prompts_of
from t2i_rl.training.samples import SAMPLES, Verdict

SMALL = 192  # pixels: what is higher is stored as JPEG, and this high between the first evaluation and the last
KEPT_BEFORE = 8  # samples, two of each tag, of runs from before there were verdicts


@dataclass(frozen=True)
class Asked:
    """What a sample was asked. picture: of the question, as a URI; "" where there is none."""

    text: str
    tag: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Shown:
    """A sample: a picture as a URI, or an answer; and the verdict in words. right: None where nothing says that."""

    content: str
    said: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Samples:
    """Those of some evaluations, each in the order of the prompts. side: of a picture, pixels; 0 of answers."""

    asked: Sequence[Asked]
    steps: Mapping[int, Sequence[Shown]]
    side: int = 0


def read_samples(
    run: Path, config: TrainConfig, steps: Sequence[int], verdicts: Mapping[int, Sequence[Verdict]]
) -> Samples | None:
    """The samples of at most `ROWS` of the evaluated steps, evenly spaced; None where there are none."""
    kept = {step: [one for one in found if one.place is not None] for step, found in verdicts.items()}
    answers = {step: answers_path(run / SAMPLES, step) for step in steps}
    if any(path.exists() for path in answers.values()):
        texts = {step: read_answers(path) for step, path in answers.items() if path.exists()}
        return _answers(run, config, {step: found for step, found in texts.items() if found}, kept)
    strips = {step: strip_path(run / SAMPLES, step) for step in steps}
    there = [step for step, path in strips.items() if path.exists()]
    spaced = {there[index] for index in np.linspace(0, len(there) - 1, min(ROWS, len(there))).round().astype(int)}
    found = alike({step: read_strip(strips[step]) for step in sorted(spaced)})
    if not found:
        return None
    first, last = min(found), max(found)
    asked = _asked(
        run, config, kept.get(last, []), len(kept.get(last, [])) or round(found[last].width / found[last].height)
    )
    shown = {
        step: [
            _shown(picture_uri(one, whole=step in (first, last)), kept.get(step, []), place)
            for place, one in enumerate(np.array_split(np.asarray(strip.convert("RGB")), len(asked), axis=1))
        ]
        for step, strip in found.items()
    }
    return Samples(asked, shown, found[last].height)


def _answers(
    run: Path, config: TrainConfig, texts: Mapping[int, Sequence[str]], kept: Mapping[int, Sequence[Verdict]]
) -> Samples | None:
    if not texts:
        return None
    asked = _asked(run, config, kept.get(max(texts), []), len(texts[max(texts)]))
    shown = {
        step: [_shown(text, kept.get(step, []), place) for place, text in enumerate(found)]
        for step, found in sorted(texts.items())
        if len(found) == len(asked)
    }
    return Samples(asked, shown) if shown else None


def _shown(content: str, kept: Sequence[Verdict], place: int) -> Shown:
    found = next((one for one in kept if one.place == place), None)
    return Shown(content) if found is None else Shown(content, found.said, found.right)


def _asked(run: Path, config: TrainConfig, kept: Sequence[Verdict], samples: int) -> list[Asked]:
    """What so many samples were asked, by their verdicts; without those by the prompts, unless these are not there."""
    try:
        heldout = prompts_of(config, "heldout")
        judged = list({one.key: one for one in balanced(heldout, config.evaluation.images_per_tag)}.values())
        prompts = [judged[one.number] for one in kept] or balanced(heldout, 2)[:KEPT_BEFORE]
        check_pictures(run, "heldout", prompts)
        asked = [_told(one, _picture(config, one)) for one in prompts]
    except UserError:  # a file is not there any more, or is another
        asked = [_told(Prompt(one.prompt, {"tag": one.tag})) for one in kept]
    return asked if len(asked) == samples else [Asked("")] * samples


def _told(prompt: Prompt, picture: str = "") -> Asked:
    tag = tag_of(prompt)
    return Asked(prompt.text.replace(IMAGE, "").strip(), "" if tag == UNTAGGED else tag, picture)


def _picture(config: TrainConfig, prompt: Prompt) -> str:
    pictures = question_of(prompt, config.question.pictures).pictures
    return data_uri(pictures[0]) if pictures else ""


def picture_uri(pixels: np.ndarray, whole: bool) -> str:
    """A sample inside a URI: small ones as they are, others as JPEG, and smaller unless the whole is asked for."""
    if len(pixels) <= SMALL:
        return data_uri(pixels)
    image = Image.fromarray(pixels)
    if not whole:
        image = image.resize((max(1, image.width * SMALL // image.height), SMALL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90 if whole else 80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
