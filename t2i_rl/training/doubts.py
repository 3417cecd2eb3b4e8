"""Did it learn? What a run's numbers say against it: looked for after every step, and again by whoever reads them.

A doubt has a name, by which a run says it once for as long as it lasts, and a sentence. `--strict` ends a run at the
first one. Thresholds are ours: they are where something is wrong, not where something could be better.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, median

Row = Mapping[str, float]
GAPS = {"float32": 1e-2, "bfloat16": 2.0}  # nats between sampler and trainer, by what the weights are in
WINDOW = 10  # steps that a tendency is read from
DEAD = 0.8  # share of groups that teach nothing, over a window
LOST = 0.2  # share of groups without a score, over LOSING steps: they may be the hard prompts
LOSING = 5
EXPLODED = 1.0  # nats a token away from the reference
LEAP = 20.0  # times the KL of the steps before, above a tenth of EXPLODED
FALL = 0.02  # below the best held-out score, in two evaluations running


def doubts(rows: Sequence[Row], dtype: str, updates: int) -> dict[str, str]:
    """What speaks against the last of the steps that there are, by name.

    dtype: of the weights. updates: optimizer steps on a rollout; the ratio of a single one is 1 whatever it does.
    """
    *before, row = rows
    if "reward" not in row:  # the evaluation before the first step
        return {}
    steps = [one for one in before if "reward" in one]
    recent = [*steps, row][-WINDOW:]
    found: dict[str, str] = {}
    if row.get("zero_variance") == 1:
        what = "0" if row["reward"] == 0 else f"{row['reward']:.3f} on average"
        found["equal rewards"] = f"in every group all images earned the same ({what}), so nothing could be learned"
    elif len(recent) == WINDOW and (dead := fmean(one.get("zero_variance", 0.0) for one in recent)) > DEAD:
        found["dead groups"] = f"{dead:.0%} of the groups of the last {WINDOW} steps taught nothing: equal rewards"
    losing = [one for one in recent[-LOSING:] if "groups_scored" in one]
    lost, scored = (sum(one[name] for one in losing) for name in ("groups_lost", "groups_scored"))
    if len(losing) == LOSING and lost > LOST * (lost + scored):
        found["lost groups"] = (
            f"{lost:.0f} of the {lost + scored:.0f} groups of the last {LOSING} steps were left out, for images "
            "of theirs have no score"
        )
    if row.get("grad_norm") == 0:
        found["zero gradient"] = "the gradient was 0, so no weight moved"
    if updates == 1 and row.get("clip_fraction", 0.0) > 0:
        found["ratio"] = f"{row['clip_fraction']:.1%} of the tokens were clipped where every ratio has to be 1"
    if (gap := row.get("logprob_gap", 0.0)) > GAPS[dtype]:
        found["decode gap"] = (
            f"sampler and trainer are {gap:.2g} nats apart on a token, where {dtype} leaves at most {GAPS[dtype]:g}"
        )
    if kl := row.get("kl", 0.0):
        earlier = [one["kl"] for one in recent[:-1] if "kl" in one]  # steps without an update have none
        usual = median(earlier) if len(earlier) >= WINDOW // 2 else kl
        if kl > EXPLODED or kl > max(LEAP * usual, EXPLODED / 10):
            found["kl"] = (
                f"the policy is {kl:.2g} nats a token from its reference: a smaller learning rate or a larger beta"
            )
    if said := _overtrained([*before, row]):
        found["held-out falls"] = said
    return found


def _overtrained(rows: Sequence[Row]) -> str:
    """Whether held-out images got worse, twice running, while the training reward went on rising."""
    judged = [row for row in rows if "heldout" in row]
    if len(judged) < 3 or judged[-1] is not rows[-1]:
        return ""
    best = max(judged, key=lambda row: row["heldout"])
    if max(one["heldout"] for one in judged[-2:]) > best["heldout"] - FALL:
        return ""
    rewards = {row["step"]: row["reward"] for row in rows if "reward" in row}
    then = [value for step, value in rewards.items() if step <= best["step"]][-WINDOW:]
    now = [*rewards.values()][-WINDOW:]
    if not then or fmean(now) <= fmean(then):
        return ""
    return (
        f"the held-out score fell from {best['heldout']:.3f} (step {best['step']:.0f}) to {judged[-1]['heldout']:.3f} "
        "while the reward rose: the reward is being gamed, or too few prompts are learned by heart"
    )


def history(rows: Sequence[Row], dtype: str, updates: int) -> dict[str, tuple[list[int], str]]:
    """Every doubt of a run: the steps that it was about, and the sentence of the last."""
    found: dict[str, tuple[list[int], str]] = {}
    for number in range(1, len(rows) + 1):
        for name, said in doubts(rows[:number], dtype, updates).items():
            steps, _ = found.get(name, ([], ""))
            found[name] = ([*steps, int(rows[number - 1]["step"])], said)
    return found
