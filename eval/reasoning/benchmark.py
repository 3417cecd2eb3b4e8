"""Benchmarks of questions with pictures: MathVerse, MathVision, MM12K, LogicVista, MMMU-Pro, or questions of one's own.

Every question is answered several times, and an answer is right or wrong by exact checking (`rewards.answers`): no
model judges. The figure is avg@8 in per cent, as in VPPO's and GCPO's tables. MathVerse's own scoring lets a model
extract and grade: its leaderboard is not comparable.
"""

from collections.abc import Sequence
from dataclasses import replace

from eval.benchmark import Benchmark, Metric
from eval.reasoning.figures import PERCENT, SCORER, publish, summary
from rewards.answers.reward import ACCURACY
from t2i_rl.prompts.files import IMAGES
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import check_questions

SAMPLES = 8
OURS = "questions worded from the benchmark's own table, not the files that published figures are of: not comparable"


def benchmark(name: str, prompts: Sequence[Prompt], samples: int = SAMPLES) -> Benchmark:
    """Questions with their answers, of `t2i-rl data make` or of a file like those. Raises UserError."""
    check_questions(prompts)
    read_from = sorted({str(prompt.metadata.get("from", "own")) for prompt in prompts})
    return Benchmark(
        name=name,
        prompts=tuple(_wherever(prompt) for prompt in prompts),
        images_per_prompt=samples,
        metrics=(Metric(ACCURACY, SCORER, {ACCURACY: PERCENT}),),
        category_key="tag",
        settings={"questions": " and ".join(read_from)},
        more=summary,
        publish=publish,
        notes=(OURS,) if "table" in read_from else (),
        samples="answers",
    )


def _wherever(prompt: Prompt) -> Prompt:
    """The same question, wherever its pictures lie on this machine: they are told by their bytes."""
    return replace(prompt, metadata={key: value for key, value in prompt.metadata.items() if key != IMAGES})
