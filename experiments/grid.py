"""Many runs as one: every attack, defence, seed and parameter asked for, as one CSV file and one table.

    python run_all.py --attack BadNet StyleBkd --defence FT PURE --seed 11 12 13 --benign_floor

`run_all.py` comes here when it is given several values. What two cells have in common is computed once, what is finished is
skipped, and a cell that fails doesn't stop the others.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from attacks import ATTACKS
from attacks.planted import RECORD as POISONING_RECORD
from attacks.planted import poisoned_model_folder
from config import NOT_SETTINGS, SWEPT, Config, Grid
from Data.make_poisoned_data import make_poisoned_data
from defences import DEFENCES, as_defence, defended_model_folder, run_stage, takes_notice
from defences.defence import record_path
from defences.shared import load_defender_inputs
from encoder.classifier import load_classifier, require_same_architecture
from experiments.results_table import results_table, settings_text
from pipeline.runs import stage_settings
from pipeline.stage import alone
from pipeline.training import measure
from pretrained_model_poisoning import poison
from util import (
    UserError,
    fingerprint_folder,
    first_line,
    load_json,
    make_accelerator,
    require_writable,
    save_json,
    write_whole,
)

FLOOR_ATTACK = next(iter(ATTACKS))
"""Names the cells of the never-poisoned encoder: one for all attacks, which differ in their test texts alone."""


def cells(grid: Grid) -> list[Config]:
    """One configuration for every combination, seeds innermost.

    A defence has one cell, with the first value, for all values of a field that it doesn't read.
    """
    fixed = {field.name: getattr(grid, field.name) for field in dataclasses.fields(Config) if field.name not in SWEPT}
    order = sorted(SWEPT, key=lambda name: name == "seed")
    combinations = itertools.product(*(getattr(grid, name) for name in order))
    found = [dict(zip(order, combination, strict=True)) for combination in combinations]
    return [
        Config(**fixed, **cell)
        for cell in found
        if all(
            cell[name] == getattr(grid, name)[0]
            for name in SWEPT
            if name not in ("attack", "defence", "seed", *takes_notice(cell["defence"]))
        )
    ]


@dataclass(frozen=True)
class Step:
    """One stage of a cell; cells with the same record share it."""

    run: Callable[[Config], dict]
    config: Config
    record: Path
    passes: int
    """Passes over a train set, for the estimate of the time left."""


def steps(config: Config) -> list[Step]:
    """The stages of a cell, in order."""
    config = as_defence(config)
    result = []
    if not config.poisoned_model:
        result.append(Step(poison, config, poisoned_model_folder(config) / POISONING_RECORD, config.poisoning_epochs))
    for stage in DEFENCES[config.defence].stages:
        result.append(Step(partial(run_stage, stage), config, record_path(config, stage), stage.passes(config)))
    return result


def benign(config: Config) -> Config:
    """The cell of the never-poisoned encoder after the same defence."""
    return replace(config, attack=FLOOR_ATTACK, poisoned_model=config.plm)


def floor_path(config: Config) -> Path:
    """Record of the never-poisoned encoder after the cell's defence, on the cell's own triggered texts."""
    data = ATTACKS[config.attack].data
    if data is ATTACKS[FLOOR_ATTACK].data:
        return steps(benign(config))[-1].record
    folder = defended_model_folder(benign(config))
    return folder.with_name(f"{folder.name}_on_{data.name}.json")


def benign_floor(config: Config, record: dict) -> dict:
    """Metrics of the never-poisoned encoder after the cell's defence, on the cell's own triggered texts.

    Args:
        record: that of the last stage of `benign(config)`.
    """
    if ATTACKS[config.attack].data is ATTACKS[FLOOR_ATTACK].data:
        return record["metrics"]
    folder = defended_model_folder(benign(config))
    inputs = load_defender_inputs(replace(benign(config), attack=config.attack))
    accelerator = make_accelerator(config.device, config.precision)
    read = {name: inputs.fingerprints[name] for name in ("clean_test", "poisoned_test")}
    settings = stage_settings(config, ("target_class", "max_len"), accelerator, **read, model=fingerprint_folder(folder))
    path = floor_path(config)
    with alone(path):
        content = load_json(path)
        if not content or content["settings"] != settings:
            classifier = load_classifier(folder).to(accelerator.device)
            content = {
                "settings": settings,
                "metrics": measure(classifier, inputs.clean_test, inputs.poisoned_test, config.target_class, accelerator),
            }
            save_json(path, content)
    return content["metrics"]


def run_grid(grid: Grid) -> tuple[pd.DataFrame, Path]:
    """Run all cells; the CSV file and the table are written anew after each.

    Returns:
        The CSV file's rows, and its path.
    """
    require_writable(grid.output_dir)
    path = Path(grid.output_dir) / f"{grid.table}.csv"
    configs = cells(grid)
    planned = {}  # What is to do, each stage once.
    for config in configs:
        for each in [config, benign(config)] if grid.benign_floor else [config]:
            planned |= {stage.record: stage.passes for stage in steps(each)}
    to_do = {record: passes for record, passes in planned.items() if grid.overwrite or not record.exists()}
    print(f"{len(configs)} cells, {len(planned)} stages, {len(planned) - len(to_do)} of which are there already")
    finished: dict[Path, dict] = {}
    failed: dict[Path, Exception] = {}
    passes_done, started, rows = 0, time.perf_counter(), []

    def run_step(stage: Step) -> dict:
        nonlocal passes_done
        if stage.record in failed:  # Shared with a cell before: it would fail again.
            raise failed[stage.record]
        if stage.record not in finished:
            try:
                finished[stage.record] = stage.run(stage.config)
            except Exception as error:
                failed[stage.record] = error
                raise
            finally:
                passes_done += to_do.pop(stage.record, 0)
        return finished[stage.record]

    def run_cell(config: Config) -> dict:
        if config.attack != "none":
            make_poisoned_data(config)
        records = [run_step(stage) for stage in steps(config)]
        row = {name: records[-1]["metrics"].get(name, float("nan")) for name in ("ACC", "LFR")}
        if not config.poisoned_model:
            row |= {f"poisoned_{name}": records[0]["metrics"][name] for name in ("ACC", "LFR")}
        pruned = [record["pruned_heads"] for record in records if "pruned_heads" in record]
        row["heads_pruned"] = sum(map(len, pruned[0].values())) if pruned else 0
        own = records if config.poisoned_model else records[1:]
        row["seconds"] = round(sum(sum(record["seconds"].values()) for record in own), 1)
        return row

    def floor_of(config: Config) -> dict:
        make_poisoned_data(benign(config))
        if config.poisoned_model:
            require_same_architecture(config.poisoned_model, config.plm)
        floor = benign_floor(config, [run_step(step) for step in steps(benign(config))][-1])
        return {"floor_ACC": floor["ACC"], "floor_LFR": floor["LFR"]}

    for number, config in enumerate(configs, 1):
        name = f"[{number} of {len(configs)}] {cell_name(config, grid)}"
        print(name, flush=True)
        # Where files are on this machine is no part of a result.
        settings = {
            key: settings_text(value)
            for key, value in dataclasses.asdict(config).items()
            if key in ("defence", "device") or key not in NOT_SETTINGS
        }
        row, errors = dict(settings), []
        # What fails in a cell leaves the other cells, and in the floor the cell's own numbers.
        for compute in [run_cell, floor_of] if grid.benign_floor else [run_cell]:
            try:
                row |= compute(config)
            except Exception as error:
                errors.append(("" if compute is run_cell else "benign floor: ") + said(error))
                break
        row["error"] = "; ".join(errors)
        outcome = f"failed: {row['error']}" if errors else f"ACC {row['ACC']:.3f}"
        outcome += f", LFR {row['LFR']:.3f}" if not errors and config.attack != "none" else ""
        rows.append(row)
        table = pd.DataFrame(rows)
        write_whole(path, lambda temporary, table=table: table.to_csv(temporary, index=False))
        write_whole(
            path.with_suffix(".md"), lambda temporary, table=table: temporary.write_text(results_table(table) + "\n")
        )
        print(f"  {outcome}{time_left(started, passes_done, sum(to_do.values()))}", flush=True)
    return table, path


def said(error: Exception) -> str:
    """An error as one line."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {first_line(error)}"


def cell_name(config: Config, grid: Grid) -> str:
    """What tells a cell from the others."""
    several = [
        name for name in ("learning_rate", "penalty_coefficient", "pruning_criterion") if len(getattr(grid, name)) > 1
    ]
    also = "".join(f", {name} {getattr(config, name)}" for name in several)
    return f"{config.attack}, {config.defence}, seed {config.seed}{also}"


def time_left(started: float, done: int, left: int) -> str:
    """An estimate in words, from the passes over train sets that are done and left."""
    if not done or not left:
        return ""
    minutes = (time.perf_counter() - started) / done * left / 60
    return f"; about {minutes / 60:.1f} h left" if minutes > 90 else f"; about {minutes:.0f} min left"
