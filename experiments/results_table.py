"""The CSV file of a grid as one Markdown table: mean ± standard deviation over seeds.

    python -m experiments.results_table results/grid.csv
    python -m experiments.results_table results/grid.csv results/sweep.csv > docs/results.md

The label flip rate's distance to the benign floor is what a defence leaves of a backdoor. The best label flip rate of each
attack (and encoder, and data, where these vary) is in bold, among the cells that have learnt the task; where parameters
vary, a star marks the cells that no other of these beats in both ACC and LFR, and a dash what a defence takes no notice of.
Above each table stand the settings that its rows share, and the command that makes them. Where each triggered text is known
to be flipped or not, and with three seeds or more, the distance has its 95 % interval.
"""

import argparse
import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from config import PRESETS, SWEPT, Config, preset_config
from defences import DEFENCES
from defences.defence import takes_notice
from pipeline.runs import flag_words
from util import UserError, run_script

CELL = ["attack", "defence"]
MAY_VARY = [
    "plm",
    "poisoned_model",
    "trigger_dataset",
    "clean_dataset",
    "learning_rate",
    "penalty_coefficient",
    "pruning_criterion",
    "left_out",
    "mixing_share",
]

FLOORS = ["floor_LFR", "floor_LFR_worst", "floor_FTR"]
"""What is measured of a never-poisoned encoder after the cell's defence, beside its ACC."""
AVERAGED = ["ACC", "LFR", "LFR_worst", "FTR", "FPR", "poisoned_LFR", *FLOORS, "heads_pruned", "seconds"]
"""What the table has means of."""
NUMBERS = [*AVERAGED, "floor_ACC"]
"""What is measured in a cell."""
DESCRIBED = ["plm", "poisoned_model", "trigger_dataset", "clean_dataset", "learning_rate", "epochs", "penalty_coefficient"]
"""Settings that a reader of the table asks for first."""
FLIPS = {(0, 0): "n", (1, 0): "m", (0, 1): "f", (1, 1): "b"}
"""Letters of the column `flips`, one for each triggered text: flipped by neither model, by the cell's, by the never-poisoned
one after the same defence, by both."""
FEWEST_SEEDS = 3
"""That an interval is made from: one or two say next to nothing of how much seeds differ."""
SECONDS = (
    "Seconds are means over what each cell took on machines that had other things to do as well, some more and some less: "
    "they don't compare the cost of two defences."
)
UNUSED = "-"
"""Stands for a setting that a row's defence takes no notice of."""
TASK = ["attack", "plm", "poisoned_model", "trigger_dataset", "clean_dataset"]
"""Cells that share these can be held against each other."""
LEARNT_MARGIN = 0.1
"""A model this much below another's ACC on the same task has failed to learn: its LFR is neither a floor nor the best."""


def read_grid(path: Path) -> pd.DataFrame:
    """The rows of a grid, and `file`, where they come from.

    Raises:
        UserError: no such file, it is none that a grid wrote, it has no rows, or a cell twice.
    """
    example = "python run_all.py --seed 11 12"
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error}; expected the CSV file of a grid ({example})") from None
    missing = [name for name in (*CELL, "seed", "error", *DESCRIBED) if name not in table]
    if missing:
        raise UserError(f"{path} is no grid's CSV file: it has no column {missing[0]} ({example} makes one)")
    if table.empty:
        raise UserError(f"{path} has a header and no rows; expected a row per cell ({example} makes such a file)")
    for name in (*CELL, "seed"):
        if table[name].isna().any():
            row = int(table[name].isna().argmax())
            raise UserError(f"{path}: row {row} has no {name}; expected one in every row, as run_all.py writes it")
    for name in NUMBERS:
        if name in table and not pd.api.types.is_numeric_dtype(table[name]):
            wrong = table[name][pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()].iloc[0]
            raise UserError(
                f"{path}: column {name} holds {wrong!r}; expected numbers, as run_all.py writes them: {grid_command(path)}"
            )
    table = table.assign(file=str(path))
    refuse_twice(table)
    return table


def refuse_twice(table: pd.DataFrame) -> None:
    """Raise a UserError if a cell is there more than once: it would count as another seed."""
    table = without_unused(table)
    twice = table[table.duplicated([name for name in (*SWEPT, *MAY_VARY) if name in table])]
    if len(twice):
        cell = twice.iloc[0]
        raise UserError(
            f"the cell {cell['attack']}, {cell['defence']}, seed {cell['seed']} is there twice, in {cell['file']} for "
            "one; expected each cell once"
        )


