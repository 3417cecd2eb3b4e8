"""`t2i-rl serve`: a reward over HTTP."""

from collections.abc import Sequence

from t2i_rl.commands.arguments import parse


def serve(arguments: Sequence[str]) -> None:
    """serve a reward to runs on this machine or others: serve shapes"""
    from rewards import server
    from rewards.http.service import Service

    wanted = parse(Service, arguments, "serve")
    from models.registry import check_device

    check_device(wanted.device)
    server.serve(wanted)
