"""Methods by name: advantage, token credit and objective, composed as data.

A new method is a new row of `METHODS`. Nothing here imports torch: the functions that compute do so when they
are called, so that the command line can print its help at once.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from t2i_rl.advantages import AdvantageRule, LeaveOneOut, Scale, ValueAnchored, VirtualBest, WinRate
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
from t2i_rl.credit.product import TeachingGroups
from t2i_rl.credit.stage import DissimilarTokens
from t2i_rl.credit.tw import DivergentPositions
from t2i_rl.credit.ucas import UncertaintyShaping
from t2i_rl.credit.vppo import PerceptiveTokens
from t2i_rl.errors import UserError
from t2i_rl.objectives import Denominators, Loss, Objective, policy_loss
from t2i_rl.surrogates import Cispo, Clipped, Dcpo, Dhpo, DualClipped, Regression, Sapo, TwoSided

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout


@dataclass(frozen=True)
class Method:
    """One way to turn rewards into an update.

    scale: what divides the advantages, or the rule that estimates them.
    credit: which tokens are updated, and how strongly.
    objective: the loss.
    dynamic: a weight that follows the policy during the update and multiplies the credit's.
    """

    name: str
    summary: str
    scale: Scale | AdvantageRule | Tracker = "group"
    credit: CreditRule = field(default_factory=UniformCredit)
    objective: Objective = field(default_factory=Objective)
    dynamic: DynamicWeight | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            check_choice(f"method {self.name}", "scale", self.scale, Scale)
        if self.dynamic is not None and self.objective.denominator == "weight":
            raise UserError(
                f"method {self.name}: a dynamic weight has no sum before the update: choose another denominator"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed: for the KL, and for the dynamic weight at any beta."""
        return self.objective.beta > 0 or self.dynamic is not None

    def loss(
        self,
        lp: Float[Tensor, "*rows N"],
        old: Float[Tensor, "*rows N"] | None,
        ref: Float[Tensor, "*rows N"] | None,
        advantages: Float[Tensor, "*rows"] | Float[Tensor, "*rows N"],
        weight: Float[Tensor, "*rows N"],
        mask: Bool[Tensor, "*rows N"],
        denominators: Denominators,
        kl_weight: Float[Tensor, "*rows N"] | None = None,
        layout: TokenLayout | None = None,
        divergence: Float[Tensor, "*rows N"] | None = None,
        entropy: Float[Tensor, "*rows N"] | None = None,
    ) -> Loss:
        """`t2i_rl.objectives.policy_loss` of this method, with its dynamic weight."""
        if self.needs_reference and ref is None and (divergence is None or self.dynamic is not None):
            raise ValueError(f"method {self.name} needs the reference's log-probabilities")
        if self.dynamic is not None and ref is not None:
            weight = weight * self.dynamic(lp, ref)
        data = lp, old, ref, advantages, weight, mask
        return policy_loss(*data, self.objective, denominators, kl_weight, layout, divergence, entropy)


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
            "large; without the entropy reward",
            credit=GuidanceContrast(statistic="k3", normalize="power", kl_reweight=True),
            objective=Objective(beta=0.03, denominator="weight"),
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
        # Surrogates: they differ from GRPO only with several updates per rollout.
        Method(
            name="dapo",
            summary="DAPO: a higher upper bound, no KL, groups that teach nothing dropped (arXiv:2503.14476, eq. 8)",
            credit=TeachingGroups(),
            objective=Objective(Clipped(0.2, 0.28)),
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
    """The method of that name."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


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
