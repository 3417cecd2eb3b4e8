"""T2I-CompBench's scorers: each a model's answers put into a formula, one or two categories each."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from eval.benchmark import TOTAL, Judgement, Scorer
from eval.compbench.attributes import attribute_score, questions
from eval.compbench.boxes import LabelDetector, Labelled, detector_size
from eval.compbench.language import Language
from eval.compbench.numeracy import counted, numeracy_score
from eval.compbench.spatial import depth_score, person, plane_score
from eval.compbench.three_in_one import three_in_one
from rewards.cut import Cut, added
from rewards.errors import RewardError
from rewards.reward import Reward, score_images
from t2i_rl.prompts.prompt import Prompt

Pictures = Sequence[UInt8[ndarray, "H W 3"]]
PLACES = ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")  # of `complex`


class YesNo(Protocol):
    name: str

    def answers(self, image: UInt8[ndarray, "H W 3"], questions: Sequence[str]) -> list[float]: ...


class DepthMap(Protocol):
    name: str

    def map(self, image: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "H W"]: ...


class AttributeScorer:
    """color, shape, texture: a question for every noun phrase."""

    def __init__(self, model: YesNo, language: Language) -> None:
        self.model, self.language = model, language
        self.name = f"{model.name}, {language.name}"

    def check(self, prompts: Sequence[Prompt]) -> None:
        pass

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        judged = []
        for image, prompt in zip(images, prompts, strict=True):
            asked = questions(self.language.noun_phrases(prompt.text))
            answers = self.model.answers(image, asked)
            details = {"yes": dict(zip(asked, answers, strict=True))}
            judged.append(Judgement({TOTAL: attribute_score(answers)}, details=details))
        return judged


class ActionScorer:
    """non_spatial: CLIP's cosine with the prompt; for complex prompts, with what is left without adjectives."""

    def __init__(self, clip: Reward, language: Language | None = None) -> None:
        self.clip, self.language = clip, language
        self.name = clip.name

    def check(self, prompts: Sequence[Prompt]) -> Sequence[Cut] | None:
        return self.clip.check(self.texts(prompts), [{}] * len(prompts))

    def texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """What CLIP reads."""
        if self.language is None:
            return [prompt.text for prompt in prompts]
        return [self.language.without_adjectives(prompt.text) for prompt in prompts]

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        texts = self.texts(prompts)
        scores = score_images(self.clip, images, texts, [{}] * len(texts))
        return [Judgement({TOTAL: score}) for score in scores.total.tolist()]


class _Detecting:
    """What scorers by a detector share: pictures of its size, and the words that it may be asked for."""

    def __init__(self, detector: LabelDetector, language: Language, fixed: bool) -> None:
        self.detector, self.language, self.fixed = detector, language, fixed
        self.name = f"{detector.name}, {language.name}"

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.ends(prompt.text)

    def words(self, prompt: str) -> list[str]:
        """What is looked for: the objects at the prompt's ends, unless a scorer has it otherwise."""
        return [person(noun) for noun in self.ends(prompt)]

    def detect(self, images: Pictures, prompts: Sequence[Prompt]) -> tuple[list[ndarray], list[list[Labelled]]]:
        scaled = [resized(image) for image in images]
        return scaled, self.detector.detect(scaled, [self.words(prompt.text) for prompt in prompts])

    def ends(self, prompt: str) -> tuple[str, str]:
        """The prompt's first and last noun. Raises RewardError."""
        nouns = self.language.nouns(prompt)
        if not nouns:
            raise RewardError(f'{self.language.name} finds no noun in "{prompt}": places are of things')
        return nouns[0], nouns[-1]


class PlaneScorer(_Detecting):
    """spatial: two objects and their relation in the plane."""

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        _, found = self.detect(images, prompts)
        return [
            Judgement({TOTAL: plane_score(prompt.text, self.ends(prompt.text), one, self.fixed)}, details=told(one))
            for prompt, one in zip(prompts, found, strict=True)
        ]


