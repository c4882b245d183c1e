"""Runs a graph of tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from util import named


@dataclass(frozen=True)
class Task:
    """A function call whose result others may need."""

    key: str
    function: str
    argument: object
    needs: tuple[str, ...]
    log: Path
    title: str


def run_tasks(
    tasks: list[Task],
    *,
    workers: int,
    threads: int | None,
    engine: Path | None,
    finished: Callable[[str, dict | Exception], None],
) -> None:
    """Run every task after those that it needs."""
    outcomes: dict[str, dict | Exception] = {}
    for task in tasks:
        wrong = next((outcomes[key] for key in task.needs if isinstance(outcomes[key], Exception)), None)
        if wrong is None:
            try:
                outcomes[task.key] = named(task.function)(task.argument)
            except Exception as error:
                outcomes[task.key] = error
        else:
            outcomes[task.key] = wrong
        finished(task.key, outcomes[task.key])
