"""Methods by name: advantage, token credit and objective, composed as data.

A new method is a new row of `METHODS`, or is brought along (`own_method`). Nothing here imports torch: the
functions that compute do so when they are called, so that the command line can print its help at once.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from difflib import get_close_matches

from models.own import METHODS as ENTRY_POINTS
from models.own import brought
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import (
    BestOfGroup,
    LeaveOneOut,
    ValueAnchored,
    VirtualBest,
    WinRate,
)
from t2i_rl.methods.baselines import PromptBaseline
from t2i_rl.methods.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.methods.credit.d3s import DownSampling
from t2i_rl.methods.credit.entropy import EntropyTokens, RandomTokens
from t2i_rl.methods.credit.gtpo import ConflictingTokens
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.oar import ReshapedImportance
from t2i_rl.methods.credit.position import EarlyTokens, SlidingWindow
from t2i_rl.methods.credit.product import Product
from t2i_rl.methods.credit.stage import DissimilarTokens
from t2i_rl.methods.credit.tw import DivergentPositions
from t2i_rl.methods.credit.ucas import UncertaintyShaping
from t2i_rl.methods.credit.vppo import PerceptiveTokens
from t2i_rl.methods.entropy_reward import EntropyReward
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Objective
from t2i_rl.methods.surrogates import Cispo, Clipped, Dcpo, Dhpo, DualClipped, Regression, Sapo, TwoSided
from t2i_rl.methods.variants import base_name, settings_of, varied

ON_TEXT = Objective(DualClipped(0.2, 0.28), denominator="tokens")  # of answers: over all their tokens, without a KL

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
            objective=Objective(denominator="limit"),
        ),
        Method(
            name="gspo",
            summary="GSPO: one ratio per image (arXiv:2507.18071, eq. 5)",
            objective=Objective(Clipped(3e-4, 4e-4), unit="sequence", denominator="mean-of-images"),
        ),
        Method(
            name="gspo-token",
            summary="GSPO-token: the image's ratio with each token's own gradient (arXiv:2507.18071, eq. 13)",
            objective=Objective(Clipped(3e-4, 4e-4), unit="sequence", through="token", denominator="mean-of-images"),
        ),
        Method(
            name="luspo",
            summary="LUSPO: the sequence loss times its length, so N times the gradient of the other methods' "
            "(gradient clipping acts sooner)",
            objective=Objective(unit="sequence", denominator="images"),
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
            objective=Objective(Sapo(), denominator="mean-of-images"),
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
            scale=PromptBaseline(),
            objective=Objective(beta=0.01),
        ),
        Method(
            name="spo",
            summary="single-stream PO: against the prompt's own past, no group needed (arXiv:2509.13232)",
            scale=PromptBaseline(baseline="past", decay=0.9),
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
        # On answers in text, as its paper and its release have it. The others take its loss: dapo[objective=cfg-text].
        Method(
            name="cfg-text",
            summary="guidance contrast on answers in text: words weighted by how much a prompt for a wrong answer "
            "changes them, in DAPO's loss with a second clip (arXiv:2605.29198)",
            credit=GuidanceContrast(),
            objective=ON_TEXT,
            filter_zero_std="resample",
        ),
        Method(
            name="cfg-text-released",
            summary="cfg-text as released: k3 of the policy of now, power weights of mean 1, a likelihood term",
            credit=GuidanceContrast(statistic="k3", normalize="power"),
            objective=replace(ON_TEXT, nll=0.02),
            filter_zero_std="resample",
            source="current",
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
    """The method of that name, or the variant that it spells out: `cfg[credit.statistic=k3]` (`variants`)."""
    base, settings = base_name(name), settings_of(name)
    method = METHODS.get(base) or own_method(base)
    if method is None:
        meant = "".join(f"did you mean {one}? " for one in get_close_matches(base, METHODS, 1))
        raise UserError(
            f"there is no method {base!r}: {meant}choose one of {', '.join(METHODS)}, or one of your own as MODULE:NAME"
        )
    if not settings:
        return method
    summary = f"{base} with " + ", ".join(f"{path} = {value}" for path, value in settings.items())
    return varied(replace(method, name=name, summary=summary), settings, METHODS, name)


def own_method(name: str) -> Method | None:
    """A method that is brought along (`models.own`): a `Method`, or a rule of token credit, with GRPO for the rest.

    Raises UserError for what is neither, and for a rule whose own settings are refused.
    """
    found = brought(name, ENTRY_POINTS)
    if found is None:
        return None
    if isinstance(found, Method):
        return replace(found, name=name)
    rule = found() if isinstance(found, type) else found
    if missing := [part for part in ("statistics", "embeddings", "compares", "places") if not hasattr(rule, part)]:
        raise UserError(f"{name} is no method and no rule of token credit, for it has no {missing[0]}: give it one")
    summary = (inspect.getdoc(type(rule)) or "a rule of token credit").partition("\n")[0]
    return replace(METHODS["grpo"], name=name, summary=summary, credit=rule)
