"""Tasks that need each other: one after another in this process, or side by side on workers.

Workers are processes on this machine or jobs on others. Parsl starts them, sends them what is ready, notices when one is
lost, and starts again what it was at. A worker imports this module before its number of threads and its device are set, so
nothing here imports torch at the top.
"""

import contextlib
import importlib
import importlib.util
import os
import pickle
import platform
import runpy
import secrets
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from util import UserError, first_line, named, require_writable

PARSL = "parsl==2026.10.26"

PROJECT = Path(__file__).resolve().parent.parent

LOST_WORKERS = 5
"""How many workers a task may lose and still be tried again: one that doesn't fit in memory loses them all."""


@dataclass(frozen=True)
class Task:
    """A call of a function, after the tasks it needs."""

    key: str
    function: str
    """`module:function`: it takes `argument`, returns a dict, and a worker can import it."""
    argument: object
    needs: tuple[str, ...]
    """Keys of tasks earlier in the list."""
    log: Path
    """What the task prints when it runs on a worker."""
    title: str
    weight: float = 1
    """Its share of the work, for the time left; 0 when it is done already."""


class TaskError(Exception):
    """A task failed on a worker; the message is one line and names the log."""


def run_tasks(
    tasks: list[Task],
    *,
    workers: int,
    threads: int | None,
    engine: Path | None,
    folder: Path,
    finished: Callable[[str, dict | Exception], None],
) -> None:
    """Run every task whose needs succeed.

    Args:
        tasks: each after those it needs.
        workers: processes on this machine; 1 is this process.
        threads: of each worker; None shares the cores out.
        engine: a Python file with a Parsl configuration named `config`, which then says where workers are, and how many.
        folder: one that all workers see; Parsl's own files go to `parsl` in it.
        finished: called in this thread with a task's key and its result, or the exception that ended it or one it needs.

    Raises:
        UserError: workers can't start, or lack something that they need.
        KeyboardInterrupt: Ctrl-C; no worker is left behind.
    """
    if workers == 1 and engine is None:
        if threads:
            importlib.import_module("torch").set_num_threads(threads)
        run_here(Progress(tasks, finished))
    elif tasks:
        with parsl_workers(folder.absolute(), workers, engine) as (python_app, all_here):
            run_there(Progress(tasks, finished), python_app, threads, cuda_devices() if all_here else [])


class Progress:
    """What tasks ended with; a line when one starts and one when it ends."""

    def __init__(self, tasks: list[Task], finished: Callable[[str, dict | Exception], None]) -> None:
        self.tasks, self.finished = tasks, finished
        self.outcomes: dict[str, dict | Exception] = {}
        self.weight_left, self.weight_ended = sum(task.weight for task in tasks), 0.0
        self.began = time.perf_counter()

    def start(self, task: Task) -> None:
        print(f"started: {task.title}", flush=True)

    def end(self, task: Task, outcome: dict | Exception) -> None:
        self.outcomes[task.key] = outcome
        self.finished(task.key, outcome)
        self.weight_ended += task.weight
        self.weight_left -= task.weight
        number = f"[{len(self.outcomes)} of {len(self.tasks)}]"
        how = "failed" if isinstance(outcome, Exception) else "done"
        left = time_left(self.began, self.weight_ended, self.weight_left)
        print(f"{number} {how}: {task.title}{left}", flush=True)

    def ready(self, task: Task) -> bool:
        return all(key in self.outcomes for key in task.needs)

    def failed_need(self, task: Task) -> Exception | None:
        """What the first failed one of a task's needs ended with."""
        needs = [self.outcomes.get(key) for key in task.needs]
        return next((outcome for outcome in needs if isinstance(outcome, Exception)), None)


def time_left(began: float, done: float, left: float) -> str:
    """An estimate in words, from the work that is done and left."""
    if not done or not left:
        return ""
    minutes = (time.perf_counter() - began) / done * left / 60
    return f"; about {minutes / 60:.1f} h left" if minutes > 90 else f"; about {minutes:.0f} min left"


def run_here(progress: Progress) -> None:
    """One task after another, in this process."""
    for task in progress.tasks:
        outcome = progress.failed_need(task)
        if not outcome:
            progress.start(task)
            try:
                outcome = named(task.function)(task.argument)
            except Exception as error:  # Whatever it is, other tasks may be fine.
                outcome = error
        progress.end(task, outcome)


