"""The same grid twice, each in folders of its own: how long each way takes, and whether their tables are equal.

    python tests/experiments/compare_grids.py --runs 3 -- --attack BadNet LayerWise --seed 11 12 --benign_floor
    python tests/experiments/compare_grids.py --kills 5 -- --attack BadNet LayerWise --seed 11 12 --benign_floor
    python tests/experiments/compare_grids.py --tiny --second='--engine FILE --threads 1' -- --seed 11 12 13

What stands after `--` goes to run_all.py both times. The exit code is 1 if the tables differ in anything but seconds, or if
a cell failed. Needs Parsl, and psutil, which comes with it.
"""

import argparse
import contextlib
import dataclasses
import math
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

IN_THE_MIDDLE = 2.0
"""Seconds for which a worker is watched; one that computes for a quarter of them is in a stage's middle."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="how often each of the two runs, in turn")
    parser.add_argument("--first", default="--workers 1 --threads 1", help="flags of the first (default: %(default)s)")
    parser.add_argument("--second", default="--workers 2 --threads 1", help="flags of the second (default: %(default)s)")
    parser.add_argument("--table", type=Path, help="CSV file of an earlier run, in place of the first")
    parser.add_argument("--kills", type=int, default=0, help="workers of the second that are killed in a stage's middle")
    parser.add_argument("--wait", type=float, default=60, help="seconds between two kills, at most")
    parser.add_argument("--kill_seed", type=int, default=0, help="of their moments")
    parser.add_argument("--tiny", action="store_true", help="with the tests' own texts and encoder, of 2 layers")
    parser.add_argument("arguments", nargs="*", help="of run_all.py")
    options = parser.parse_args()
    rng = random.Random(options.kill_seed)
    equal = True
    for number in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*options.arguments, *(tiny_arguments(Path(folder)) if options.tiny else [])]
            if options.table:
                first, first_seconds = read(options.table), math.nan
            else:
                first, first_seconds, _ = run_grid(Path(folder, "first"), arguments, options.first)
            second, second_seconds, killed = run_grid(
                Path(folder, "second"), arguments, options.second, options.kills, options.wait, rng
            )
        same = first.drop(columns="seconds").equals(second.drop(columns="seconds", errors="ignore"))
        failed = int((first["error"] != "").sum() + (second["error"] != "").sum())
        equal = equal and same and not failed
        for column in first.columns if not same else ():
            if column != "seconds" and first[column].tolist() != second.get(column, pd.Series()).tolist():
                print(f"different: {column}")
        for error in sorted({*first["error"], *second["error"]} - {""}):
            print(f"failed: {error}")
        print(
            f"run {number + 1}: {len(first)} cells; {options.table or options.first}: {first_seconds:.1f} s; "
            f"{options.second}: "
            f"{second_seconds:.1f} s; ratio {first_seconds / second_seconds:.3f}; {killed} workers killed; "
            f"tables {'equal' if same else 'DIFFERENT'} but for seconds; {failed} cells failed",
            flush=True,
        )
    sys.exit(0 if equal else 1)


def run_grid(
    folder: Path, arguments: list[str], how: str, kills: int = 0, wait: float = 0, rng: random.Random | None = None
) -> tuple[pd.DataFrame, float, int]:
    """One grid in a folder of its own.

    Returns:
        Its CSV file, wall-clock seconds, and how many workers were killed.
    """
    folder.mkdir()
    places = [f"--{name}={folder / name}" for name in ("poisoned_data_dir", "poisoned_model_dir", "output_dir")]
    command = [sys.executable, str(PROJECT / "run_all.py"), *arguments, *places, *shlex.split(how)]
    started, killed = time.perf_counter(), 0
    with (
        (folder / "output").open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=folder) as process,
    ):
        while killed < kills and process.poll() is None:
            time.sleep(rng.uniform(0, wait))
            killed += kill_worker(folder, rng)
        process.wait()
    seconds = time.perf_counter() - started
    tables = [path for path in (folder / "output_dir").glob("*.csv")]
    if len(tables) != 1:
        sys.exit(f"{shlex.join(command)} left no table:\n{(folder / 'output').read_text()[-3000:]}")
    return read(tables[0]), seconds, killed


def read(table: Path) -> pd.DataFrame:
    return pd.read_csv(table, keep_default_na=False, dtype=str)


def kill_worker(folder: Path, rng: random.Random) -> int:
    """SIGKILL one of the workers that compute, chosen at random; how many were killed, 0 or 1.

    Args:
        folder: the grid's current one: pools of workers are no descendants of the process that asks for them.
    """
    busy = []
    for process, before in [(each, seconds_of(each)) for each in workers_in(folder)]:
        time.sleep(IN_THE_MIDDLE)
        if seconds_of(process) - before > IN_THE_MIDDLE / 4:
            busy.append(process)
    if not busy:
        return 0
    chosen = rng.choice(busy)
    print(f"killed worker {chosen.pid} after {seconds_of(chosen):.0f} s of processor time", flush=True)
    chosen.kill()
    return 1


def workers_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # It ended, or isn't ours.
            if "spawn_main" in " ".join(process.cmdline()) and process.cwd() == str(folder):
                found.append(process)
    return found


def seconds_of(process: psutil.Process) -> float:
    """Processor time; 0 if it ended."""
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0


def tiny_arguments(folder: Path) -> list[str]:
    """What the tests' smallest run has on its command line."""
    from conftest import tiny_settings, write_tiny_data, write_tiny_plm

    from config import preset_config

    config = tiny_settings(write_tiny_data(folder / "data"), write_tiny_plm(folder / "tinybert"), folder)
    usual = preset_config("sst2")
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {
        name: value
        for name, value in fields.items()
        if value != getattr(usual, name) and not name.startswith(("poisoned_", "output_"))
    }
    return ["--preset", "sst2", *(f"--{name}={value}" for name, value in changed.items())]


if __name__ == "__main__":
    main()
