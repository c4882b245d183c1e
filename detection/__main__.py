"""How well detectors tell triggered texts from clean ones, with the models of runs that are finished.

    python -m detection --attack BadNet HiddenKiller --defence FT PURE --seed 11 12      # the flags that made the runs
    python -m detection --language_model GPT2_FOLDER

Writes a CSV file with a row per run, detector and allowed share of false rejections: FRR on the clean test texts, FAR and
AUROC on the triggered ones that the model gives the attacker's class (docs/detection.md).
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from attacks import ATTACKS
from config import SWEPT, Grid, parse_grid
from defences import DEFENCES
from detection import DETECTORS
from detection.rates import ALLOWED, rates_of
from experiments.grid import cells
from util import UserError, run_script, write_whole


@dataclass(frozen=True)
class Detection(Grid):
    """Which runs, as for run_all.py, and what to measure on them."""

    detectors: tuple[str, ...] = ()
    """Detectors, of DAN, BadActs, STRIP, RAP, ONION. Default: all, ONION if there is a language model."""
    language_model: str | None = None
    """Folder or hub id of a causal language model, such as GPT-2, which ONION needs."""
    allowed: tuple[float, ...] = ALLOWED
    """Shares of clean texts that may be rejected falsely, 0 to 1: thresholds are set for each."""


def check_options(options: Detection) -> None:
    """Raise a UserError for an unknown detector, or where there is no attack."""
    for name in options.detectors:
        if name not in DETECTORS:
            raise UserError(f"--detectors {name} is none; expected one or more of {', '.join(DETECTORS)}")
    if "none" in options.attack:
        raise UserError("detectors are measured on triggered texts; name the attack of the runs with --attack")


def main() -> None:
    options = parse_grid(__doc__, ATTACKS, DEFENCES, kind=Detection)
    check_options(options)
    tables = []
    for config in cells(options):
        named = {name: getattr(config, name) for name in SWEPT}
        print(f"{config.attack}, {config.defence}, seed {config.seed}", flush=True)
        table = rates_of(config, options.detectors, options.language_model, options.allowed)
        print(table.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
        tables.append(table.assign(**named)[[*named, *table.columns]])
    path = Path(options.output_dir) / f"{options.table or 'grid'}_detection.csv"
    write_whole(path, lambda temporary: pd.concat(tables).to_csv(temporary, index=False))
    print(f"written to {path}")


if __name__ == "__main__":
    run_script(main)
