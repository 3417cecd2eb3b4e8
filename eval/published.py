"""Figures that papers state, as far as our notes on them hold figures; nothing was measured here.

The notes hold the ablations of the two papers and few of their main rows, and not always the model or the version of
the scorer: what they do not say stands here as "not stated". Compare with care: guidance, seeds, images per prompt and
scorers may differ from ours.
"""

from dataclasses import dataclass

GUIDANCE = "Guidance Contrastive Policy Optimization"
CRITICAL = "Group Critical-token Policy Optimization"
ABLATION = "ablation"
UNSTATED = "model not stated"


@dataclass(frozen=True)
class Published:
    """One figure, on the scale of our metric of that name.

    row: what the paper calls it; where: in which part of the paper, as far as we know.
    """

    benchmark: str
    metric: str
    paper: str
    model: str
    row: str
    value: float
    where: str

    @property
    def label(self) -> str:
        return f"{self.row} ({self.paper}, {self.model}, {self.where}; published)"


def _guidance(row: str, value: float, where: str = ABLATION) -> Published:
    return Published("geneval", "correct", GUIDANCE, "Janus-Pro-7B", row, value, where)


def _critical(row: str, value: float) -> Published:
    return Published("hps", "hpsv2", CRITICAL, UNSTATED, row, value, ABLATION)


ROWS = (
    _guidance("GRPO", 0.85, "reported"),
    _guidance("divergence: information gain", 0.88),
    _guidance("divergence: absolute", 0.84),
    _guidance("divergence: KL", 0.89),
    _guidance("weights: softmax", 0.86),
    _guidance("weights: min-max", 0.85),
    _guidance("weights: histogram", 0.89),
    _critical("GRPO", 29.16),
    _critical("selected tokens, no weights", 29.33),
    _critical("weights, all tokens", 29.54),
    _critical("selected tokens and weights", 29.61),
    _critical("15 % of tokens", 29.29),
    _critical("30 % of tokens", 29.61),
    _critical("45 % of tokens", 29.65),
)


def rows_of(benchmark: str, metrics: list[str]) -> list[Published]:
    """What is published of these figures of a benchmark."""
    return [row for row in ROWS if row.benchmark == benchmark and row.metric in metrics]