def takes_notice_of(defence: str, name: str) -> bool:
    """Whether a cell's result depends on a setting; of a defence that isn't known all are shown."""
    return name not in SWEPT or defence not in DEFENCES or name in takes_notice(defence)


def without_unused(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `UNUSED` for the parameters that a row's defence takes no notice of: they were not used for it."""
    table = table.copy()
    for name in [name for name in MAY_VARY if name in table]:
        unused = np.array([not takes_notice_of(defence, name) for defence in table["defence"]], dtype=bool)
        if unused.any():
            table[name] = table[name].astype(object).mask(unused, UNUSED)
    return table


def varying(table: pd.DataFrame) -> list[str]:
    """What tells a grid's cells apart beside attack, defence and seed, `without_unused`."""
    names = [name for name in MAY_VARY if name in table]
    return [name for name in names if table[name][table[name] != UNUSED].nunique(dropna=False) > 1]


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each combination of attack, defence and whatever else varies: mean, std and number of seeds.

    Columns: those of the combination; for each of `AVERAGED`, and distance, `X` (mean) and `X_std` (of the sample; missing
    for one seed); distance_low and distance_high, its 95 % interval
    (`distance_interval`); n; failed; best; front. A floor that is none (`without_floor`) doesn't count.
    """
    table = without_unused(table)
    for name in AVERAGED:
        if name not in table:
            table[name] = float("nan")
    table.loc[without_floor(table), FLOORS] = float("nan")
    table["distance"] = table["LFR"] - table["floor_LFR"]
    flips = table["flips"].fillna("") if "flips" in table else ""
    table = table.assign(flips=flips).astype({"flips": object})
    table.loc[table["distance"].isna(), "flips"] = None
    keys = CELL + varying(table)
    groups = table.groupby(keys, sort=False, dropna=False)
    values = [*AVERAGED, "distance"]
    result = groups[values].mean().join(groups[values].std().add_suffix("_std"))
    result["n"] = groups["ACC"].count()
    intervals = groups["flips"].apply(lambda flips: distance_interval(list(flips.dropna())))
    result["distance_low"], result["distance_high"] = zip(*intervals, strict=True)
    result["failed"] = groups["ACC"].apply(lambda group: int(group.isna().sum()))
    result = result.reset_index()
    tasks = result.groupby([name for name in TASK if name in result], sort=False, dropna=False)
    number = tasks.ngroup()
    learnt = result["ACC"] >= tasks["ACC"].transform("max") - LEARNT_MARGIN
    rates = result["LFR"].where(learnt)
    result["best"] = rates == rates.groupby(number).transform("min")
    result["front"] = [not beaten(row, result[number == number[at]]) for at, row in result.iterrows()]
    return result


def distance_interval(flips: list[str]) -> tuple[float, float]:
    """95 % interval of LFR - benign floor, over seeds and over texts.

    The models of a cell and of its floor see the same texts, and so do the seeds, with other triggers. Half of the interval
    is the root of the sum of two squares: Student's t times the standard error over the seeds' means, and 1.96 times that
    over the texts' means. In a simulation of 200 texts, in 1,000 repeats, it covered the truth in 0.95 to 0.99 of them with
    3 seeds and in 0.96 to 0.98 with 5, at standard deviations between seeds of 0 to 0.15 (a bootstrap over seeds and texts,
    in 100 repeats: 0.79 to 0.98, and 0.86 to 0.99).

    Args:
        flips: for each seed a letter of `FLIPS` per text, in one order.

    Returns:
        Lower and upper end; nan for fewer than `FEWEST_SEEDS` seeds, and where a seed's texts are not known (""), or aren't
        as many as another's.
    """
    from scipy.special import stdtrit

    if len(flips) < FEWEST_SEEDS or not all(flips) or len(set(map(len, flips))) != 1:
        return float("nan"), float("nan")
    apart = np.array([[(letter == "m") - (letter == "f") for letter in each] for each in flips])  # [seed, text]
    errors = [means.std(ddof=1) / len(means) ** 0.5 for means in (apart.mean(1), apart.mean(0))]
    half = np.hypot(stdtrit(len(flips) - 1, 0.975) * errors[0], 1.96 * errors[1])
    return float(max(-1, apart.mean() - half)), float(min(1, apart.mean() + half))


def without_floor(table: pd.DataFrame) -> pd.Series:
    """Whether the never-poisoned model of each row failed to learn, so that its LFR is no floor."""
    if "floor_ACC" not in table:
        return pd.Series(False, index=table.index)
    return table["floor_ACC"] < table["ACC"] - LEARNT_MARGIN


def floor_notes(table: pd.DataFrame) -> list[str]:
    """A sentence for each row without a floor because its never-poisoned model failed to learn."""
    table = without_unused(table)
    varies = varying(table)
    return [
        f"No benign floor: {row['attack']}, {row['defence']}, "
        + "".join(f"{name} {row[name]}, " for name in varies if row[name] != UNUSED)
        + f"seed {row['seed']}: the never-poisoned encoder came out at an ACC of {row['floor_ACC']:.3f}, "
        f"where the poisoned one has {row['ACC']:.3f}."
        for _, row in table[without_floor(table)].iterrows()
    ]


def beaten(row: pd.Series, others: pd.DataFrame) -> bool:
    """Whether another cell is as good in both ACC and LFR and better in one; a cell without numbers is."""
    as_good = (others["ACC"] >= row["ACC"]) & (others["LFR"] <= row["LFR"])
    better = (others["ACC"] > row["ACC"]) | (others["LFR"] < row["LFR"])
    return bool(pd.isna(row["LFR"]) or (as_good & better).any())


def with_spread(row: pd.Series, name: str) -> str:
    """Mean ± standard deviation, the mean alone for one seed, a dash for none."""
    if pd.isna(row[name]):
        return "-"
    mean, spread = round(row[name], 3) + 0, row[f"{name}_std"]  # Adding 0 takes the sign from -0.
    return f"{mean:.3f}" if pd.isna(spread) else f"{mean:.3f} ± {spread:.3f}"


def interval(low: float, high: float) -> str:
    return "-" if pd.isna(low) else f"{round(low, 3) + 0:.3f} to {round(high, 3) + 0:.3f}"


def shown_cells(result: pd.DataFrame) -> pd.DataFrame:
    """What `aggregate` returns as text, a column per column of the table; the best LFR is in **asterisks**."""
    varies = [name for name in MAY_VARY if name in result]
    titles = {
        "poisoned_LFR": "poisoned LFR",
        "ACC": "ACC",
        "LFR": "LFR",
        "floor_LFR": "benign floor",
        "distance": "LFR - floor",
    }
    shown = pd.DataFrame({name: result[name].astype(str) for name in CELL + varies})
    for name, title in titles.items():
        if name in ("ACC", "LFR") or result[name].notna().any():
            shown[title] = [with_spread(row, name) for _, row in result.iterrows()]
    if result["distance_low"].notna().any():
        shown["95 % interval"] = [interval(row["distance_low"], row["distance_high"]) for _, row in result.iterrows()]
    if result["FPR"].notna().any():
        shown["FPR"] = [with_spread(row, "FPR") for _, row in result.iterrows()]
    for name, title in {"LFR_worst": "LFR worst", "FTR": "FTR"}.items():
        for column, of in ((name, title), (f"floor_{name}", f"floor of {title}")):
            if result[column].notna().any():
                shown[of] = [with_spread(row, column) for _, row in result.iterrows()]
    shown["LFR"] = [f"**{text}**" if best else text for text, best in zip(shown["LFR"], result["best"], strict=True)]
    if varies:
        shown["LFR"] = [f"{text} *" if front else text for text, front in zip(shown["LFR"], result["front"], strict=True)]
    shown["heads pruned"] = [f"{value:.1f}" if pd.notna(value) else "-" for value in result["heads_pruned"]]
    shown["seconds"] = [f"{value:.0f}" if pd.notna(value) else "-" for value in result["seconds"]]
    shown["seeds"] = result["n"].astype(str) + result["failed"].map(lambda failed: f" ({failed} failed)" if failed else "")
    return shown


def on_one_line(text: object) -> str:
    """A text of somebody else's as one line that does nothing to a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in " ".join(str(text).split()))


def as_markdown(text: object) -> str:
    """The same in a Markdown file, where it is shown as it is: no table cell ends in it, no tag and no link begins."""
    return re.sub(r"([\\`*\[<|&$~])", r"\\\1", on_one_line(text))


def results_table(table: pd.DataFrame) -> str:
    """A grid's rows as a Markdown table; below it what failed, cells and floors."""
    shown = shown_cells(aggregate(table))
    names = [name for name in (*CELL, *MAY_VARY) if name in shown]
    shown[names] = shown[names].map(as_markdown)
    lines = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text += "".join(f"\n\n{as_markdown(note)}" for note in floor_notes(table))
    errors = table[table["error"].notna() & (table["error"] != "")]
    for _, row in errors.iterrows():
        failed = f"Failed: {row['attack']}, {row['defence']}, seed {row['seed']}: {row['error']}"
        text += f"\n\n{as_markdown(failed)}"
    return text


def settings_text(value: object) -> object:
    """A setting as it stands in the CSV file; of several words those with blanks or the like are in quotes."""
    return shlex.join(map(str, value)) if isinstance(value, tuple) else value


def settings_of(path: Path) -> pd.DataFrame:
    """The settings of a grid's cells as text, None as an empty string."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def grid_command(path: Path) -> str:
    """The command that made a grid's CSV file, by the settings in it."""
    table = settings_of(path)
    preset = table["preset"].iloc[0] if "preset" in table and table["preset"].iloc[0] in PRESETS else None
    if preset is None:
        return "not known: the file doesn't name a preset"
    words = ["python", "run_all.py", "--preset", preset]
    for field in dataclasses.fields(Config):
        if field.name not in table or field.name == "preset":
            continue
        # FTH's learning rate is one of its own, and a defence that takes no notice of a field has one value of it.
        values = list(dict.fromkeys(table[field.name]))
        default = settings_text(getattr(preset_config(preset), field.name))
        expected = ["FT", "PURE"] if field.name == "defence" else ["" if default is None else str(default)]
        if values != expected:
            words += flag_words(field.name, [part for value in values for part in split_value(field.name, value)])
    if "floor_LFR" in table and (table["floor_LFR"] != "").any():
        words.append("--benign_floor")
    if any(name.endswith("_AUROC") for name in table):
        words.append("--detection")
    if path.stem != "grid" or len(table) <= 2:  # Without a name one defence is a single run.
        words += ["--table", path.stem]
    return shlex.join(words)


def split_value(name: str, value: str) -> list[str]:
    """A setting as words of a command line."""
    if name != "triggers":
        return [value or "None"]
    try:
        return shlex.split(value)
    except ValueError:  # Files of earlier versions have no quotes: an apostrophe is one.
        return value.split()


def heading(table: pd.DataFrame, path: Path) -> str:
    """What stands above a table: its file, the settings that all rows share, the command, and what that makes otherwise."""
    first, defences, shared = table.iloc[0], list(dict.fromkeys(table["defence"])), []
    for name in DESCRIBED:
        using = [defence for defence in defences if takes_notice_of(defence, name)]
        if using and pd.notna(first[name]) and table[name].nunique() == 1:
            shared.append(f"{name} {first[name]}" + (f" ({', '.join(using)})" if len(using) < len(defences) else ""))
    if "arithmetic" in table and table["arithmetic"].notna().any():
        shared.append(f"arithmetic {' and '.join(sorted(table['arithmetic'].dropna().unique()))}")
    text = f"## {as_markdown(path.name)}\n\n{as_markdown(', '.join(shared))}\n\n    {on_one_line(grid_command(path))}\n\n"
    return text + "".join(f"{as_markdown(note)}\n\n" for note in repeat_notes(table))


def repeat_notes(table: pd.DataFrame) -> list[str]:
    """A sentence for each defence that the command runs otherwise today than when the rows were made."""
    notes = []
    for defence, rows in table.groupby("defence", sort=False):
        row = DEFENCES.get(defence)
        if row is None:
            continue
        for name in sorted(name for name in row.reads() if name not in table):
            notes.append(
                f"{defence}: made before {name} existed; not repeatable as it is, unless the default, "
                f"{getattr(Config(), name)}, changes nothing."
            )
        methods = sorted({int(number) for number in rows["method"].dropna()}) if "method" in table else []
        if methods and methods != [row.last.method]:
            notes.append(f"Made with method {', '.join(map(str, methods))} of {defence}, today's is {row.last.method}.")
    return notes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", nargs="*", type=Path, default=[Path("results/grid.csv")], help="CSV files of grids")
    paths = parser.parse_args().csv
    tables = [read_grid(path) for path in paths]
    print(f"{SECONDS}\n")
    print("\n\n".join(heading(table, path) + results_table(table) for table, path in zip(tables, paths, strict=True)))


if __name__ == "__main__":
    run_script(main)
