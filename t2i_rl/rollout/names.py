"""What can be measured of a token, by name; without torch, for the command line reads what methods ask for."""

from typing import Literal

StatisticName = Literal[
    "entropy",
    "entropy_cond",
    "kl_cond_uncond",
    "js_cond_uncond",
    "logp_cond",
    "logp_uncond",
    "logp_guided",
    "logp_cfg",
    "kl_uniform",
    "logit_cond",
    "group_divergence",
]


# Those that compare the prompt with the unconditional branch or, in its place, another prompt.
CONTRASTS = frozenset({"kl_cond_uncond", "js_cond_uncond", "logp_uncond"})


# Those of the guided distribution, which is mixed from both branches.
GUIDED = frozenset({"entropy", "logp_guided", "logp_cfg"})


# Those that compare the tokens of a group place by place, which answers of different lengths do not share.
PLACE_BY_PLACE = frozenset({"group_divergence"})


LIMIT = 20.0  # nats: bound of a difference of log-probabilities before its exponential
