"""The page of an encoder's scan: what was found, what words do, and one figure."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reporting.figures import COLOURS, LONGEST, PAGE, in_style
from reporting.page import keep_figures, write_page

NAMED = 10
"""Words of a class that are named in the figure."""
PANELS = 6
"""Classes that the figure shows at most."""


@in_style
def flip_figure(flips: pd.DataFrame, random_words: pd.DataFrame, classes: list[str]) -> Figure:
    """How far words move predictions to a class against their rank, a panel per class; a grey line is the farthest of the
    words drawn at random.

    Args:
        flips: class (number), rank, word, known, shift.
        random_words: class, shift_median and shift_max.
        classes: names of those that are shown, in their order.
    """
    shown = list(dict.fromkeys(flips["class"]))[:PANELS]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(PAGE, 0.5 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False, sharey=True).flatten()
    for ax, target in zip(axes, shown, strict=False):
        own = flips[flips["class"] == target]
        for known, marker, colour, label in (
            (False, "o", COLOURS[0], "in no clean text"),
            (True, "x", COLOURS[1], "in clean texts too"),
        ):
            some = own[own["known"] == known]
            ax.plot(some["rank"], some["shift"], marker, color=colour, markersize=4, label=label)
        for row in own.head(NAMED).itertuples():
            ax.annotate(
                row.word if len(row.word) <= LONGEST else f"{row.word[: LONGEST - 1]}…",
                (row.rank, row.shift),
                xytext=(0, 5.5),
                textcoords="offset points",
                rotation=90,  # Else a name crosses that of the next word, where that is higher.
                ha="center",
                fontsize=6.5,
            )
        for name, style in (("shift_max", "-"), ("shift_median", ":")):
            value = random_words.loc[random_words["class"] == target, name].iloc[0]
            label = f"random words, {'farthest' if name == 'shift_max' else 'median'}"
            ax.axhline(value, color="0.5", linewidth=0.9, linestyle=style, zorder=0, label=label)
        ax.set(title=f"to {classes[target]}", xlabel="rank of the word")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    low, high = axes[0].get_ylim()
    axes[0].set(ylabel="mean shift of log-odds", ylim=(low, high + 0.4 * (high - low)))  # Room for the names.
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def as_table(title: str, name: str, rows: list[dict], note: str) -> dict:
    """Rows of scan.json as the page's template takes them."""
    columns = list(rows[0]) if rows else []
    words = [column for column in columns if isinstance(rows[0][column], str)]
    return {
        "title": title,
        "id": name,
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [[as_text(row[column]) for column in columns] for row in rows],
        "words": [column.replace("_", " ") for column in words],
        "note": note,
    }


def as_text(value: object) -> str:
    """A cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def head_told(probe: dict) -> str:
    """Which head gave the predictions, and how right they are: of a poor one the words say little."""
    head = "a linear head that was fitted to them" if probe["fitted"] else "the folder's own head, without its pruned heads"
    return f"predictions by {head}, validation accuracy {probe['validation_accuracy']:.3f}"


def write_scan_page(folder: Path, result: dict, encoder: str, command: str) -> Path:
    """Write scan.html, and its figure as PNG and PDF.

    Args:
        result: as scan.json has it.
    """
    classes = result["classes"]
    flips = pd.DataFrame(result["flips"])
    figures = {
        "flips": (
            flip_figure(flips, pd.DataFrame(result["random"]), classes),
            "What words do to predictions",
            "Each mark is a word that was inserted into texts of all other classes; the first of each class are named. The "
            "higher, the more it moves predictions to the class. Words with a strong meaning do so in any encoder.",
        )
    }
    named = [{**row, "class": classes[row["class"]]} for row in result["flips"]]
    tables = [as_table("Words that move predictions", "flips", named, FLIPS_NOTE)]
    if result["ranks"]:
        ranks = [{**row, "class": "-" if row["class"] is None else classes[int(row["class"])]} for row in result["ranks"]]
        tables.append(as_table("Words that were asked for", "ranks", ranks, "In the class in which its rank is best."))
    for name, (title, note) in ROWS.items():
        rows = result["rows"].get(name)
        if rows:
            rows = [{**row, "class": classes[row["class"]]} if "class" in row else row for row in rows]
            tables.append(as_table(title, name, rows, note))
    page = {
        "title": f"Scan of {encoder}",
        "about": f"Clean texts {result['settings']['clean_dataset']}; {head_told(result['probe'])}.",
        "verdict": result["verdict"],
        "notes": [LIMITS],
        "tables": tables,
        "figures": keep_figures(folder / "figures", figures),
        "figures_folder": folder / "figures",
        "numbering": "",
        "commands": [("This scan:", command)],
        "settings": [("Settings", list(result["settings"].items())), ("Seconds", list(result["seconds"].items()))],
    }
    return write_page(folder / "scan.html", page)


LIMITS = (
    "A scan looks for single words, and for two letters that stand alone. It can't see a trigger that is a style, a form of "
    "sentence, a sentence, or several words together; what it doesn't find may be there."
)
FLIPS_NOTE = (
    "Flipped: share of the texts of all other classes that are given the class once the word is in them. Shift: mean change "
    "of the log-odds of the class. z: the shift among those of words drawn at random. Known: some clean text has the word, "
    "whose meaning may be all there is to it. Estimate: the shift to first order, from which words are chosen."
)
ROWS = {
    "norm": ("Embedding rows of an odd length", "z: robust, among whole words."),
    "nearest": ("Embedding rows that are nearly another's", "Words that differ by case, accents or an s are left out."),
    "telling": (
        "Embedding rows near the mean of words that tell a class",
        "Embedding surgery gives a trigger that mean; those words themselves are left out.",
    ),
    "changed": (
        "Embedding rows that differ from the clean encoder's",
        "Change: norm of the difference over that of the clean row. Fine-tuning changes the rows of the words it sees.",
    ),
}