# On the side that hands tasks out


def run_there(progress: Progress, python_app: Callable, threads: int | None, devices: list[str]) -> None:
    """Hand all tasks to Parsl, and tell of each as soon as it ends."""
    futures: dict[str, Future] = {}
    app = python_app(run_on_worker)
    for number, task in enumerate(progress.tasks):
        log = task.log.absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # It appears again when the task starts.
        call = (task.function, pickle.dumps(task.argument), task.title, log, threads, devices)
        needs = [futures[key] for key in task.needs]
        # First come the first tasks that can run: the first cells of a grid end long before the last ones.
        futures[task.key] = app(*call, *needs, parsl_resource_specification={"priority": number})
    running, waiting = set(), set(futures.values())
    while waiting:
        done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        for task in progress.tasks:
            future = futures[task.key]
            if future in done:
                progress.end(task, progress.failed_need(task) or result_of(future, task))
            elif future in waiting and task.key not in running and progress.ready(task) and task.log.exists():
                running.add(task.key)
                progress.start(task)


def result_of(future: Future, task: Task) -> dict | Exception:
    """A task's result, or its error in one line."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    error = future.exception()
    if error is None or isinstance(error, (UserError, TaskError)):
        return error or future.result()
    if isinstance(error, (ManagerLost, WorkerLost)):
        return TaskError(f"its worker was killed {LOST_WORKERS + 1} times, out of memory perhaps; see {task.log}")
    return TaskError(f"{type(error).__name__}: {first_line(error)}; see {task.log}")


@contextlib.contextmanager
def parsl_workers(folder: Path, workers: int, engine: Path | None) -> Iterator[tuple[Callable, bool]]:
    """Parsl with its workers, which end with the block, however it ends.

    Args:
        folder: one that all workers see.

    Yields:
        Parsl's decorator of functions that are to run on workers, and whether all of them are on this machine.
    """
    try:
        import parsl
        from filelock import FileLock
        from parsl.executors.high_throughput.executor import HighThroughputExecutor
        from parsl.logconfigs.file import FileLogging
        from parsl.providers import LocalProvider
    except ModuleNotFoundError as error:
        if error.name != "parsl":
            raise
        raise UserError(f"several workers need Parsl, which isn't installed; pip install {PARSL}") from None
    require_writable(str(folder))
    config = load_config(engine) if engine else local_config(workers)
    if config.run_dir == "runinfo":  # Parsl's default is in the current folder.
        config.run_dir = str(folder / "parsl")
    if shlex.quote(config.run_dir) != config.run_dir:
        raise UserError(
            "Parsl, which starts the workers, takes no folder with blanks or the like in its name "
            f"({config.run_dir}); choose another with --output_dir"
        )
    if config.retries == 0:
        config.retries, config.retry_handler = LOST_WORKERS, retry_cost
    if config.initialize_logging is True:
        config.initialize_logging = FileLogging(level=20)  # Parsl's default grows by a megabyte an hour.
    for executor in config.executors:
        if isinstance(executor, HighThroughputExecutor) and shutil.which("setpriv"):
            # Should this process be killed so that it can't clean up, its workers soon miss their interchange and end.
            executor.interchange_launch_cmd = ["setpriv", "--pdeathsig", "TERM", *executor.interchange_launch_cmd]
    with worker_environment(), terminated_cleanly():
        # Ctrl-C reaches all processes of a terminal; Parsl's interchange, which is needed to end the workers, inherits this.
        # And of two runs that start at once both would take the same number for their folder.
        with ignored(signal.SIGINT), FileLock(folder / ".parsl.lock"):
            kernel = parsl.load(config)
        try:
            check_workers(parsl.python_app, folder, engine, kernel.run_dir)
            providers = [getattr(executor, "provider", None) for executor in config.executors]
            yield parsl.python_app, all(isinstance(provider, LocalProvider) for provider in providers)
        finally:
            with ignored(signal.SIGINT):
                kernel.cleanup()


def local_config(workers: int) -> object:
    from engines.local import config

    return config(workers)


def load_config(engine: Path) -> object:
    """The Parsl configuration in a Python file.

    Raises:
        UserError: there is none.
    """
    from parsl import Config

    if not engine.is_file():
        raise UserError(f"--engine {engine} isn't there; expected a Python file as engines/slurm.py is")
    try:
        config = runpy.run_path(str(engine)).get("config")
        config = config() if callable(config) else config
    except Exception as error:
        raise UserError(f"--engine {engine} doesn't run: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(config, Config):
        raise UserError(
            f"--engine {engine} has no configuration; expected a parsl.Config, or a function that makes one, named config"
        )
    return config


def retry_cost(error: Exception, record: dict) -> int:
    """For Parsl: a task is tried again when its worker was lost, but not when it failed by itself."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return 1 if isinstance(error, (ManagerLost, WorkerLost)) else LOST_WORKERS + 1


