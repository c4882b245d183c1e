"""Tasks for the tests of the engine: quick, and without torch."""

import os
import signal
import sys
import time
from pathlib import Path


def note(argument: dict) -> dict:
    """Add the task's name and its process to a file, print both ways, and return them."""
    with Path(argument["notes"]).open("a") as file:
        file.write(f"{argument['name']} {os.getpid()}\n")
    print(f"{argument['name']} on standard output")
    print(f"{argument['name']} on standard error", file=sys.stderr)
    os.system(f"echo {argument['name']} in a child process")
    return {
        "process": os.getpid(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def nothing(argument: dict) -> dict:
    return {}


def fail(argument: dict) -> dict:
    note(argument)
    raise RuntimeError(f"{argument['name']} is broken\nand more lines of it")


def user_mistake(argument: dict) -> dict:
    from util import UserError

    raise UserError("found this; expected that")


def leave(argument: dict) -> dict:
    sys.exit("left early")


def killed_once(argument: dict) -> dict:
    """The first worker that tries dies in the middle, as for lack of memory."""
    result = note(argument)
    flag = Path(argument["notes"]).with_suffix(".killed")
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def killed(argument: dict) -> dict:
    note(argument)
    os.kill(os.getpid(), signal.SIGKILL)


def endless(argument: dict) -> dict:
    note(argument)
    while True:
        time.sleep(60)


def meet(argument: dict) -> dict:
    """Wait until another task is in `meet` too: only works where two run at once."""
    note(argument)
    folder = Path(argument["notes"]).parent
    (folder / f"{argument['name']}.met").touch()
    while len(list(folder.glob("*.met"))) < 2:
        time.sleep(0.05)
    return {"job": os.environ.get("SLURM_JOB_ID"), "process": os.getpid()}
