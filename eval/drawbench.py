"""DrawBench: 200 prompts in 11 categories. It has no score of its own: means of rewards are reported."""

from collections.abc import Sequence

from eval.benchmark import Benchmark
from eval.preferences import metrics
from t2i_rl.prompts.reading import load_prompts

IMAGES_PER_PROMPT = 4


def benchmark(source: str, scorers: Sequence[str], images_per_prompt: int = IMAGES_PER_PROMPT) -> Benchmark:
    """source: a file of prompts with `category`, or `drawbench`. Raises UserError."""
    return Benchmark("drawbench", tuple(load_prompts(source)), images_per_prompt, metrics(scorers))
