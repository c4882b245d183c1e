"""Many runs as one: every attack, defence, seed and parameter asked for, as one CSV file and one table.

    python run_all.py --attack BadNet StyleBkd --defence FT PURE --seed 11 12 13 --benign_floor

`run_all.py` comes here when it is given several values. What two cells have in common is computed once, what is finished is
skipped, and a cell that fails doesn't stop the others.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from attention_head_pruning import RECORD as PRUNING_RECORD
from attention_head_pruning import prune_heads
from attention_normalization import RECORD as NORMALISATION_RECORD
from attention_normalization import normalise_attention
from config import NOT_SETTINGS, Config, Grid
from Data.make_poisoned_data import make_poisoned_data
from defences.baselines import fine_tune_baseline
from encoder.classifier import load_classifier
from experiments.results_table import results_table, settings_text
from pipeline.defender import load_defender_inputs
from pipeline.runs import (
    POISONED_DATA,
    as_defence,
    baseline_record,
    defended_model_folder,
    fingerprint_encoder,
    poisoned_model_folder,
    pruning_folder,
    run_folder,
    stage_settings,
)
from pipeline.training import measure
from pretrained_model_poisoning import poison
from util import UserError, first_line, load_json, make_accelerator, require_writable, save_json, write_whole


@dataclass(frozen=True)
class Stage:
    """One step of a cell; cells with the same record share it."""

    run: Callable[[Config], dict]
    config: Config
    record: Path
    passes: int
    """Passes over a train set, for the estimate of the time left."""


def stages(config: Config) -> list[Stage]:
    """The steps of a cell, in order."""
    config = as_defence(config)
    result = []
    if not config.poisoned_model:
        record = poisoned_model_folder(config) / "poisoning.json"
        result.append(Stage(poison, config, record, config.poisoning_epochs))
    if config.defence == "MEFT":
        passes = config.entropy_epochs + config.epochs
        return [*result, Stage(fine_tune_baseline, config, baseline_record(config), passes)]
    result.append(Stage(fine_tune_baseline, replace(config, defence="FT"), baseline_record(config), config.epochs))
    if config.defence not in ("FT", "FTH"):
        result.append(Stage(prune_heads, config, pruning_folder(config) / PRUNING_RECORD, 0))
        result.append(Stage(normalise_attention, config, run_folder(config) / NORMALISATION_RECORD, config.epochs))
    return result


def benign(config: Config) -> Config:
    """The cell of the never-poisoned encoder: one for all attacks, which differ in their test texts alone."""
    return replace(config, attack="BadNet", poisoned_model=config.plm)


def floor_path(config: Config) -> Path:
    """Record of the never-poisoned encoder after the cell's defence, on the cell's own triggered texts."""
    kind, _ = POISONED_DATA[config.attack]
    if kind == POISONED_DATA["BadNet"][0]:
        return stages(benign(config))[-1].record
    folder = defended_model_folder(benign(config))
    return folder.with_name(f"{folder.name}_on_{kind}.json")


def benign_floor(config: Config, record: dict) -> dict:
    """Metrics of the never-poisoned encoder after the cell's defence, on the cell's own triggered texts.

    Args:
        record: that of the last stage of `benign(config)`.
    """
    kind, _ = POISONED_DATA[config.attack]
    if kind == POISONED_DATA["BadNet"][0]:
        return record["metrics"]
    folder = defended_model_folder(benign(config))
    inputs = load_defender_inputs(replace(benign(config), attack=config.attack))
    accelerator = make_accelerator(config.device, config.precision)
    read = {"model": fingerprint_encoder(str(folder)), "poisoned_test": inputs.fingerprints["poisoned_test"]}
    settings = stage_settings(config, (), accelerator, **read)
    path = floor_path(config)
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
    cells = grid.cells()
    planned = {}  # What is to do, each stage once.
    for config in cells:
        for each in [config, benign(config)] if grid.benign_floor else [config]:
            planned |= {stage.record: stage.passes for stage in stages(each)}
    to_do = {record: passes for record, passes in planned.items() if grid.overwrite or not record.exists()}
    print(f"{len(cells)} cells, {len(planned)} stages, {len(planned) - len(to_do)} of which are there already")
    finished: dict[Path, dict] = {}
    failed: dict[Path, Exception] = {}
    passes_done, started, rows = 0, time.perf_counter(), []

    def run_stage(stage: Stage) -> dict:
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
        records = [run_stage(stage) for stage in stages(config)]
        row = {name: records[-1]["metrics"].get(name, float("nan")) for name in ("ACC", "LFR")}
        if not config.poisoned_model:
            row |= {f"poisoned_{name}": records[0]["metrics"][name] for name in ("ACC", "LFR")}
        pruned = [record["pruned_heads"] for record in records if "pruned_heads" in record]
        row["heads_pruned"] = sum(map(len, pruned[0].values())) if pruned else 0
        own = records if config.poisoned_model else records[1:]
        row["seconds"] = round(sum(sum(record["seconds"].values()) for record in own), 1)
        if grid.benign_floor:
            make_poisoned_data(benign(config))
            floor = benign_floor(config, [run_stage(stage) for stage in stages(benign(config))][-1])
            row |= {"floor_ACC": floor["ACC"], "floor_LFR": floor["LFR"]}
        return row

    for number, config in enumerate(cells, 1):
        name = f"[{number} of {len(cells)}] {cell_name(config, grid)}"
        print(name, flush=True)
        # Where files are on this machine is no part of a result.
        settings = {
            key: settings_text(value)
            for key, value in dataclasses.asdict(config).items()
            if key in ("defence", "device") or key not in NOT_SETTINGS
        }
        try:
            row = {**settings, **run_cell(config), "error": ""}
            outcome = f"ACC {row['ACC']:.3f}" + ("" if config.attack == "none" else f", LFR {row['LFR']:.3f}")
        except Exception as error:  # Whatever it is, the other cells may be fine.
            message = (
                " ".join(str(error).split())
                if isinstance(error, UserError)
                else f"{type(error).__name__}: {first_line(error)}"
            )
            row = {**settings, "error": message}
            outcome = f"failed: {message}"
        rows.append(row)
        table = pd.DataFrame(rows)
        write_whole(path, lambda temporary, table=table: table.to_csv(temporary, index=False))
        write_whole(
            path.with_suffix(".md"), lambda temporary, table=table: temporary.write_text(results_table(table) + "\n")
        )
        print(f"  {outcome}{time_left(started, passes_done, sum(to_do.values()))}", flush=True)
    return table, path


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