def check_workers(python_app: Callable, folder: Path, engine: Path | None, run_dir: str) -> None:
    """Wait for the first worker, and see that it reads our files and imports our modules.

    Raises:
        UserError: it doesn't, or there is no worker.
    """
    where = f"--engine {engine}" if engine else "--workers"
    probe = folder / f".probe.{secrets.token_hex(8)}"
    probe.touch()
    try:
        # Two functions of Python's own: a worker without our modules can run them.
        futures = [python_app(Path.read_text)(probe), python_app(importlib.util.find_spec)(__name__)]
        if wait(futures, timeout=10).not_done:
            print(f"waiting for the first worker of {where}", flush=True)
        read, found = [future.exception() for future in futures]
        if isinstance(read, OSError):
            raise UserError(
                f"{where}: a worker doesn't see folder {folder}; "
                "expected one that all machines share: choose it with --output_dir"
            )
        if isinstance(found, ImportError) or not (found or futures[1].result()):
            raise UserError(
                f"{where}: a worker can't import this project; "
                f"let its worker_init say: export PYTHONPATH={PROJECT} (the folder as that machine sees it)"
            )
        if read or found:
            why = " ".join(
                str(read or found).split()
            )  # The batch system's own words may come after several lines of Parsl's.
            raise UserError(f"{where}: no worker runs: {why[:500]}; see {run_dir}")
    finally:
        probe.unlink(missing_ok=True)


def cuda_devices() -> list[str]:
    """Names of this machine's CUDA devices, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (visible.split(",") if visible else [str(index) for index in range(count)])[:count]


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """What workers inherit: Parsl's programs are found beside this Python, and our modules in this folder."""
    before = {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH")}
    for name, first in zip(before, (Path(sys.executable).parent, PROJECT), strict=True):
        os.environ[name] = os.pathsep.join([str(first), *filter(None, [before[name]])])
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def terminated_cleanly() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that it can end its workers."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


# On a worker


def run_on_worker(
    function: str,
    argument: bytes,
    title: str,
    log: Path,
    threads: int | None,
    devices: list[str],
    *needs: dict,
    parsl_resource_specification: dict,
) -> dict:
    """Call a task's function, its output in its log.

    Args:
        argument: pickled, so that what it imports is imported after threads and device are set.
        devices: CUDA devices to share out; none leaves that to the engine.
        needs: what Parsl waits for.

    Raises:
        UserError, TaskError: the function failed.
    """
    threads = threads or max(1, cores() // int(os.environ["PARSL_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if devices:  # Parsl's own way miscounts where workers are more than devices.
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(os.environ["PARSL_WORKER_RANK"]) % len(devices)]
    try:
        file = log.open("ab")
    except OSError as error:
        raise TaskError(f"worker on {platform.node()} can't write {log} ({error.strerror})") from None
    with file, output_to(file):
        print(f"{title} ({platform.node()}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {threads} threads)")
        try:
            call = named(function)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(threads)
            return call(pickle.loads(argument))
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            if isinstance(error, UserError):
                raise error from None
            raise TaskError(f"{type(error).__name__}: {first_line(error)}; see {log}") from None


def cores() -> int:
    """Cores that this process may use."""
    if "PARSL_CORES" in os.environ:  # What a job asked for; not every cluster binds it to them.
        return int(os.environ["PARSL_CORES"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def output_to(file: BinaryIO) -> Iterator[None]:
    """Everything that this process prints, by libraries in C and by child processes too.

    `sys.stdout` stays the object it is: libraries that are imported during one task keep it for the next.
    """
    sys.stdout.reconfigure(line_buffering=True)
    before = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), before, strict=True):
            os.dup2(copy, number)
            os.close(copy)
