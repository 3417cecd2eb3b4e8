"""`reward.png` of a run: training reward and held-out score against steps, each on an axis of its own."""

from pathlib import Path

from t2i_rl.pictures.figures import new_figure, save_figure

TITLES = {"reward": "training reward", "heldout": "held-out score"}


def draw_reward_curve(run: Path, metrics: list[dict[str, float]]) -> Path:
    """`reward.png`: what was measured of the two, one above the other."""
    figure = new_figure(7, 5, layout="constrained")
    panels = figure.subplots(len(TITLES), sharex=True)
    panels[0].set_title(run.name)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        measured = [row for row in metrics if name in row]
        steps, values = [row["step"] for row in measured], [row[name] for row in measured]
        axes.plot(steps, values, marker="o" if name == "heldout" else None)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    path = run / "reward.png"
    save_figure(figure, path, 150)
    return path
