"""Tasks side by side: order, failures, lost workers, interruption, and what can be missing. Toys stand in for stages."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import slurm_node

from experiments.engine import LOST_WORKERS, PROJECT, Task, TaskError, run_tasks
from util import UserError

TOYS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def no_orphans(monkeypatch, tmp_path):
    """Workers find the toys; whatever happens in a test, none of its processes outlives it."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    monkeypatch.chdir(tmp_path)
    yield
    assert not survivors(tmp_path)


def survivors(folder: Path) -> list[str]:
    """Processes of a test, which runs in its own folder, that don't end within ten seconds."""
    psutil = pytest.importorskip("psutil") if "parsl" in sys.modules else None
    if not psutil:
        return []

    def is_ours(process) -> bool:
        try:
            return process.pid != os.getpid() and process.cwd() == str(folder)
        except psutil.Error:
            return False

    _, alive = psutil.wait_procs([each for each in psutil.process_iter() if is_ours(each)], timeout=10)
    return [" ".join(each.cmdline()) for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def parsl():
    return pytest.importorskip("parsl", reason="needs Parsl (see requirements.txt)")


def toy(folder: Path, name: str, function: str = "note", *needs: str) -> Task:
    argument = {"name": name, "notes": str(folder / "notes")}
    return Task(name, f"toys:{function}", argument, needs, folder / "logs" / f"{name}.log", f"toy {name}")


def run(tasks: list[Task], **how) -> dict[str, dict | Exception]:
    """Outcomes in the order in which they were told."""
    outcomes = {}
    folder = tasks[0].log.parents[1] / "results"
    how = {"workers": 1, "threads": None, "engine": None, "folder": folder, **how}
    run_tasks(tasks, **how, finished=outcomes.__setitem__)
    return outcomes


def notes(folder: Path) -> list[str]:
    """Names of the tasks that ran, once for each time, in order."""
    return [line.split()[0] for line in (folder / "notes").read_text().splitlines()]


def engine_file(folder: Path, change: str) -> Path:
    """The local engine with one worker, and one thing otherwise."""
    path = folder / "engine.py"
    path.write_text(
        "from engines.local import config as local\n"
        "config = local(1)\n"
        "executor, provider = config.executors[0], config.executors[0].provider\n"
        f"{change}\n"
    )
    return path


GRAPH = [("poison", "note"), ("tune", "note", "poison"), ("prune", "fail", "poison"), ("halve", "note", "prune")]
GRAPH += [("normalise", "note", "halve"), ("other", "note")]


def test_one_worker_is_this_process(monkeypatch, tmp_path, capfd):
    monkeypatch.syspath_prepend(str(TOYS))
    monkeypatch.setitem(sys.modules, "parsl", None)
    outcomes = run([toy(tmp_path, *each) for each in GRAPH])
    assert list(outcomes) == [name for name, *_ in GRAPH]
    assert outcomes["tune"]["process"] == os.getpid()
    assert notes(tmp_path) == ["poison", "tune", "prune", "other"]
    # Those that need the failed one fail as it did.
    assert isinstance(outcomes["prune"], RuntimeError)
    assert outcomes["prune"] is outcomes["halve"] is outcomes["normalise"]
    out = capfd.readouterr().out
    assert "poison on standard output" in out
    assert "started: toy tune" in out and "[3 of 6] failed: toy prune" in out
    assert "started: toy halve" not in out


def test_workers(parsl, tmp_path, capfd, monkeypatch):
    """One graph with everything: Parsl takes seconds to start."""
    monkeypatch.setattr("experiments.engine.cuda_devices", lambda: ["4"])
    tasks = [toy(tmp_path, *each) for each in GRAPH]
    tasks += [toy(tmp_path, "lost", "killed_once"), toy(tmp_path, "after", "note", "lost", "tune")]
    tasks += [toy(tmp_path, "hopeless", "killed"), toy(tmp_path, "mistake", "user_mistake"), toy(tmp_path, "exit", "leave")]
    outcomes = run(tasks, workers=2, threads=3)
    assert outcomes.keys() == {task.key for task in tasks}

    # Each once and after what it needs, but for those whose worker was killed.
    ran = notes(tmp_path)
    assert {name: ran.count(name) for name in ran} == {
        **dict.fromkeys(("poison", "tune", "prune", "other", "after"), 1),
        **{"lost": 2, "hopeless": LOST_WORKERS + 1},
    }
    assert ran.index("poison") < min(ran.index("tune"), ran.index("prune"))
    assert ran.index("after") > max(ran.index("tune"), ran.index("lost"))
    processes = {outcomes[name]["process"] for name in ("poison", "tune", "other")}
    assert os.getpid() not in processes
    assert (outcomes["after"]["threads"], outcomes["after"]["device"]) == ("3", "4")

    # A failure in one line that names the log, and the same for those who need it.
    log = tmp_path / "logs" / "prune.log"
    assert isinstance(outcomes["prune"], TaskError)
    assert str(outcomes["prune"]) == f"RuntimeError: prune is broken; see {log}"
    assert str(outcomes["halve"]) == str(outcomes["normalise"]) == str(outcomes["prune"])
    assert isinstance(outcomes["mistake"], UserError)
    assert str(outcomes["mistake"]) == "found this; expected that"
    assert "SystemExit: left early" in str(outcomes["exit"])
    assert str(outcomes["hopeless"]).startswith(f"its worker was killed {LOST_WORKERS + 1} times")

    # All that a task prints is in its log and nowhere else.
    text = log.read_text()
    for what in ("on standard output", "on standard error", "in a child process", "and more lines of it"):
        assert what in text
    out = capfd.readouterr().out
    assert "in a child process" not in out and "on standard output" not in out
    assert f"[{len(tasks)} of {len(tasks)}] " in out
    assert "failed: toy normalise" in out

    assert (tmp_path / "results" / "parsl" / "000").is_dir()
    assert not Path("runinfo").exists()


SCRIPT = """
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = sys.argv[1:3]
signal.signal(signal.SIGINT, signal.default_int_handler)  # Python has none if it is started in a script's background.
# A stand-in: torch takes longer to import than everything else here.
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(device_count=int))
from experiments.engine import run_tasks
from test_engine import toy
tasks = [toy(Path(sys.argv[3]), name, "endless") for name in ("one", "two")]
try:
    engine = Path(sys.argv[4]) if sys.argv[4] else None
    run_tasks(tasks, workers=2, threads=None, engine=engine, folder=Path(sys.argv[3]) / "results", finished=print)
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def interrupted_run(folder: Path, send: Callable[[int, int], None], number: int, engine: Path | str = "") -> tuple[int, str]:
    """Send a signal to a run in the middle of a task.

    Returns:
        Its exit code, and what it wrote to standard error.
    """
    command = [sys.executable, "-c", SCRIPT, str(PROJECT), str(TOYS), str(folder), str(engine)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert any("started" in line for line in process.stdout), process.stderr.read()
            send(process.pid, number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, errors


def test_ctrl_c_ends_the_workers(parsl, tmp_path):
    # A terminal sends it to all processes of its group.
    assert interrupted_run(tmp_path, os.killpg, signal.SIGINT) == (1, "interrupted\n")


def test_termination_ends_the_workers(parsl, tmp_path):
    assert interrupted_run(tmp_path, os.kill, signal.SIGTERM) == (143, "")


def test_workers_of_a_killed_run_end(parsl, tmp_path):
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv, which Linux has")
    engine = engine_file(tmp_path, "executor.heartbeat_threshold = 4")  # Seconds until workers miss their run.
    assert interrupted_run(tmp_path, os.kill, signal.SIGKILL, engine) == (-9, "")


def test_without_parsl(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "parsl", None)
    with pytest.raises(UserError, match=r"^several workers need Parsl, which isn't installed; pip install parsl==[\d.]+$"):
        run([toy(tmp_path, "one")], workers=2)


@pytest.mark.parametrize("name", ["my results", "a;b", "a'b"])
def test_a_folder_that_parsl_cannot_name_to_a_shell(parsl, tmp_path, name):
    """It would wait for its first worker for ever."""
    with pytest.raises(UserError, match=r"takes no folder with blanks or the like in its name .*; choose another"):
        run([toy(tmp_path, "a")], workers=2, folder=tmp_path / name)


def test_no_such_engine(parsl, tmp_path):
    with pytest.raises(UserError, match=r"^--engine nowhere.py isn't there; expected a Python file"):
        run([toy(tmp_path, "one")], engine=Path("nowhere.py"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("config = 1", "has no configuration; expected a parsl.Config"),
        ("del config", "has no configuration"),
        ("1 / 0", "doesn't run: ZeroDivisionError: division by zero"),
        ("def config(): return cluster", "doesn't run: NameError: name 'cluster' is not defined"),
        ("else:", "doesn't run: SyntaxError"),
    ],
)
def test_engine_without_configuration(parsl, tmp_path, change, message):
    engine = engine_file(tmp_path, change)
    with pytest.raises(UserError) as caught:
        run([toy(tmp_path, "one")], engine=engine)
    assert str(caught.value).startswith(f"--engine {engine} {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "provider.worker_init = 'unset PYTHONPATH'",
            "a worker can't import this project; let its worker_init say: export PY",
        ),
        (
            "provider.worker_init = 'rm {results}/.probe.*'",
            "a worker doesn't see folder {results}; expected one that all machines",
        ),
        ("provider.worker_init = 'echo no licence >&2; exit 3'; executor.block_error_handler = simple", "no worker runs: "),
    ],
    ids=["project", "folder", "start"],
)
def test_what_workers_lack(parsl, tmp_path, change, message):
    results = tmp_path / "results"
    change = "from parsl.jobs.error_handlers import simple_error_handler as simple\n" + change.format(results=results)
    engine = engine_file(tmp_path, change)
    with pytest.raises(UserError) as caught:
        run([toy(tmp_path, "one")], engine=engine)
    assert str(caught.value).startswith(f"--engine {engine}: {message.format(results=results)}")
    assert "\n" not in str(caught.value)
    if "exit 3" in change:
        assert "no licence" in str(caught.value)
    assert not (tmp_path / "notes").exists()
    assert {path.name for path in results.iterdir()} <= {"parsl", ".parsl.lock"}


def test_slurm(parsl, tmp_path, monkeypatch):
    """The configuration as it stands: two jobs at once."""
    if why := slurm_node.missing():
        pytest.skip(why)
    node = tmp_path / "node"
    try:
        for variable, value in slurm_node.start(node).items():
            monkeypatch.setenv(variable, value)
        tasks = [toy(tmp_path, *each) for each in GRAPH]
        tasks += [toy(tmp_path, "here", "meet", "tune"), toy(tmp_path, "there", "meet", "tune")]
        outcomes = run(tasks, engine=PROJECT / "engines" / "slurm.py")
        assert subprocess.run(["squeue", "--noheader", "--states=R"], capture_output=True, text=True).stdout == ""
    finally:
        slurm_node.stop(node)
    assert outcomes.keys() == {task.key for task in tasks}
    assert {outcomes["here"]["job"], outcomes["there"]["job"]} == {"1", "2"}
    assert isinstance(outcomes["normalise"], TaskError)
    assert sorted(notes(tmp_path)) == sorted(["poison", "tune", "prune", "other", "here", "there"])
