"""`t2i-rl bench`: how fast groups are sampled and steps are made, on random weights."""

from collections.abc import Sequence

from t2i_rl.commands.arguments import parse
from t2i_rl.errors import UserError
from t2i_rl.speed.settings import RolloutBench, StepBench

HELP = (
    "usage: t2i-rl bench rollout | step [OPTIONS]\n\nSee t2i-rl bench rollout --help; docs/speed.md has the fields.\n"
)


def bench(arguments: Sequence[str]) -> None:
    """measure how fast this machine samples groups and makes steps"""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    word, *more = arguments
    if word == "rollout":
        asked = parse(RolloutBench, more, "bench rollout")
        from t2i_rl.speed.rollout import bench_rollout

        bench_rollout(asked)
    elif word == "step":
        settings = parse(StepBench, more, "bench step")
        from t2i_rl.speed.step import bench_step

        bench_step(settings)
    else:
        raise UserError(f"there is no benchmark {word!r}: choose rollout or step (t2i-rl bench --help)")
