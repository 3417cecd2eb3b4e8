"""Methods by name: advantage, token credit and objective, composed as data.

A new method is a new row of `METHODS`. Nothing here imports torch: the functions that compute do so when they
are called, so that the command line can print its help at once.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from t2i_rl.advantages import (
    AdvantageRule,
    BestOfGroup,
    EntropyReward,
    LeaveOneOut,
    Scale,
    ValueAnchored,
    VirtualBest,
    WinRate,
)
from t2i_rl.baselines import Tracker
from t2i_rl.choices import check_choice
from t2i_rl.credit import CreditRule, UniformCredit
from t2i_rl.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.credit.d3s import DownSampling
from t2i_rl.credit.entropy import EntropyTokens, RandomTokens
from t2i_rl.credit.gtpo import ConflictingTokens
from t2i_rl.credit.guidance import GuidanceContrast
from t2i_rl.credit.oar import ReshapedImportance
from t2i_rl.credit.position import EarlyTokens, SlidingWindow
from t2i_rl.credit.product import Product
from t2i_rl.credit.stage import DissimilarTokens
from t2i_rl.credit.tw import DivergentPositions
from t2i_rl.credit.ucas import UncertaintyShaping
from t2i_rl.credit.vppo import PerceptiveTokens
from t2i_rl.errors import UserError
from t2i_rl.objectives import Denominators, Loss, Objective, Replay, Rows, policy_loss
from t2i_rl.surrogates import Cispo, Clipped, Dcpo, Dhpo, DualClipped, Regression, Sapo, TwoSided
from t2i_rl.variants import base_name, settings_of, varied

if TYPE_CHECKING:
    from models.policy import TokenLayout


FilterZeroStd = Literal["off", "drop", "resample"]
Source = Literal["rollout", "current"]


@dataclass(frozen=True)
class Method:
    """One way to turn rewards into an update.

    scale: what divides the advantages, or the rule that estimates them.
    credit: which tokens are updated, and how strongly.
    objective: the loss.
    dynamic: a weight that follows the policy during the update and multiplies the credit's.
    entropy_reward: a bonus on verifiable rewards, those that give a strict verdict beside the score.
    filter_zero_std: whether groups of equal rewards, which teach nothing, stay in the update with their KL (`off`),
        leave it (`drop`), or are replaced by the groups of further prompts (`resample`).
    source: whose statistics the credit sees in the second and later updates of a rollout: still those of the policy
        that sampled (`rollout`), or those of the `current` one, for a pass more per update.
    """

    name: str
    summary: str
    scale: Scale | AdvantageRule | Tracker = "group"
    credit: CreditRule = field(default_factory=UniformCredit)
    objective: Objective = field(default_factory=Objective)
    dynamic: DynamicWeight | None = None
    entropy_reward: EntropyReward | None = None
    filter_zero_std: FilterZeroStd = "off"
    source: Source = "rollout"

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            check_choice(f"method {self.name}", "scale", self.scale, Scale)
        check_choice(f"method {self.name}", "filter_zero_std", self.filter_zero_std, FilterZeroStd)
        check_choice(f"method {self.name}", "source", self.source, Source)
        if self.dynamic is not None and self.objective.denominator == "weight":
            raise UserError(
                f"method {self.name}: a dynamic weight has no sum before the update: choose another denominator"
            )
        if self.filter_zero_std != "off" and isinstance(self.scale, VirtualBest | ValueAnchored | Tracker):
            raise UserError(
                f"method {self.name}: {type(self.scale).__name__} learns from groups of equal rewards: "
                "set filter_zero_std to off"
            )
        if self.source == "current" and not self.credit.statistics:
            raise UserError(f"method {self.name}: its credit looks at no statistics: set source to rollout")

    @property
    def needs_reference(self) -> bool:
        """Whether there has to be a reference: for the KL, and at any beta for the dynamic weight or entropy reward."""
        return self.objective.beta > 0 or self.dynamic is not None or self.entropy_reward is not None

    def loss(self, replay: Replay, rows: Rows, denominators: Denominators, layout: TokenLayout | None = None) -> Loss:
        """`t2i_rl.objectives.policy_loss` of this method, with its dynamic weight."""
        if self.dynamic is not None:
            if rows.ref is None:
                raise ValueError(f"method {self.name} needs the reference's log-probabilities")
            rows = replace(rows, weight=rows.weight * self.dynamic(replay.lp, rows.ref, layout))
        return policy_loss(replay, rows, self.objective, denominators, layout)


SCALES = {
    "group": "(r - mean) / (std + 1e-4) of the group (arXiv:2402.03300, section 4.1.2)",
    "batch": "(r - mean of the group) / (std of the batch + 1e-4)",
    "none": "r - mean of the group, without a std (Dr. GRPO, arXiv:2503.20783)",
}

METHODS = {
    method.name: method
    for method in (
        Method(
            name="grpo",
            summary="GRPO: every token alike (arXiv:2402.03300, eq. 3), KL to the reference over all tokens (eq. 4)",
            objective=Objective(beta=0.01),
        ),
        # The paper's form. The release has sampled k3, power weights, a weighted mean and a reweighted KL.
        Method(
            name="cfg",
            summary="guidance contrast: tokens weighted by how much the prompt changes them (arXiv:2605.29198)",
            credit=GuidanceContrast(),
            objective=Objective(beta=0.03, denominator="tokens"),
        ),
        # The release's form, but detached. The paper divides by all tokens, the release by the selected ones.
        Method(
            name="critical",
            summary="critical tokens: 30 % of the tokens, weighted by the running divergence from the reference "
            "(arXiv:2509.22485)",
            credit=CriticalTokens(),
            objective=Objective(beta=0.01),
            dynamic=DynamicWeight(),
        ),
        # What the authors of the two papers above ran, without its bugs; and the second to the letter of its equations.
        Method(
            name="cfg-released",
            summary="cfg as released: sampled k3, power weights of mean 1, weighted mean, KL halved where weights are "
            "large, entropy reward",
            credit=GuidanceContrast(statistic="k3", normalize="power", kl_reweight=True),
            objective=Objective(beta=0.03, denominator="weight"),
            entropy_reward=EntropyReward(),
        ),
        Method(
            name="critical-released",
            summary="critical as released: gradient also flows through the running weight, to tokens not selected too",
            credit=CriticalTokens(),
            objective=Objective(beta=0.01),
            dynamic=DynamicWeight(detach=False),
        ),
        Method(
            name="critical-literal",
            summary="critical to the letter: sets may overlap, mean of clipped differences as weight, over all tokens",
            credit=CriticalTokens(sets="union"),
            objective=Objective(beta=0.01, denominator="tokens"),
            dynamic=DynamicWeight(form="linear", detach=False),
        ),
        Method(
            name="cfg-critical",
            summary="both papers at once: the critical tokens alone, weighted by guidance contrast",
            credit=Product((GuidanceContrast(), CriticalTokens())),
            objective=Objective(beta=0.01),
        ),
        # What the scoring pass computes over the whole vocabulary.
        Method(
            name="grpo-full-kl",
            summary="grpo with the exact KL over the vocabulary in place of its estimate from the sampled token",
            objective=Objective(beta=0.01, kl="full"),
        ),
        Method(
            name="grpo-entropy",
            summary="grpo with a bonus for the entropy of the predictions, exact over the vocabulary",
            objective=Objective(beta=0.01, entropy_bonus=0.001),
        ),
        # Surrogates: they differ from GRPO only with several updates per rollout.
        Method(
            name="dapo",
            summary="DAPO: a higher upper bound, no KL, other prompts for groups that teach nothing "
            "(arXiv:2503.14476, eqs. 8 to 11)",
            objective=Objective(Clipped(0.2, 0.28)),
            filter_zero_std="resample",
        ),
        Method(
            name="dr-grpo",
            summary="Dr. GRPO: no std in the advantage, a constant denominator (arXiv:2503.20783)",
            scale="none",
            objective=Objective(denominator="tokens"),
        ),
        Method(
            name="gspo",
            summary="GSPO: one ratio per image (arXiv:2507.18071, eq. 5)",
            objective=Objective(Clipped(3e-4, 4e-4), unit="sequence", denominator="mean-of-rows"),
        ),
        Method(
            name="gspo-token",
            summary="GSPO-token: the image's ratio with each token's own gradient (arXiv:2507.18071, eq. 13)",
            objective=Objective(Clipped(3e-4, 4e-4), unit="sequence", through="token", denominator="mean-of-rows"),
        ),
        Method(
            name="luspo",
            summary="LUSPO: the sequence loss times its length; a constant factor where all images are equally long",
            objective=Objective(unit="sequence", denominator="rows"),
        ),
        Method(
            name="rank-grpo",
            summary="Rank-GRPO's unit: one ratio per picture row, the geometric mean of its tokens'",
            objective=Objective(unit="row"),
        ),
        Method(
            name="cispo",
            summary="CISPO: ratios are bounded, gradients never cut (arXiv:2506.13585, eq. 4)",
            objective=Objective(Cispo()),
        ),
        Method(
            name="sapo",
            summary="SAPO: a smooth gate instead of a clip (arXiv:2511.20347)",
            objective=Objective(Sapo(), denominator="mean-of-rows"),
        ),
        Method(
            name="dual-clip",
            summary="PPO's second clip: the loss of bad images is bounded too (arXiv:1912.09729, eq. 5)",
            objective=Objective(DualClipped()),
        ),
        Method(
            name="two-sided",
            summary="two-sided clipping: the ratio of bad images is bounded too (arXiv:2505.07291)",
            objective=Objective(TwoSided()),
        ),
        Method(
            name="dhpo",
            summary="DHPO: token and sequence ratio, half and half",
            objective=Objective(Dhpo(), unit="sequence"),
        ),
        Method(
            name="dcpo",
            summary="DCPO: wider bounds for rare tokens (arXiv:2509.02333)",
            objective=Objective(Dcpo()),
        ),
        Method(
            name="reg-grpo",
            summary="Reg-GRPO: the sequence's log-ratio is regressed onto the advantage (arXiv:2506.07464)",
            objective=Objective(Regression(), unit="sequence"),
        ),
        # Advantages.
        Method(
            name="rloo",
            summary="RLOO: against the mean of the other images, without a std (arXiv:2402.14740)",
            scale=LeaveOneOut(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="best-of-group",
            summary="in the manner of pass@k: only the best image earns, by its lead over the second",
            scale=BestOfGroup(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="ngrpo",
            summary="NGRPO: a virtual best image joins the group; failures are clipped sooner (arXiv:2509.18851)",
            scale=VirtualBest(),
            objective=Objective(Clipped(0.16, 0.24)),
        ),
        Method(
            name="vgpo",
            summary="VGPO's group part: the reward's own level counts too, so equally good groups still teach",
            scale=ValueAnchored(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="pref-grpo",
            summary="Pref-GRPO: win rates inside the group instead of rewards (arXiv:2508.20751)",
            scale=WinRate(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="tracker",
            summary="per-prompt statistics that outlive the step, as in flow_grpo",
            scale=Tracker(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="spo",
            summary="single-stream PO: against the prompt's own past, no group needed (arXiv:2509.13232)",
            scale=Tracker(baseline="past", decay=0.9),
        ),
        # Token credit.
        Method(
            name="stage",
            summary="STAGE: tokens alike in good and bad images earn less, and are held less (arXiv:2509.25027)",
            credit=DissimilarTokens(),
            objective=Objective(beta=0.01, denominator="weight"),
            entropy_reward=EntropyReward(),
        ),
        Method(
            name="vppo",
            summary="VPPO: the 40 % of the tokens that depend most on the prompt (arXiv:2510.09285)",
            credit=PerceptiveTokens(),
            objective=Objective(Clipped(0.2, 0.28)),
        ),
        Method(
            name="entropy-top",
            summary="80/20: only the fifth of the tokens of highest entropy (arXiv:2506.01939)",
            credit=EntropyTokens(),
            objective=Objective(denominator="tokens"),
        ),
        Method(
            name="entropy-bottom",
            summary="control: only the fifth of the tokens of lowest entropy",
            credit=EntropyTokens(which="bottom"),
            objective=Objective(denominator="tokens"),
        ),
        Method(
            name="random",
            summary="control: as many tokens as critical, at random, without its weight",
            credit=RandomTokens(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="tw",
            summary="TW-GRPO: positions at which the group's predictions differ weigh more (arXiv:2505.24718)",
            credit=DivergentPositions(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="d3s",
            summary="D3S: the images of largest reward variance, in them the tokens of largest |A| x entropy",
            credit=DownSampling(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="ucas",
            summary="UCAS: advantages shaped by how certain image and token are (arXiv:2510.10649)",
            credit=UncertaintyShaping(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="gtpo",
            summary="GTPO: codes that good and bad images share are not punished; no KL (arXiv:2508.03772)",
            credit=ConflictingTokens(),
        ),
        Method(
            name="oar",
            summary="OAR's reshaping, of the guidance divergence: unimportant tokens held down, others lifted",
            credit=ReshapedImportance(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="tempflow",
            summary="TempFlow-GRPO's idea: early tokens weigh more (arXiv:2508.04324)",
            credit=EarlyTokens(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="mixgrpo",
            summary="MixGRPO's idea: train inside a window that slides over the rows (arXiv:2507.21802)",
            credit=SlidingWindow(),
            objective=Objective(beta=0.01),
        ),
    )
}


def find_method(name: str) -> Method:
    """The method of that name, or the variant that it spells out: `cfg[credit.statistic=k3]` (`t2i_rl.variants`)."""
    base, settings = base_name(name), settings_of(name)
    if base not in METHODS:
        raise UserError(f"there is no method {base!r}: choose one of {', '.join(METHODS)}")
    if not settings:
        return METHODS[base]
    summary = f"{base} with " + ", ".join(f"{path} = {value}" for path, value in settings.items())
    return varied(replace(METHODS[base], name=name, summary=summary), settings, METHODS, name)


def describe(method: Method) -> str:
    """The method's composition in full: every part with its settings, formula and source."""
    objective = method.objective
    parts = [
        ("advantage", SCALES[method.scale] if isinstance(method.scale, str) else _about(method.scale)),
        ("credit", _about(method.credit) + _paper(method.credit)),
        ("surrogate", _about(objective.surrogate)),
        ("ratio", _RATIO[objective.unit] + (", each token's own gradient" if objective.through == "token" else "")),
        ("reference", f"{objective.beta} * {_KL[objective.kl]}" if objective.beta else "no KL"),
        ("divided by", _DENOMINATOR[objective.denominator]),
    ]
    if objective.entropy_bonus:
        parts.append(("entropy", f"{objective.entropy_bonus} * mean entropy, taken from the loss"))
    if method.dynamic is not None:
        parts.insert(2, ("times", _about(method.dynamic)))
    if method.entropy_reward is not None:
        parts.insert(0, ("reward", _about(method.entropy_reward)))
    if method.filter_zero_std != "off":
        parts.append(("if equal", _FILTER[method.filter_zero_std]))
    if method.source == "current":
        parts.append(("source", "statistics are measured again before every further update of a rollout"))
    if method.credit.statistics:
        parts.append(("measured", ", ".join(method.credit.statistics)))
    lines = [f"{method.name}: {method.summary}"]
    for name, text in parts:
        lines += ["", *textwrap.indent(text, " " * 12).splitlines()]
        lines[-len(text.splitlines())] = f"{name:<12}{text.splitlines()[0]}"
    return "\n".join(lines)


