"""`reward.png` of a run: training reward and held-out score against steps."""

from pathlib import Path

from t2i_rl.pictures.figures import new_figure, save_figure


def draw_reward_curve(run: Path, metrics: list[dict[str, float]]) -> Path:
    """`reward.png`: the training reward of each step and the held-out score, against steps."""
    figure = new_figure(7, 4, layout="constrained")
    axes = figure.subplots()
    trained = [(row["step"], row["reward"]) for row in metrics if "reward" in row]
    evaluated = [(row["step"], row["heldout"]) for row in metrics if "heldout" in row]
    if trained:
        axes.plot(*zip(*trained, strict=True), color="0.7", linewidth=1, label="reward of the step's own prompts")
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), "o-", color="C0", label="held-out score")
    axes.set(xlabel="step", ylabel="score", ylim=(0, 1), title=run.name)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    path = run / "reward.png"
    save_figure(figure, path, 150)
    return path
