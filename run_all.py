"""Plant a backdoor in a pre-trained language model, remove it with PURE, and say what happened.

    python run_all.py                                            # minutes on a laptop; needs no network and no data
    python run_all.py --attack HiddenKiller --seed 12            # another backdoor, another seed
    python run_all.py --preset sst2 --data_dir FOLDER            # SST-2 and the published hyper-parameters
    python run_all.py --preset paper                             # the paper's experiment; encoder and data from the hub
    python run_all.py --attack BadNet --poisoned_model ENCODER   # an encoder that somebody else has poisoned
    python run_all.py --poisoned_model ENCODER --clean_dataset my.csv            # your own data, and no known attack
    python run_all.py --poisoned_model ENCODER --clean_dataset my.csv --defence erase_relearn
    python run_all.py --attack BadNet StyleBkd --defence FT FTH MEFT PURE --seed 11 12 13 --benign_floor

Stages: poisoned data, poisoning, head pruning, attention normalisation. A stage that is finished with the same settings is
not run again; a run that was killed goes on where it stopped. Without an attack the last stage is an export to plain
transformers, with a model card. ENCODER is a folder or a hub id. Fine-tuning alone is shown beside any defence. With several
attacks, defences, seeds, learning rates, penalties, pruning criteria or mixing shares, all combinations are run and
aggregated; so is a single one with --benign_floor, --detection, --table, --workers or --engine.
"""

import importlib

from attacks import ATTACKS
from config import Config, Grid, parse_grid
from defences import DEFENCES
from util import UserError, quieten_libraries, run_script


def single_run(grid: Grid, configs: list[Config]) -> Config | None:
    """The configuration of the one defence, FT beside it or not, that is asked for; None: it's a grid.

    Args:
        configs: the grid's cells.
    """
    asked = [config for config in configs if config.defence != "FT"] or configs
    several = len(asked) > 1 or len(configs) > len(asked) + 1
    of_a_grid = grid.benign_floor or grid.detection or grid.table or grid.workers > 1 or grid.engine
    return None if several or of_a_grid else asked[0]


def main() -> None:
    grid = parse_grid(__doc__, ATTACKS, DEFENCES)
    # A help text, or a mistake in a flag, needs none of what takes seconds to import.
    from experiments.grid import cells, run_grid
    from experiments.results_table import results_table
    from reporting.run_page import report_run
    from story import print_table, run_all

    quieten_libraries()
    if grid.benign_floor and "none" in grid.attack:
        raise UserError("--benign_floor is measured on triggered texts; name an attack with --attack")
    if grid.detection and "none" in grid.attack:
        raise UserError(
            "--detection says how well detectors tell triggered texts from clean ones; name an attack with --attack "
            "(scan.py and --suspicious_texts ask for none)"
        )
    if config := single_run(grid, cells(grid)):
        if grid.threads:
            importlib.import_module("torch").set_num_threads(grid.threads)
        print_table(run_all(config), config)
        if config.defence != "FT":  # Which is what the page shows a defence beside.
            print(f"\nFigures, numbers and settings on one page: {report_run(config)}")
        return
    if grid.suspicious_texts:
        raise UserError(
            "--suspicious_texts is for one run; give one value of each flag and none that is for a grid, or use "
            "python -m detection.suspicious_texts"
        )
    from reporting.grid_page import report_grid

    table, path = run_grid(grid)
    print(f"\n{results_table(table)}\n\n{path} has a row per cell; {path.with_suffix('.md')} has this table")
    print(f"Figure, numbers and settings on one page: {report_grid([path])}")
    failed = int((table["error"] != "").sum())
    if failed:
        raise UserError(f"{failed} of {len(table)} cells failed (see the table); the same command tries them again")


if __name__ == "__main__":
    run_script(main)
