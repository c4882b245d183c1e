"""How all figures look, and how they are written; `run_figures` and `grid_figures` draw them.

A paper's column is 3.3 inches wide, its page 6.75; the smallest letters are 7 points. Colours are told apart by the
colour-blind.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from util import write_whole

COLUMN, PAGE = 3.3, 6.75
"""Widths in inches."""
LONGEST = 24
"""Characters of a token that are shown at most."""
COLOURS = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"]
"""Seaborn's palette `colorblind`."""
MARKERS = "osD^vPX*<>"
STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "savefig.dpi": 180,
    "pdf.fonttype": 42,  # Letters stay letters, which publishers ask for.
    # Tokens and names are shown as they are: "$$" is a word of many vocabularies, and no formula.
    "text.parse_math": False,
    "text.usetex": False,
}


def in_style(draw):
    """Draw with the style above, and leave matplotlib's settings alone."""

    def drawn(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def look(number: int) -> tuple[str, str]:
    """Colour and marker: one marker for each turn of the colours, so that no two names look alike."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number // len(COLOURS) + number) % len(MARKERS)]


def save_figures(folder: Path, figures: dict[str, Figure]) -> None:
    """Write each figure as NAME.png and NAME.pdf, each file whole or not at all."""
    with matplotlib.rc_context(STYLE):  # Tick labels are made as late as this.
        for name, figure in figures.items():
            for kind in ("png", "pdf"):
                # Without a date the same numbers give the same file.
                also = {"metadata": {"CreationDate": None}}
                if kind == "png":
                    also = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
                write_whole(
                    folder / f"{name}.{kind}",
                    lambda path, kind=kind, figure=figure, also=also: figure.savefig(path, format=kind, **also),
                )
