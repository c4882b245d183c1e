"""Runs of the project's scripts as processes of their own that don't pay for the import of torch.

This process imports everything once; each run is a fork of it. A fork is a process like any other: it has its own memory and
exit code, signals end it, and the operating system frees its locks.
"""

import contextlib
import gc
import importlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

TICKS = os.sysconf("SC_CLK_TCK")
"""Of the operating system's clock of processor time, per second."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Exit code; of a signal its number, negative."""
    output: str
    errors: str
    seconds: float
    """Processor time."""
    memory: int
    """Bytes at the peak, those that are shared with this process included."""
    late: bool
    """Whether it was ended here because its time was up."""

    def last_error(self) -> str:
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else ""


class Child:
    """A run that was started."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder
        self.code: int | None = None
        self.usage = None

    def ended(self, wait: bool = False) -> bool:
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.code, self.usage = os.waitstatus_to_exitcode(status), usage
        return self.code is not None

    def processor_seconds(self) -> float:
        """Of this run so far, to a hundredth."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def signal_at(self, number: signal.Signals, seconds: float, group: bool = False) -> bool:
        """Send a signal when the run has had some processor time; False if it ended before.

        Args:
            group: to its child processes too, as a terminal does.
        """
        while not self.ended():
            if self.processor_seconds() >= seconds:
                os.killpg(self.pid, number) if group else os.kill(self.pid, number)
                return True
            time.sleep(0.003)
        return False

    def wait(self, limit: float) -> Ended:
        """Its end, at the latest after `limit` seconds of wall-clock time."""
        deadline, late = time.monotonic() + limit, False
        while not self.ended():
            if time.monotonic() > deadline:
                late = True
                os.killpg(self.pid, signal.SIGKILL)
                self.ended(wait=True)
                break
            time.sleep(0.003)
        texts = [(self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        seconds = self.usage.ru_utime + self.usage.ru_stime
        return Ended(self.code, *texts, seconds, self.usage.ru_maxrss * 1024, late)


def start(
    script: str | Callable[[], object],
    arguments: list[str],
    work: Path,
    said: Path,
    before: Callable[[], object] = lambda: None,
) -> Child:
    """Run a script as `python SCRIPT ARGUMENTS` would.

    Args:
        script: its module, or a function in place of the module's `main`.
        work: its current folder.
        said: folder for what it prints, made if it isn't there.
        before: called in the new process before the script's `main`.
    """
    main = script if callable(script) else importlib.import_module(script).main
    said.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, said)
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.chdir(work)
        sys.argv = ["script.py", *arguments]
        # tqdm's is shared by all forks of a process: one that is killed while it has it would stop all that come after.
        tqdm.set_lock(threading.RLock())
        before()
        from util import run_script

        run_script(main)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(
    script: str | Callable[[], object], arguments: list[str], work: Path, said: Path, limit: float = 300, **how: object
) -> Ended:
    """As `start`, to its end."""
    return start(script, arguments, work, said, **how).wait(limit)


def import_everything() -> None:
    """What the scripts import, so that no run has to."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"  # A made-up name may look like one of the hub's.
    os.environ.pop("PURE_DATA_DIR", None)
    from attacks import ATTACKS
    from defences import DEFENCES

    for name in SCRIPTS:
        importlib.import_module(name)
    for table in (ATTACKS, DEFENCES):
        for row in table:
            table[row]
    for name in LATER:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # A look for garbage in a fork would copy all that it looks at.


SCRIPTS = (
    *("run_all", "story", "report", "export", "predict", "pretrained_model_poisoning", "attention_head_pruning"),
    *("attention_normalization", "Data.make_poisoned_data", "defences.__main__", "detection.suspicious_texts"),
)
LATER = (
    *("accelerate", "torch.utils.tensorboard", "transformers.models.bert.modeling_bert", "matplotlib.pyplot", "parsl"),
    *("transformers.models.electra.modeling_electra", "parsl.executors.high_throughput.executor", "experiments.grid"),
    *("reporting.grid_page", "engines.local", "parsl.providers", "matplotlib.backends.backend_agg"),
    *("matplotlib.backends.backend_pdf", "torch._dynamo"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "transformers.optimization"),
    *("sklearn.metrics", "sklearn.model_selection", "sklearn.linear_model", "sklearn.feature_extraction.text"),
    *("scipy.stats", "scipy.optimize", "seaborn", "datasets", "reporting.page"),
)
"""What scripts import when they need it."""


def limit_memory(bytes_more: int) -> None:
    """In a new process: it may take no more memory than it has now and `bytes_more`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + bytes_more,) * 2)
