"""Calls beside the caller's own work, which end with the process."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


def begin(
    after: "Future[Found] | None", function: Callable[Given, Found], *given: Given.args, **named: Given.kwargs
) -> "Future[Found]":
    """Call a function in a thread of its own, once an earlier call has ended.

    Nobody waits for the thread when the process ends, as `ThreadPoolExecutor` would: what hangs, such as a server that
    does not answer, keeps no process alive after Ctrl-C.
    """
    future: Future[Found] = Future()

    def work() -> None:
        if after is not None:
            wait([after])
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*given, **named))
            except BaseException as error:
                future.set_exception(error)

    Thread(target=work, name=function.__name__, daemon=True).start()
    return future
