"""Grades answers, a line of JSON each: the program of a process that can be killed (`rewards.answers.workers`).

It is run as a file and imports nothing of ours, so that it starts quickly and has nothing to lose. Graders look at what
a model wrote with sympy, whose parser evaluates: `9**9**9**9` never ends. The kernel ends this process when an answer
has taken its seconds of processor time, also where whoever asked is gone; time that others had does not count, so a
verdict does not depend on how busy the machine is. Limits are no sandbox: files can be read.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

Grader = Callable[[str, str], bool]


def mathruler() -> Grader:
    """The papers' grader: MATH's and PRM800K's normalisation, then sympy."""
    from mathruler.grader import grade_answer

    return grade_answer


def math_verify() -> Grader:
    """The other grader of the field, as verl calls it: it looks for the answer in the whole text by itself."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def grade(answer: str, truth: str) -> bool:
        # Its own limits are alarms; those above take their place.
        right = parse(f"\\boxed{{{truth}}}", (LatexExtractionConfig(),), parsing_timeout=None)
        said = parse(answer, (ExprExtractionConfig(), LatexExtractionConfig()), parsing_timeout=None)
        return verify(right, said, float_rounding=6, timeout_seconds=None)

    return grade


GRADERS = {"mathruler": mathruler, "math-verify": math_verify}


def limit(memory: int) -> None:
    """Bytes of memory; no processes, no files written, no core. What a system does not limit stays as it is."""
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def main(grader: str, seconds: float, memory: int) -> None:
    """Answer `[answer, truth]` with `{"right": ...}` or `{"trouble": ...}` until nothing more is asked.

    The first reply says whether the grader is ready.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a grader prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    try:
        grade = GRADERS[grader]()
        grade("\\boxed{x+1}", "1+x")  # what is imported late is imported now
    except ImportError as error:
        print(json.dumps({"trouble": str(error)}), file=replies, flush=True)
        return
    limit(memory)
    print(json.dumps({"right": True}), file=replies, flush=True)
    for line in sys.stdin:
        answer, truth = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply: dict[str, object] = {"right": bool(grade(answer, truth))}
        except MemoryError:
            reply = {"trouble": f"took more than {memory / 2**30:g} GiB of memory"}
        except Exception as error:  # of whatever type a parser raises
            reply = {"trouble": f"cannot be read ({type(error).__name__})"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
