"""The command line: `t2i-rl train | generate | eval | heatmap | ...`, one file each in `t2i_rl.commands`.

Errors are one sentence on stderr: exit code 2 for bad input and for mistakes in code that a person brought along, 1 for
a run that diverged. T2I_RL_TRACEBACK=1 prints the way to where they were raised too. Help and argument errors import
neither torch nor transformers, so commands import what they need when they run.
The first line of a command's docstring is what `t2i-rl --help` says of it.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

from models.errors import ModelError
from models.own import mistake
from rewards.errors import RewardError, printable
from t2i_rl.commands.bench import bench
from t2i_rl.commands.compare import compare
from t2i_rl.commands.curve import curve
from t2i_rl.commands.data import data
from t2i_rl.commands.describe import check, methods, models, plan, presets, rewards
from t2i_rl.commands.evaluate import evaluate
from t2i_rl.commands.export import export
from t2i_rl.commands.generate import generate
from t2i_rl.commands.heatmap import heatmap
from t2i_rl.commands.report import report
from t2i_rl.commands.serve import serve
from t2i_rl.commands.train import train
from t2i_rl.errors import DivergenceError, Stopped, UserError, is_of_memory
from t2i_rl.outputs import is_of_files
from t2i_rl.settings import check_whole, from_home

TRACEBACK = "T2I_RL_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: t2i-rl COMMAND [OPTIONS]\n\nReinforcement learning for autoregressive text-to-image models.\n")
        for name, function in COMMANDS.items():
            print(f"  {name:<10}{function.__doc__}")
        print("\nSee t2i-rl COMMAND --help; t2i-rl --version")
        return 0
    if words[0] == "--version":
        print(f"t2i-rl {version('t2i-rl')}")
        return 0
    try:
        command = COMMANDS.get(words[0])
        if command is None:
            meant = "".join(f"did you mean {name}? " for name in get_close_matches(words[0], COMMANDS, 1))
            raise UserError(f"there is no command {words[0]!r}: {meant}choose one of {', '.join(COMMANDS)}")
        for word in words:
            check_whole(word, f"{word!r} on the command line", "bytes that are not UTF-8")
        command([from_home(word) for word in words[1:]])
    except (UserError, ModelError, RewardError) as error:
        return _refused(str(error), error)
    except DivergenceError as error:
        print(printable(f"t2i-rl: {error}"), file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"t2i-rl: {stopped}")
    except KeyboardInterrupt as stop:
        print(f"t2i-rl: stopped{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        said = _of_memory(error, words[0]) or mistake(error) or _of_files(error)
        if said is None:  # nothing that the user could mend
            raise
        return _refused(said, error)
    return 0


def _refused(said: str, error: Exception) -> int:
    """The sentence, and before it the way to where it was raised, for who has asked for that; the exit code."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    print(printable(f"t2i-rl: {said}"), file=sys.stderr)
    return 2


def _of_memory(error: Exception, command: str) -> str | None:
    if not is_of_memory(error):
        return None
    return f"there is not enough memory for this: choose a smaller {BATCHES.get(command, 'model')}"


def _of_files(error: Exception) -> str | None:
    if not isinstance(error, OSError) or not is_of_files(error):
        return None
    where = f"cannot use {error.filename}" if error.filename else "cannot write"
    return f"{where} ({error.strerror}): check the path and the free space"


def _open_streams() -> None:
    """What is said never ends a command: a service may have closed where it goes to, or its locale lack a sign."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "generate": generate,
    "eval": evaluate,
    "compare": compare,
    "heatmap": heatmap,
    "report": report,
    "curve": curve,
    "data": data,
    "serve": serve,
    "methods": methods,
    "models": models,
    "rewards": rewards,
    "presets": presets,
    "plan": plan,
    "check": check,
    "bench": bench,
    "export": export,
}
BATCHES = {  # what each command holds in memory at once
    "train": "--rollout.micro-batch or --update.micro-batch",
    "generate": "--batch",
    "eval": "--batch",
    "heatmap": "--group-size",
    "serve": "--batch",
    "bench": "--images or --model",
}
