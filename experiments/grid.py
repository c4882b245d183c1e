"""Many runs as one: every attack, defence, seed and parameter asked for, as one CSV file and one table.

    python run_all.py --attack BadNet StyleBkd --defence FT PURE --seed 11 12 13 --benign_floor

`run_all.py` comes here when it is given several values. A grid is a graph of stages: what two cells have in common is
computed once, what is finished is skipped, and a stage that fails fails the cells that need it and no others.
"""

import dataclasses
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from attacks import ATTACKS
from attacks.planted import DATA_RECORD, measured_tables, poisoned_data_folder, poisoned_model_folder
from attacks.planted import RECORD as POISONING_RECORD
from config import NOT_SETTINGS, SWEPT, Config, Grid
from defences import DEFENCES
from defences.defence import as_defence, defended_model_folder, record_path, takes_notice
from defences.shared import load_defender_inputs
from detection.rates import rates_path
from encoder.classifier import load_classifier, load_tokeniser, require_same_architecture
from experiments.engine import Task, run_tasks
from experiments.results_table import FLIPS, results_table, settings_of, settings_text
from pipeline.runs import stage_settings
from pipeline.stage import run_once
from pipeline.training import RATES, false_positive_rate, measure
from texts.batching import tokenise
from util import (
    ARITHMETIC,
    UserError,
    fingerprint_folder,
    first_line,
    make_accelerator,
    printable,
    require_writable,
    write_whole,
)

POISONING = "pretrained_model_poisoning:poison"
DETECTION = "detection.rates:rates_record"
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

    function: str
    """ "module:name", from a configuration to a record."""
    config: Config
    record: Path
    """What it writes, by which it is known."""
    title: str
    needs: tuple[Path, ...] = ()
    """Records that it reads."""
    passes: int = 0
    """Passes over a train set, for the estimate of the time left."""


def steps(config: Config) -> list[Step]:
    """The stages of a cell, in order."""
    config = as_defence(config)
    name = f"{config.attack}, seed {config.seed}"
    result: list[Step] = []
    if config.attack != "none":
        made = poisoned_data_folder(config) / DATA_RECORD
        result.append(Step("Data.make_poisoned_data:poisoned_data_record", config, made, f"{name}: poisoned data"))
    if not config.poisoned_model:
        record = poisoned_model_folder(config) / POISONING_RECORD
        needs = (result[-1].record,)
        result.append(Step(POISONING, config, record, f"{name}: poisoning", needs, config.poisoning_epochs))
    for stage in DEFENCES[config.defence].stages:
        given = f"never poisoned, seed {config.seed}" if config.poisoned_model == config.plm else name
        needs = tuple(step.record for step in result[-1:])
        title = f"{given}: {stage.title}"
        result.append(Step(stage.run, config, record_path(config, stage), title, needs, stage.passes(config)))
    return result


def detection_steps(config: Config) -> list[Step]:
    """What is measured of detectors with a cell's model: one stage, if there is an attack to be detected."""
    if config.attack == "none":
        return []
    title, needs = f"{config.attack}, seed {config.seed}: detectors ({config.defence})", (steps(config)[-1].record,)
    return [Step(DETECTION, as_defence(config), rates_path(as_defence(config)), title, needs)]


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


def floor_steps(config: Config) -> list[Step]:
    """The stages of a cell's benign floor, in order; the last one's record has its metrics."""
    result, path = steps(benign(config)), floor_path(config)
    if path != result[-1].record:
        needs = (result[-1].record, poisoned_data_folder(config) / DATA_RECORD)
        title = f"never poisoned, seed {config.seed}: on the texts of {config.attack}"
        result.append(Step("experiments.grid:benign_floor", as_defence(config), path, title, needs))
    return result


def benign_floor(config: Config) -> dict:
    """Metrics of the never-poisoned encoder after the cell's defence, on the cell's own triggered texts, as a record."""
    folder = defended_model_folder(benign(config))
    inputs = load_defender_inputs(replace(benign(config), attack=config.attack))
    accelerator = make_accelerator(config.device, config.precision)
    read = {name: inputs.fingerprints[name] for name in measured_tables(config)}
    settings = stage_settings(config, ("target_class", "max_len"), accelerator, **read, model=fingerprint_folder(folder))

    def compute() -> dict:
        classifier, tokeniser = load_classifier(folder).to(accelerator.device), load_tokeniser(str(folder))
        # The model's own: a defence may end with another encoder than it was given.
        texts = {name: tokenise(table, tokeniser, config.max_len) for name, table in measured_tables(config).items()}
        return {"metrics": measure(classifier, texts, config.target_class, accelerator), "seconds": {}}

    return run_once(floor_path(config), settings, compute, product=None, overwrite=False)[0]


