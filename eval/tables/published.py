"""Figures that papers state, as far as we have them; nothing was measured here.

We had neither paper's tables. What is known comes from our notes on the papers' texts, from one authors' repository,
and, marked so, from another reader's note: check a figure against its paper before you print it. The papers' tables of
other benchmarks, and per-tag figures but for a few, are not here. Guidance, seeds, images per prompt and versions of
scorers may differ from ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.benchmark import OVERALL
from t2i_rl.errors import UserError

PROMPTS = {"geneval": 553, "hps": 3200}  # of the benchmarks that the figures are of
GUIDANCE = "GCPO, arXiv:2605.29198"  # Guidance Contrastive
CRITICAL = "GCPO, arXiv:2509.22485"  # Group Critical-token
TEXT = "paper's text"
ABLATION = "paper's ablation"
AUTHORS = "github.com/zghhui/GCPO"
READER = "a reader's note of the main table, unchecked"
UNSTATED = "model not in our notes"


@dataclass(frozen=True)
class Published:
    """A row of a paper, on the scale of our metric of that name.

    figures: by category, or `overall`; row: what the paper calls it; source: where the figures are from.
    """

    benchmark: str
    metric: str
    paper: str
    model: str
    row: str
    figures: Mapping[str, float]
    source: str

    @property
    def label(self) -> str:
        return f"published: {self.model}, {self.row} ({self.paper}; {self.source})"


def _guidance(row: str, value: float, source: str = ABLATION) -> Published:
    return Published("geneval", "correct", GUIDANCE, "Janus-Pro-7B", row, {OVERALL: value}, source)


def _critical(model: str, row: str, overall: float, counting: float, colors: float, position: float) -> Published:
    figures = {OVERALL: overall, "counting": counting, "colors": colors, "position": position}
    return Published("geneval", "correct", CRITICAL, model, row, figures, READER)


def _hps(row: str, value: float) -> Published:
    return Published("hps", "hpsv2", CRITICAL, UNSTATED, row, {OVERALL: value}, ABLATION)


ROWS = (
    _guidance("GRPO", 0.85, TEXT),
    _guidance("GCPO", 0.89, TEXT),
    _guidance("divergence: information gain", 0.88),
    _guidance("divergence: absolute", 0.84),
    _guidance("divergence: KL", 0.89),
    _guidance("weights: softmax", 0.86),
    _guidance("weights: min-max", 0.85),
    _guidance("weights: histogram", 0.89),
    Published("geneval", "correct", CRITICAL, "Janus-Pro-7B", "GCPO", {OVERALL: 0.90}, AUTHORS),
    _critical("Janus-Pro-7B", "base", 0.80, 0.59, 0.90, 0.79),
    _critical("Janus-Pro-7B", "GRPO", 0.87, 0.71, 0.94, 0.92),
    _critical("Janus-Pro-7B", "GCPO", 0.90, 0.90, 0.90, 0.95),
    _critical("Janus-Pro-1B", "GRPO", 0.84, 0.59, 0.84, 0.88),
    _critical("Janus-Pro-1B", "GCPO", 0.85, 0.63, 0.88, 0.91),
    _critical("LlamaGen", "GRPO", 0.39, 0.28, 0.68, 0.11),
    _critical("LlamaGen", "GCPO", 0.42, 0.25, 0.71, 0.13),
    _hps("GRPO", 29.16),
    _hps("selected tokens, no weights", 29.33),
    _hps("weights, all tokens", 29.54),
    _hps("selected tokens and weights", 29.61),
    _hps("15 % of tokens", 29.29),
    _hps("30 % of tokens", 29.61),
    _hps("45 % of tokens", 29.65),
)


def rows_of(benchmark: str, prompts: int, metrics: Sequence[str]) -> list[Published]:
    """What is published of these figures. Raises UserError for a benchmark of other prompts, or without any."""
    found = [row for row in ROWS if row.benchmark == benchmark and row.metric in metrics]
    if not found:
        known = " and ".join(f"{row[0]} ({row[1]})" for row in dict.fromkeys((r.benchmark, r.metric) for r in ROWS))
        raise UserError(f"no figure of {benchmark} is known to be published, only of {known}: leave out --published")
    if prompts != PROMPTS[benchmark]:
        raise UserError(
            f"what is published of {benchmark} is of its {PROMPTS[benchmark]} prompts, but these runs have {prompts}: "
            "leave out --published"
        )
    return found
