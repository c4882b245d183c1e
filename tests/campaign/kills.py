"""Runs that are ended, starved or tampered with at random, and the same command again: does it end as if nothing had been?

    python tests/campaign/kills.py --number 200 --seed 1                  # so many disturbances
    python tests/campaign/kills.py --minutes 30 --table kills.md          # for so long; the table as Markdown
    python tests/campaign/kills.py --seed 1 --trial 17                    # one of them again, and its folder is kept

Every trial takes a command (a stage, a defence, a whole run, a grid) in the state that the commands before it leave,
disturbs it and runs it again. All files are compared with those of an undisturbed run: records, metrics and tables but for
their seconds and environment, weights and figures bit for bit. The encoder and texts are those of the tests. Some
disturbances need root, and are left out without it. The exit code is 1 if anything differs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
from children import Child, Ended, import_everything, run, start

NOBODY = 65534
WRITES = ("open", "replace", "rename", "fsync", "chmod", "mkdir", "unlink", "rmdir")
"""Functions of `os` around which a run is struck: files and folders come, change their names and go through them."""
LIMIT = 600
"""Seconds of wall-clock time for a run."""


@dataclass(frozen=True)
class Case:
    """A command that is disturbed."""

    stage: str
    """Row of the table."""
    script: str
    arguments: tuple[str, ...]
    after: str | None = None
    """Name of the case whose result it begins with; None: nothing."""
    weight: float = 1
    """How often it is drawn, beside others."""
    workers: bool = False


@dataclass(frozen=True)
class Reference:
    """A case's undisturbed run."""

    folder: Path
    content: dict[str, object]
    seconds: float
    writes: int
    size: int
    """Bytes that it adds."""


# --------------------------------------------------------------------------------------------------------------- cases


def make_cases(given: Path) -> dict[str, Case]:
    """Name to case, each after the one that it begins with; the encoder and texts are written to `given`."""
    from conftest import tiny_settings, write_tiny_data, write_tiny_plm
    from test_scripts import flags

    from attacks import ATTACKS
    from defences import DEFENCES

    config = tiny_settings(write_tiny_data(given / "data"), write_tiny_plm(given / "tinybert"), given)
    for path in given.rglob("*"):
        path.chmod(path.stat().st_mode | 0o444)  # A trial's user may be another than root.
    config = replace(config, poisoned_data_dir="data", poisoned_model_dir="models", output_dir="results")
    config = replace(config, epochs=2, poisoning_epochs=2, relearning_epochs=2, acc_threshold=0.0)
    own = given / "own.csv"
    table = pd.read_csv(given / "data/sst2/train.tsv", sep="\t").drop_duplicates("sentence")
    table.assign(label=table["label"].map({0: "bad", 1: "good"})).to_csv(own, index=False)

    def told(**changes) -> tuple[str, ...]:
        return tuple(flags(replace(config, **changes)))

    cases = {}
    for attack in ATTACKS:
        first = f"data of {attack}"
        cases[first] = Case("poisoned data", "Data.make_poisoned_data", told(attack=attack))
        cases[f"poisoning by {attack}"] = Case("poisoning", "pretrained_model_poisoning", told(attack=attack), first, 2)
    planted = "poisoning by BadNet"
    for defence in DEFENCES:
        arguments = told(defence=defence, clean_encoder=config.plm)
        cases[f"defence {defence}"] = Case(f"defence {defence}", "defences.__main__", arguments, planted, 3)
    cases["pruning"] = Case("head pruning", "attention_head_pruning", told(), "defence FT", 4)
    cases["normalisation"] = Case("attention normalisation", "attention_normalization", told(), "pruning", 4)
    cases["export"] = Case("export", "export", told(), "normalisation", 3)
    cases["page"] = Case("page of a run", "report", told(), "normalisation", 0.5)
    cases["run"] = Case("whole run", "run_all", (*told(), "--defence", "FT", "PURE"))
    given_encoder = dict(attack="none", poisoned_model=config.plm, clean_dataset=str(own), preset="own")
    cases["own"] = Case("whole run, no attack known", "run_all", told(**given_encoder))
    grid = ("--attack", "BadNet", "EP", "--defence", "FT", "MEFT", "--benign_floor", "--epochs", "1")
    cases["grid"] = Case("grid", "run_all", (*told(), *grid), weight=2)
    cases["workers"] = Case(
        "grid, two workers", "run_all", (*told(), *grid, "--workers", "2", "--threads", "1"), workers=True
    )
    return cases


