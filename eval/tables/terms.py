"""What an evaluation has to share with the published ones before their figures may stand side by side."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eval.tables.compare import Finished

HPSV2 = ("HPSv2.1", r"hpsv2\.1 \(.+\)")


@dataclass(frozen=True)
class Terms:
    """A benchmark as papers run it.

    prompts_sha256: as in an evaluation's settings; None where we have not seen the prompts: their number is compared.
    images_per_prompt: None where papers do not say.
    samples: what they are of each prompt, in a word.
    judges: by figure, the judge of papers in words, and the pattern of what a scorer of that kind calls itself.
    rules: the benchmark's own settings.
    """

    prompts: int
    prompts_sha256: str | None
    images_per_prompt: int | None
    judges: Mapping[str, tuple[str, str]]
    rules: Mapping[str, Any] = field(default_factory=dict)
    samples: str = "images"

    def differences(self, run: Finished, metrics: Iterable[str]) -> list[str]:
        """What keeps these figures of a run apart from published ones, in words: what it has, and what they have."""
        settings, known, found = run.settings, self.prompts_sha256, list[str]()
        if settings["prompts"] != self.prompts:
            found.append(f"{settings['prompts']} prompts instead of {self.prompts}")
        elif known and settings["prompts_sha256"] != known:
            found.append(f"other prompts (SHA-256 {settings['prompts_sha256'][:8]}..., not {known[:8]}...)")
        if self.images_per_prompt not in (None, settings["images_per_prompt"]):
            found.append(f"{settings['images_per_prompt']} instead of {self.images_per_prompt} {self.samples} of each")
        if settings["rules"] != self.rules:
            found.append(f"other rules ({settings['rules']})")
        for metric in metrics:
            scorer, (judge, pattern) = run.scorers[run.judged_by[metric]], self.judges[metric]
            if not re.fullmatch(pattern, scorer):
                found.append(f"{metric} by {scorer} instead of {judge}")
        return found


TERMS = {
    "geneval": Terms(
        553,
        "81a1404b091b4261e3ec4c7d6491bb80a23aa53f3e6d633348bd580d73ea11e7",
        4,
        {
            "correct": (
                "geneval-official with the official weights",
                r"geneval-official \((mask2former|mmdet \S+) official [0-9a-f]{8}\)",
            )
        },
    ),
    "t2i-compbench": Terms(
        2400,
        "b62fc2b205a9045ee3c4796e4e1a8119cea0764f5b107c965f3266481cfdfd08",
        10,
        {"score": ("BLIP VQA, UniDet and CLIP", r"(?=.*BLIP VQA)(?=.*UniDet)(?!.*not comparable).*")},
        {"fixed": False},
    ),
    "drawbench": Terms(
        200,
        "39ea2d472a74ecea8e67c023f0805343bb4b35c47b3b713e8f31c6d4a08bb66a",
        None,
        {
            "deqa": ("DeQA-Score", r"deqa \(.+\)"),
            "imagereward": ("ImageReward", r"imagereward \(.+\)"),
            "pickscore": ("PickScore", r"pickscore \(.+\)"),
            "hpsv2": HPSV2,
        },
    ),
    "hps": Terms(3200, None, 1, {"hpsv2": HPSV2}),
    **{
        name: Terms(
            questions,
            None,
            8,
            {"accuracy": ("mathruler 0.1", r"math \(mathruler 0\.1\..+\)")},
            {"questions": "messages"},  # those of the files that were measured on, not of the benchmarks' own tables
            "answers",
        )
        for name, questions in {
            "mathverse": 2180,
            "mathvision": 2907,
            "mm12k": 2000,
            "logicvista": 447,
            "mmmu-pro": 1730,
        }.items()
    },
}