class ComplexPlaneScorer(PlaneScorer):
    """The same for complex prompts: the nouns next to the relation; 0 unless there is one on each side."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        pass

    def sides(self, prompt: str) -> tuple[str, str] | None:
        """The last noun before the relation and the first one after it."""
        place = next((place for place in PLACES if place in prompt), None)
        if place is None:
            return None
        before, _, after = prompt.partition(place)
        nouns, start = self.language.nouns(prompt), 0
        left: list[str] = []
        right: list[str] = []
        for noun in nouns:
            start = prompt.index(noun, start)
            if start < len(before):
                left.append(noun)
            elif start >= len(prompt) - len(after):
                right.append(noun)
            start += len(noun)
        return (left[-1], right[0]) if left and right else None

    def words(self, prompt: str) -> list[str]:
        return [person(noun) for noun in self.sides(prompt) or ()]

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        _, found = self.detect(images, prompts)
        judged = []
        for prompt, one in zip(prompts, found, strict=True):
            sides = self.sides(prompt.text)
            score = plane_score(prompt.text, sides, one, self.fixed) if sides else 0.0
            judged.append(Judgement({TOTAL: score}, details=told(one)))
        return judged


class DepthScorer(_Detecting):
    """3d_spatial: two objects, and which is nearer."""

    def __init__(self, detector: LabelDetector, depth: DepthMap, language: Language, fixed: bool) -> None:
        super().__init__(detector, language, fixed)
        self.depth = depth
        self.name = f"{self.name}, {depth.name}"

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        scaled, found = self.detect(images, prompts)
        judged = []
        for prompt, picture, one in zip(prompts, scaled, found, strict=True):
            score = depth_score(prompt.text, self.ends(prompt.text), one, self.depth.map(picture), self.fixed)
            judged.append(Judgement({TOTAL: score}, details=told(one)))
        return judged


class NumeracyScorer(_Detecting):
    """numeracy: objects and their numbers."""

    def __init__(self, detector: LabelDetector, language: Language, nouns: Mapping[str, str]) -> None:
        super().__init__(detector, language, fixed=False)
        self.nouns = nouns

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if not self.asked(prompt.text):
                raise RewardError(
                    f'"{prompt.text}" names no number of objects that new_objects.txt knows: leave it out'
                )

    def asked(self, prompt: str) -> list[tuple[str, int]]:
        return counted(self.language.words(prompt), self.nouns)

    def words(self, prompt: str) -> list[str]:
        return [noun for noun, _ in self.asked(prompt)]

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        _, found = self.detect(images, prompts)
        return [
            Judgement(
                {TOTAL: numeracy_score(self.asked(prompt.text), one, self.detector.vocabulary)}, details=told(one)
            )
            for prompt, one in zip(prompts, found, strict=True)
        ]


class ComplexScorer:
    """complex: the mean of attribute, place and action, of those that the prompt is about."""

    def __init__(
        self, attribute: Scorer, place: Scorer, action: Scorer, spatial: Collection[str], actions: Collection[str]
    ) -> None:
        self.parts = {"attribute": attribute, "place": place, "action": action}
        self.spatial, self.actions = frozenset(spatial), frozenset(actions)
        self.name = " + ".join(scorer.name for scorer in self.parts.values())

    def check(self, prompts: Sequence[Prompt]) -> list[Cut]:
        return [cut for scorer in self.parts.values() for cut in scorer.check(prompts) or ()]

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        found = {name: scorer.score(images, prompts) for name, scorer in self.parts.items()}
        judged = []
        for row, prompt in enumerate(prompts):
            values = {name: scores[row].values[TOTAL] for name, scores in found.items()}
            total = three_in_one(prompt.text, **values, spatial=self.spatial, actions=self.actions)
            judged.append(Judgement({TOTAL: total, **values}))
        return judged


class ByCategory:
    """Every image by the scorer of its prompt's category."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = scorers
        self.name = "; ".join(f"{category}: {scorer.name}" for category, scorer in scorers.items())

    def check(self, prompts: Sequence[Prompt]) -> list[Cut]:
        cuts: list[Cut] = []
        for category, scorer in self.scorers.items():
            cuts += scorer.check([prompt for prompt in prompts if prompt.metadata["category"] == category]) or ()
        return added(cuts)

    def score(self, images: Pictures, prompts: Sequence[Prompt]) -> list[Judgement]:
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt.metadata["category"], []).append(row)
        judged: dict[int, Judgement] = {}
        for category, of_category in rows.items():
            found = self.scorers[category].score(
                [images[row] for row in of_category], [prompts[row] for row in of_category]
            )
            judged |= dict(zip(of_category, found, strict=True))
        return [judged[row] for row in range(len(prompts))]


def resized(image: UInt8[ndarray, "H W 3"]) -> UInt8[ndarray, "h w 3"]:
    """The picture as detectors see it."""
    height, width = detector_size(*image.shape[:2])
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def told(found: Sequence[Labelled]) -> dict[str, list]:
    """Detections as they are kept beside a score."""
    return {"detections": [[one.label, *(float(side) for side in one.box), float(one.score)] for one in found]}
