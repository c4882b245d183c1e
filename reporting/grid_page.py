"""What the report of a grid holds: the figures and tables of one CSV file of `run_all.py`, or of several put together."""

import dataclasses
import shlex
from pathlib import Path

import pandas as pd

from config import NOT_SETTINGS, SWEPT, Config
from experiments.results_table import (
    AVERAGED,
    CELL,
    MAY_VARY,
    UNUSED,
    aggregate,
    floor_notes,
    grid_command,
    read_grid,
    refuse_twice,
    settings_of,
    shown_cells,
    takes_notice_of,
    without_unused,
)
from reporting.grid_figures import distance_figure, field_figure, grid_figure, pareto_figure
from reporting.page import Figures, keep_figures, write_page
from reporting.words import (
    MEASURES,
    also_measured,
    distance_caption,
    field_caption,
    grid_caption,
    grid_verdict,
    pareto_caption,
)
from util import UserError

MOST_SIDE_BY_SIDE = 6
"""Defences whose points can be told apart beside each other; more are a heat map."""


def report_grid(paths: list[Path]) -> Path:
    """Write the figure and the page of a grid, beside its CSV file (the first, if several are put together).

    Returns:
        The page.

    Raises:
        UserError: a file is no grid's, or they can't be put together.
    """
    combined = combine(paths)
    rows, cells = without_unused(combined), aggregate(combined)
    varies = [name for name in MAY_VARY if name in cells]
    for table in (cells, rows):
        also = [
            [f"{name} {value}" for name, value in zip(varies, row, strict=True) if value != UNUSED]
            for row in table[varies].to_numpy()
        ]
        table["name"] = [", ".join([defence, *more]) for defence, more in zip(table["defence"], also, strict=True)]
    names = list(dict.fromkeys(cells["name"]))
    folder = paths[0].with_name(f"{paths[0].stem}_figures")
    figures: Figures = {}
    if cells["n"].any():
        caption = grid_caption(bool(cells["floor_LFR"].notna().any()))
        figures["grid"] = (grid_figure(cells, rows, names), "Label flip rate and accuracy of every cell", caption)
    if cells["distance"].notna().any() and len(names) > MOST_SIDE_BY_SIDE:
        figures["field"] = (field_figure(cells, names), "Distance to the benign floor", field_caption())
    elif cells["distance"].notna().any():
        known = bool(cells["distance_low"].notna().any())
        figures["distance"] = (distance_figure(cells, names), "Distance to the benign floor", distance_caption(known))
    swept = [name for name in varies if name in SWEPT]
    if swept and cells["n"].any():
        cells["varied"] = [what_varied(cell, swept) for _, cell in cells.iterrows()]
        figures["pareto"] = (pareto_figure(cells), "Accuracy against label flip rate", pareto_caption(swept))
    shown = shown_cells(cells)
    shown["LFR"] = shown["LFR"].str.replace("*", "").str.strip()  # Marks of the Markdown table.
    table = {
        "title": "Numbers",
        "id": "numbers",
        "columns": list(shown.columns),
        "rows": shown.astype(str).to_numpy().tolist(),
        "words": CELL + varies,
        "note": "Mean ± standard deviation over seeds. Benign floor: LFR of a never-poisoned encoder after the same defence "
        "on the same triggered texts.",
    }
    page = {
        "title": f"{', '.join(dict.fromkeys(cells['defence']))} against {', '.join(dict.fromkeys(cells['attack']))}",
        "about": f"{len(rows)} cells: {', '.join(str(path) for path in paths)}.",
        "verdict": grid_verdict(cells, int((rows["error"].notna()).sum()), len(rows)),
        "notes": [MEASURES, *also_measured(rows.columns[rows.notna().any()]), *floor_notes(rows)],
        "tables": [table, seeds_table(rows, varies)],
        "figures": keep_figures(folder, figures),
        "figures_folder": folder,
        "numbering": "",
        "commands": [(f"{path}:", grid_command(path)) for path in paths]
        + [("This page:", shlex.join(["python", "report.py", "--csv", *map(str, paths)]))],
        "settings": [("Settings", grid_settings(paths[0], combined))],
    }
    return write_page(paths[0].with_suffix(".html"), page)


def what_varied(cell: pd.Series, swept: list[str]) -> str:
    """The values of a cell in those parameters that vary and that its defence takes notice of."""
    values = [cell[name] for name in swept if takes_notice_of(cell["defence"], name)]
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def combine(paths: list[Path]) -> pd.DataFrame:
    """The rows of one grid or several.

    Raises:
        UserError: a file is no grid's, a cell is there twice, or the files differ in a setting that the table doesn't name.
    """
    rows = pd.concat([read_grid(path) for path in paths], ignore_index=True)
    for name in [name for name in SWEPT if name in rows]:
        rows[name] = rows[name].fillna(getattr(Config(), name))  # A file may be of before a parameter was there.
    for name in AVERAGED:
        if name not in rows:
            rows[name] = float("nan")
    settings = [field.name for field in dataclasses.fields(Config) if field.name in rows]
    told_apart = {*SWEPT, *MAY_VARY, *NOT_SETTINGS}
    for name in settings:
        if name not in told_apart and rows[name].nunique(dropna=False) > 1:
            values = ", ".join(map(str, rows[name].unique()))
            raise UserError(
                f"the cells differ in {name} ({values}), so that means over them say nothing; give each its own page with "
                "--csv"
            )
    refuse_twice(rows)
    return rows


def seeds_table(rows: pd.DataFrame, varies: list[str]) -> dict:
    """Every cell of the grid, and what went wrong in it."""
    measured = [name for name in AVERAGED if name in ("ACC", "LFR") or rows[name].notna().any()]
    columns = [*CELL, *varies, "seed", *measured]
    shown = rows[columns].copy()
    for name in columns:
        form = {"heads_pruned": "{:.0f}", "seconds": "{:.0f}"}.get(name, "{:.3f}")
        if name in measured:
            shown[name] = ["-" if pd.isna(value) else form.format(value) for value in rows[name]]
    failed = rows["error"].notna()
    if failed.any():
        shown["error"] = rows["error"].astype(object).fillna("")
    return {
        "title": "Every cell",
        "id": "cells",
        "columns": [name.replace("_", " ") for name in shown.columns],
        "rows": shown.astype(str).to_numpy().tolist(),
        "words": [*CELL, *(name.replace("_", " ") for name in varies), "error"],
        "note": "Seconds: what the defender's stages took, those that another cell had computed already included.",
    }


def grid_settings(path: Path, rows: pd.DataFrame) -> list[tuple[str, object]]:
    """Every setting that the results depend on; all its values where it has several."""
    names = [field.name for field in dataclasses.fields(Config) if field.name in rows]
    names = [name for name in names if name not in NOT_SETTINGS or name == "defence"]
    texts = settings_of(path)

    def given(name: str) -> str:
        return texts[name].iloc[0] if name in texts else ""  # Another file may have settings that this one knows nothing of.

    several = {name: ", ".join(dict.fromkeys(map(str, rows[name]))) for name in names if rows[name].nunique() > 1}
    return [(name, several.get(name) or given(name) or "not set") for name in names]