def run_grid(grid: Grid) -> tuple[pd.DataFrame, Path]:
    """Run all cells; the CSV file and the table are written anew after each.

    Rows of an earlier run of these cells stay until there are new ones; a table with other cells is put aside.

    Returns:
        The CSV file's rows, and its path.
    """
    require_writable(grid.output_dir, grid.poisoned_data_dir, grid.poisoned_model_dir)
    path = Path(grid.output_dir) / f"{grid.table or 'grid'}.csv"
    configs = cells(grid)
    for config in configs:
        DEFENCES[config.defence].check(config)
    if grid.engine and grid.workers > 1:
        raise UserError(
            f"--engine {grid.engine} says how many workers there are, and --workers {grid.workers} would be ignored; leave "
            "one of them out"
        )
    if grid.workers > 1 and grid.device.startswith("cuda:"):
        raise UserError(
            f"--device {grid.device} names one card, and each of --workers {grid.workers} is given one of its own; expected "
            "--device cuda or auto (CUDA_VISIBLE_DEVICES says which cards there are), or --workers 1"
        )
    if grid.benign_floor and grid.poisoned_model:
        consequence = (
            "so the one can't be the other before it was poisoned; name the clean encoder that it was made from with --plm"
        )
        require_same_architecture(grid.poisoned_model, grid.plm, consequence)
    own = [steps(config) for config in configs]
    floors = [floor_steps(config) if grid.benign_floor else [] for config in configs]
    watched = [detection_steps(config) if grid.detection else [] for config in configs]
    planned: dict[Path, Step] = {}  # What is to do, each stage once, a cell's after those of the cells before it.
    for step in itertools.chain.from_iterable(itertools.chain(*zip(own, floors, watched, strict=True))):
        planned.setdefault(step.record, step)
    there = {record for record in planned if not grid.overwrite and record.exists()}
    print(f"{len(configs)} cells, {len(planned)} stages, {len(there)} of which are there already")
    outcomes: dict[Path, dict | Exception] = {}
    rows: dict[int, dict] = {}
    former = former_rows(path, configs)

    def finished(key: str, outcome: dict | Exception) -> None:
        outcomes[Path(key)] = outcome
        for number, config in enumerate(configs):
            parts = own[number], floors[number], watched[number]
            if number not in rows and all(step.record in outcomes for step in itertools.chain(*parts)):
                rows[number] = row_of(config, *parts, outcomes)
                known = former | rows
                write_rows(path, [known[each] for each in sorted(known)])
                print(f"{cell_name(config, grid)}: {outcome_of(rows[number])}", flush=True)

    tasks = [
        Task(
            key=str(record),
            function=step.function,
            argument=step.config,
            needs=tuple(map(str, step.needs)),
            log=log_of(record),
            title=step.title,
            weight=0 if record in there else step.passes,
        )
        for record, step in planned.items()
    ]
    engine = Path(grid.engine) if grid.engine else None
    run_tasks(
        tasks,
        workers=grid.workers,
        threads=grid.threads,
        engine=engine,
        folder=Path(grid.output_dir),
        finished=finished,
    )
    return pd.DataFrame([rows[number] for number in sorted(rows)]), path


def log_of(record: Path) -> Path:
    """Where a stage's output goes if it doesn't run in this process: beside its record, or its folder if that is swapped."""
    folder = record.parent
    swapped = record.name in (POISONING_RECORD, DATA_RECORD)
    return folder.with_name(f"{folder.name}.log") if swapped else record.with_name(f"{record.stem}.log")


def settings_row(config: Config) -> dict:
    """The settings of a cell as they stand in the CSV file."""
    return {
        key: settings_text(value)
        for key, value in dataclasses.asdict(config).items()
        if key in ("defence", "device") or key not in NOT_SETTINGS
    }


def former_rows(path: Path, configs: list[Config]) -> dict[int, dict]:
    """Rows of these cells that an earlier run has written, by the cell's number.

    A file that has other rows too, or is no table, is put aside with all that was made from it: nothing in it is lost.
    """
    if not path.exists():
        return {}
    # On which device a row was made tells no cells apart.
    settings = [{key: value for key, value in settings_row(each).items() if key != "device"} for each in configs]
    cell_texts = [{key: "" if value is None else str(value) for key, value in cell.items()} for cell in settings]
    try:
        texts = settings_of(path)
        table = pd.read_csv(path)
    except (OSError, ValueError):
        texts = table = pd.DataFrame()
    if "attack" not in texts:
        put_aside(path)
        return {}
    found = {}
    for at, text in enumerate(texts.to_dict("records")):
        number = next((number for number, cell in enumerate(cell_texts) if cell.items() <= text.items()), None)
        if number is None or number in found:
            put_aside(path)
            return {}
        found[number] = table.iloc[at].to_dict() | settings[number]
    return found


