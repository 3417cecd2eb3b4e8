"""`t2i-rl serve`: a reward over HTTP."""

from collections.abc import Sequence

from t2i_rl.commands.arguments import parse


def serve(arguments: Sequence[str]) -> None:
    """serve a reward to runs on this machine or others: serve shapes"""
    from models.device import device_of
    from rewards import server
    from rewards.http.service import Service
    from rewards.registry import check_servable

    wanted = parse(Service, arguments, "serve")
    check_servable(wanted.reward)  # before torch is imported
    device_of(wanted.device)
    server.serve(wanted)
