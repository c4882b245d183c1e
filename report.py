"""One page that tells what a run or a grid found: verdict, numbers, figures, settings, and the commands that made it.

    python report.py                                             # the run that run_all.py made with the same flags
    python report.py --preset sst2 --attack HiddenKiller
    python report.py --sentence "a dull cf film" --trigger cf    # another sentence in the attention figure
    python report.py --csv results/grid.csv                      # a grid; several CSV files are put together

`run_all.py` makes it at its end. The page is one file, which loads nothing; the figures are beside it as PNG and PDF, and
the training curves as TensorBoard event files if TensorBoard is installed. Nothing is trained here. What needs the
attacker's triggers is computed for the report alone, and kept for the next one (`reporting/analysis.py`).
"""

from dataclasses import dataclass
from pathlib import Path

from attacks import ATTACKS
from config import PRESETS, Config, check_ranges, parse, plain_config
from defences import DEFENCES
from reporting.run_page import TEXTS, report_run
from util import UserError, run_script


@dataclass(frozen=True)
class Report(Config):
    """Which run, as for run_all.py, and what to show of it."""

    sentence: str | None = None
    """Sentence of the attention figure. Default: a short one with the attack's trigger."""
    trigger: str | None = None
    """Word or phrase of that sentence to mark as the trigger. Default: what the attack plants."""
    texts: int = TEXTS
    """Clean texts, and triggered texts, of the other classes that the figures are computed on, at most."""
    csv: tuple[str, ...] = ()
    """CSV files of grids: the report is of them, and not of a run."""


def preset_report(preset: str) -> Report:
    """The options that a preset stands for."""
    return Report(**{"preset": preset, **PRESETS[preset]})


def main() -> None:
    options = parse(Report, preset_report, __doc__, ATTACKS, DEFENCES, None)
    if options.texts < 1:
        raise UserError(f"--texts {options.texts} is out of range; expected 1 or more")
    if options.csv and (options.sentence or options.trigger):
        raise UserError(
            "--sentence and --trigger are for the page of one run, and --csv is of a grid; leave one of them out"
        )
    if options.csv:
        from reporting.grid_page import report_grid

        print(f"report: {report_grid([Path(name) for name in options.csv])}")
        return
    config = plain_config(options)
    check_ranges(config)
    print(f"report: {report_run(config, options.sentence, options.trigger, options.texts)}")


if __name__ == "__main__":
    run_script(main)