def put_aside(path: Path) -> None:
    """Give a table, and its page and figures, the first name with a number that is free."""

    def files(stem: str) -> list[Path]:
        return [path.with_name(f"{stem}{ending}") for ending in (".csv", ".md", ".html", "_figures")]

    stems = (f"{path.stem}_{number}" for number in itertools.count(1))
    aside = next(files(stem) for stem in stems if not any(file.exists() for file in files(stem)))
    for old, new in zip(files(path.stem), aside, strict=True):
        if old.exists():
            old.rename(new)
    print(f"{path} is of other cells; it is {aside[0]} now (--table gives each grid a name of its own)")


def row_of(
    config: Config, own: list[Step], floor: list[Step], watched: list[Step], outcomes: dict[Path, dict | Exception]
) -> dict:
    """A row of the CSV file: the settings, the numbers as far as there are any, and what went wrong."""
    # Where files are on this machine is no part of a result.
    row = settings_row(config)
    errors = []
    wrong_own = next((outcomes[step.record] for step in own if isinstance(outcomes[step.record], Exception)), None)
    if wrong_own:
        errors.append(said(wrong_own))
    else:
        records = [outcomes[step.record] for step in own]
        row["method"] = records[-1]["settings"]["method"]
        row["arithmetic"] = ARITHMETIC[records[-1]["settings"]["mixed_precision"]]  # --precision auto is another elsewhere.
        metrics = {"LFR": float("nan"), **records[-1]["metrics"]}
        row |= {name: metrics[name] for name in RATES if name in metrics}
        if pd.notna(metrics["LFR"]):
            row["FPR"] = false_positive_rate(metrics, config.target_class)
        poisoned = next((outcomes[step.record] for step in own if step.function == POISONING), None)
        if poisoned:
            row |= {f"poisoned_{name}": poisoned["metrics"].get(name, float("nan")) for name in ("ACC", "LFR")}
        pruned = [record["pruned_heads"] for record in records if "pruned_heads" in record]
        row["heads_pruned"] = sum(map(len, pruned[0].values())) if pruned else 0
        defended = [record for record in records if record is not poisoned]
        row["seconds"] = round(sum(sum(record["seconds"].values()) for record in defended), 1)
    if floor:
        wrong = next((outcomes[step.record] for step in floor if isinstance(outcomes[step.record], Exception)), None)
        if wrong:  # The cell's own numbers stay.
            errors.append(f"benign floor: {said(wrong)}")
        else:
            metrics = outcomes[floor[-1].record]["metrics"]
            row |= {f"floor_{name}": metrics[name] for name in RATES if name in metrics}
            if not wrong_own:
                row["flips"] = paired_flips(records[-1]["metrics"], metrics)
    for step in watched:
        outcome = outcomes[step.record]
        if isinstance(outcome, Exception):
            errors.append(f"detectors: {said(outcome)}")
        else:
            row |= detection_columns(outcome["rates"])
    return {**row, "error": "; ".join(errors)}


def detection_columns(rates: list[dict]) -> dict:
    """AUROC of each detector, FRR and FAR of each at each allowed share: "DAN_AUROC", "DAN_FRR_0.05", "DAN_FAR_0.05"."""
    found = {}
    for row in rates:
        name, share = row["detector"], row["allowed"]
        found |= {f"{name}_AUROC": row["AUROC"], f"{name}_FRR_{share:g}": row["FRR"], f"{name}_FAR_{share:g}": row["FAR"]}
    return found


def paired_flips(metrics: dict, floor: dict) -> str:
    """A letter of `FLIPS` for each triggered text of another class than the target: which of two models flips it.

    Empty if the two were not measured on such texts.
    """
    both = [each.get("poisoned", {}).get("flipped", []) for each in (metrics, floor)]
    if len(both[0]) != len(both[1]):
        return ""
    return "".join(FLIPS[of_cell, of_floor] for of_cell, of_floor in zip(*both, strict=True))


def write_rows(path: Path, rows: list[dict]) -> None:
    """The CSV file and the table."""
    table = pd.DataFrame(rows)
    write_whole(path, lambda temporary: table.to_csv(temporary, index=False))
    write_whole(path.with_suffix(".md"), lambda temporary: temporary.write_text(results_table(table) + "\n"))


def outcome_of(row: dict) -> str:
    if row["error"]:
        return f"failed: {row['error']}"
    return f"ACC {row['ACC']:.3f}" + ("" if pd.isna(row["LFR"]) else f", LFR {row['LFR']:.3f}")


def said(error: Exception) -> str:
    """An error as one line."""
    if isinstance(error, UserError):
        return " ".join(printable(str(error)).split())
    return f"{type(error).__name__}: {printable(first_line(error))}"


def cell_name(config: Config, grid: Grid) -> str:
    """What tells a cell from the others."""
    several = [name for name in SWEPT if name not in ("attack", "defence", "seed") and len(getattr(grid, name)) > 1]
    also = "".join(f", {name} {getattr(config, name)}" for name in several)
    return f"{config.attack}, {config.defence}, seed {config.seed}{also}"