def content_of(folder: Path) -> dict[str, object]:
    """Each file's path to its content, without what has a right to differ: times, where it ran, locks, logs."""
    content = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") or part == "parsl" for part in name.parts):
            continue
        if path.suffix == ".json":
            content[str(name)] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".csv" and "seconds" in (header := path.read_text().partition("\n")[0]):
            lines = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="seconds")
            content[str(name)] = (header, lines.to_csv())
        elif ".tfevents." in path.name:  # Named after time, machine and process.
            content[str(name.parent / "events")] = "there"
        elif path.suffix in (".html", ".pdf", ".md") and "exported_model" not in name.parts:
            content[str(name)] = "there"  # They have dates or seconds in them.
        elif path.suffix != ".log":
            content[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return content


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in ("seconds", "environment")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def halves(folder: Path) -> int:
    """Hidden files and folders that aren't locks: what a killed run had not finished."""
    return sum(path.name.startswith(".") and path.suffix != ".lock" for path in folder.rglob("*"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class References:
    """Undisturbed runs, each made when it is first asked for."""

    def __init__(self, cases: dict[str, Case], folder: Path) -> None:
        self.cases, self.folder = cases, folder
        self.made: dict[str, Reference] = {}

    def begin(self, case: Case, work: Path) -> None:
        """Lay what a case begins with into an empty folder, or one that isn't there."""
        if case.after:
            shutil.copytree(self[case.after].folder, work, dirs_exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, name: str) -> Reference:
        if name not in self.made:
            case, work = self.cases[name], self.folder / name / "work"
            self.begin(case, work)
            before = size_of(work)
            calls = self.folder / name / "calls"
            ended = run(case.script, [*case.arguments], work, work.parent, LIMIT, before=partial(strike, calls))
            if ended.code:
                raise RuntimeError(f"undisturbed, {name} ended with {ended.code}: {ended.errors[-2000:]}")
            self.made[name] = Reference(work, content_of(work), ended.seconds, calls.stat().st_size, size_of(work) - before)
        return self.made[name]


# -------------------------------------------------------------------------------------------------------- disturbances


def strike(
    calls: Path, number: int = -1, after: bool = False, act: Callable[[], object] = lambda: None, fits: str = ""
) -> None:
    """In a new process: count the calls of `WRITES`, and do something right before or after one of them.

    Args:
        calls: file that gets a byte per call.
        number: of the call, from 0, among those whose arguments the regular expression `fits` finds itself in.
    """
    counted = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    count = 0

    def around(function: Callable, *args, **kwargs) -> object:
        nonlocal count
        struck = False
        if re.search(fits, " ".join(map(str, args))):
            os.write(counted, b".")
            struck = count == number
            count += 1
        if struck and not after:
            act()
        try:
            return function(*args, **kwargs)
        finally:  # Some calls fail, and are meant to: of a file that isn't there any more, say.
            if struck and after:
                act()

    for name in WRITES:
        setattr(os, name, partial(around, getattr(os, name)))


@dataclass
class Trial:
    """One disturbance: a case in a folder of its own."""

    case: Case
    reference: Reference
    work: Path
    said: Path
    rng: random.Random
    struck: bool = True
    """Whether there was something to disturb still."""
    wrong: str = ""
    """What the disturbed run itself did that it should not."""

    def start(self, before: Callable[[], object] = lambda: None) -> Child:
        return start(self.case.script, [*self.case.arguments], self.work, self.said, before=before)

    def calls(self) -> Path:
        return self.said / "calls"


def signalled(number: signal.Signals, aimed: bool, trial: Trial) -> Ended:
    """A signal at a moment that is uniform over the run's processor time, or before or after a write."""
    if aimed:
        which, after = trial.rng.randrange(trial.reference.writes), trial.rng.random() < 0.5
        act = partial(send_myself, number)
        ended = trial.start(partial(strike, trial.calls(), which, after, act)).wait(LIMIT)
        trial.struck = trial.calls().stat().st_size > which
    else:
        child = trial.start()
        trial.struck = child.signal_at(number, trial.rng.uniform(0, trial.reference.seconds), group=number == signal.SIGINT)
        ended = child.wait(LIMIT)
        # A process that has just left can be sent a signal too.
        trial.struck &= ended.code != 0 or number == signal.SIGINT
    # Python drops an interrupt that comes while it is tidying up an object, and the run goes on to its end.
    fine = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143), signal.SIGINT: (130, 0)}[number]
    if trial.struck and (ended.code not in fine or "Traceback" in ended.errors):
        trial.wrong = f"ended with {ended.code}: {ended.last_error()}"
    return ended


def send_myself(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def clock_set_back(trial: Trial) -> None:
    """Killed, and all that it left is of a time to come."""
    signalled(signal.SIGKILL, False, trial)
    then = time.time() + 30 * 86400
    for path in trial.work.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


def disk_full(trial: Trial) -> None:
    """The disk has room for a part of what the run writes; it is a file system in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", trial.work], check=True)
    try:
        began = begin_again(trial)
        room = began + int(trial.rng.uniform(0, 2 * trial.reference.size))
        resize(trial.work, room)
        ended = trial.start().wait(LIMIT)
        trial.struck = ended.code != 0
        require_one_line(trial, ended, "No space left")
    finally:
        resize(trial.work, 2**28)


def resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(4096, size)}", folder], check=True)


def begin_again(trial: Trial) -> int:
    """Lay what was there before into the file system that is mounted now; its bytes, in whole pages."""
    shutil.copytree(trial.said / "began", trial.work, dirs_exist_ok=True)
    usage = shutil.disk_usage(trial.work)
    return usage.used


def folder_read_only(trial: Trial) -> None:
    """Before one of the run's writes every folder becomes one that can't be written; the user isn't root."""
    for path in (trial.work, *trial.work.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    which = trial.rng.randrange(trial.reference.writes)

    def before() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        strike(trial.calls(), which, act=partial(set_modes, trial.work, 0o555, os.chmod))

    trial.said.chmod(0o777)
    ended = trial.start(before).wait(LIMIT)
    trial.struck = ended.code != 0
    require_one_line(trial, ended, "can't write")
    set_modes(trial.work, 0o755, os.chmod)
    for path in (trial.work, *trial.work.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)


def set_modes(work: Path, mode: int, chmod: Callable) -> None:
    for folder in [work, *(path for path in work.rglob("*") if path.is_dir())]:
        chmod(folder, mode)


def require_one_line(trial: Trial, ended: Ended, reason: str) -> None:
    """What a user sees of a disk that is full, or of a folder that can't be written."""
    told = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    cells = "cells failed" in ended.errors and reason in ended.output
    if ended.code and (ended.code != 2 or len(told) != 1 or "Traceback" in ended.errors or not (reason in told[0] or cells)):
        trial.wrong = f"ended with {ended.code}: {ended.errors[-1500:]}"


def file_cut(suffixes: tuple[str, ...], trial: Trial) -> None:
    """The run is finished, and somebody cuts off the end of a file that it wrote."""
    began = {path.relative_to(trial.work) for path in trial.work.rglob("*")}
    shutil.copytree(trial.reference.folder, trial.work, dirs_exist_ok=True)
    new = [path for path in sorted(trial.work.rglob("*")) if path.is_file() and path.relative_to(trial.work) not in began]
    new = [path for path in new if path.suffix in suffixes and not path.name.startswith(".") and path.stat().st_size]
    trial.struck = bool(new)
    if new:
        chosen = trial.rng.choice(new)
        os.truncate(chosen, trial.rng.randrange(chosen.stat().st_size))


def checkpoint_halved(trial: Trial) -> None:
    """Killed after a checkpoint was written, which is then cut in half."""
    act = partial(send_myself, signal.SIGKILL)
    trial.start(partial(strike, trial.calls(), trial.rng.randrange(2), True, act, r" \S+\.checkpoint\.pt$")).wait(LIMIT)
    found = sorted(trial.work.rglob("*.checkpoint.pt"))
    trial.struck = bool(found)
    for path in found:
        os.truncate(path, path.stat().st_size // 2)


def nothing(trial: Trial) -> None:
    """The command runs once, to be run again: what is finished has to stay as it is."""
    trial.start().wait(LIMIT)


DISTURBANCES: dict[str, Callable[[Trial], object]] = {
    "SIGKILL": partial(signalled, signal.SIGKILL, False),
    "SIGKILL at a write": partial(signalled, signal.SIGKILL, True),
    "SIGTERM": partial(signalled, signal.SIGTERM, False),
    "SIGTERM at a write": partial(signalled, signal.SIGTERM, True),
    "Ctrl-C": partial(signalled, signal.SIGINT, False),
    "Ctrl-C at a write": partial(signalled, signal.SIGINT, True),
    "killed, clock set back": clock_set_back,
    "disk full": disk_full,
    "folder read-only": folder_read_only,
    "record cut": partial(file_cut, (".json",)),
    "other file cut": partial(file_cut, (".safetensors", ".csv", ".png", ".md")),
    "checkpoint halved": checkpoint_halved,
    "nothing": nothing,
}
FOR_WORKERS = tuple(DISTURBANCES)[:7]


def possible() -> list[str]:
    """Disturbances that this user can make on this machine, those that are signals several times."""
    root = os.geteuid() == 0
    able = {"disk full": root and can_mount(), "folder read-only": root and others_can_import()}
    names = [name for name in DISTURBANCES if able.get(name, True)]
    return [*names, *tuple(DISTURBANCES)[:6]]


def others_can_import() -> bool:
    """Whether a user who isn't root can read the files of Python and of the packages, or imports on the way would fail."""
    files = [Path(module.__file__).resolve() for module in (os, pd)]
    return all(path.stat().st_mode & 0o5 == 0o5 for file in files for path in file.parents)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
                return False
        except OSError:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


# -------------------------------------------------------------------------------------------------------------- trials


def one_trial(name: str, disturbance: str, references: References, folder: Path, rng: random.Random) -> tuple[Trial, str]:
    """A trial, and what went wrong in it: "" if nothing."""
    case, reference = references.cases[name], references[name]
    work, said = folder / "work", folder / "said"
    said.mkdir(parents=True)
    references.begin(case, work)
    trial = Trial(case, reference, work, said, rng)
    if disturbance == "disk full":
        shutil.copytree(work, said / "began")
        shutil.rmtree(work)
        work.mkdir()
    try:
        DISTURBANCES[disturbance](trial)
        again = run(case.script, [*case.arguments], work, folder / "again", LIMIT)
        found = content_of(work) if again.code == 0 else {}
    finally:
        if disturbance == "disk full":
            subprocess.run(["umount", "-l", work], check=True)
        end_workers(work)
    if trial.wrong:
        return trial, trial.wrong
    if again.code:
        return trial, f"the same command again ended with {again.code}: {again.errors[-1500:]}"
    different = sorted(
        path for path in found.keys() | reference.content.keys() if found.get(path) != reference.content.get(path)
    )
    return trial, f"different: {', '.join(different[:5])}" if different else ""


def end_workers(work: Path) -> None:
    """Workers of a grid that was killed outlive it for a minute or two."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(work) and process.pid != os.getpid():
                process.kill()


def choose(cases: dict[str, Case], disturbances: list[str], rng: random.Random) -> tuple[str, str]:
    alone = any(not case.workers for case in cases.values())
    disturbance = rng.choice([name for name in disturbances if alone or name in FOR_WORKERS])
    fitting = [name for name, case in cases.items() if not case.workers or disturbance in FOR_WORKERS]
    return rng.choices(fitting, [cases[name].weight for name in fitting])[0], disturbance


def table_of(number: Counter, right: Counter) -> str:
    """Stages by disturbances: how many, and of those how many ended as an undisturbed run does, if not all."""
    columns = [name for name in DISTURBANCES if any(key[1] == name for key in number)]
    lines = [f"| stage | {' | '.join(columns)} | all |", "| --- |" + " ---: |" * (len(columns) + 1)]
    stages = list(dict.fromkeys(key[0] for key in number))

    def cell(keys: list[tuple[str, str]]) -> str:
        total, good = sum(number[key] for key in keys), sum(right[key] for key in keys)
        return "" if not total else str(total) if total == good else f"{good} of {total}"

    for stage in [*stages, "all"]:
        own = [key for key in number if stage in (key[0], "all")]
        cells = [cell([key for key in own if key[1] == name]) for name in columns]
        lines.append(f"| {stage} | {' | '.join([*cells, cell(own)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=0, help="of disturbances that struck")
    parser.add_argument("--minutes", type=float, default=0, help="of wall-clock time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=int, help="run this one alone, and keep its folder")
    parser.add_argument("--only", default="", help="cases whose name or stage holds this")
    parser.add_argument("--kind", default="", help="disturbances whose name holds this")
    parser.add_argument("--table", type=Path, help="file for the table, as Markdown")
    options = parser.parse_args()
    import_everything()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    folder.chmod(0o755)
    cases = make_cases(folder / "given")
    references = References(cases, folder / "undisturbed")
    drawn = {name: case for name, case in cases.items() if options.only in name or options.only in case.stage}
    disturbances = [name for name in possible() if options.kind in name]
    number, right, missed, left = Counter(), Counter(), 0, 0
    drawn_kinds: Counter[str] = Counter()
    failures, began = [], time.monotonic()
    trial_number = options.trial or 0
    while True:
        rng = random.Random(f"{options.seed} {trial_number}")
        name, disturbance = choose(drawn, disturbances, rng)
        place = folder / f"trial-{trial_number}"  # Workers take no folder with a blank in its name.
        trial, wrong = one_trial(name, disturbance, references, place, rng)
        drawn_kinds[disturbance] += 1
        missed += not trial.struck
        left += halves(trial.work)
        if trial.struck or wrong:
            key = (trial.case.stage, disturbance)
            number[key] += 1
            right[key] += not wrong
        if wrong:
            failures.append(f"trial {trial_number} (--seed {options.seed}): {name}, {disturbance}: {wrong}")
        print(
            f"trial {trial_number}: {name}, {disturbance}: {wrong or ('right' if trial.struck else 'too late')}", flush=True
        )
        trial_number += 1
        if options.trial is not None:
            print(f"{name}, {disturbance}: {wrong or 'right'}; kept in {place}")
            sys.exit(bool(wrong))
        shutil.rmtree(place)
        spent = time.monotonic() - began
        if (options.number and sum(number.values()) >= options.number) or (options.minutes and spent > options.minutes * 60):
            break
        if not options.number and not options.minutes:
            break
    shutil.rmtree(folder)
    table = table_of(number, right)
    summary = (
        f"{sum(number.values())} disturbances in {spent / 60:.0f} minutes (seed {options.seed}), {sum(right.values())} of "
        f"them without a trace; {missed} more came after the run's end; {left} hidden halves were left."
    )
    print(f"{table}\n\n{summary}")
    if options.table:
        options.table.write_text(f"{table}\n\n{summary}\n")
    # A kind that never strikes is none: with few trials it may be chance.
    idle = [kind for kind in drawn_kinds if drawn_kinds[kind] >= 5 and not any(key[1] == kind for key in number)]
    if idle:
        print(f"never struck, and so not tried: {', '.join(idle)}")
    sys.exit(bool(failures or idle))


if __name__ == "__main__":
    main()