def _about(part: object) -> str:
    """The settings of a part and what its documentation says."""
    return f"{part!r}\n{inspect.getdoc(type(part))}"


def _paper(rule: CreditRule) -> str:
    """What the rule's file says of its paper, and of the released code."""
    return "" if isinstance(rule, UniformCredit) else f"\n\n{inspect.getdoc(sys.modules[type(rule).__module__])}"


_FILTER = {
    "drop": "leave the update, with their KL",
    "resample": "leave the update, and further prompts are sampled in their place",
}
_RATIO = {
    "token": "of the token",
    "row": "geometric mean over a picture row",
    "scale": "geometric mean over a scale",
    "sequence": "geometric mean over the image",
}
_KL = {
    "k1": "(lp - ref)",
    "k2": "(lp - ref)^2 / 2",
    "k3": "(exp(ref - lp) - (ref - lp) - 1), k3 (arXiv:2402.03300, eq. 4)",
    "abs": "|lp - ref|",
    "full": "KL(policy || reference), exact over the vocabulary",
}
_DENOMINATOR = {
    "mask": "the updated tokens of the batch",
    "weight": "the sum of the weights; the KL by the updated tokens",
    "tokens": "all tokens of the batch",
    "mean-of-rows": "the updated tokens of each image, then the images",
    "rows": "the images",
}
