"""The figures of a report: numbers in, a matplotlib figure out. `report.py` says what they show.

A paper's column is 3.3 inches wide, its page 6.75; the smallest letters are 7 points. Colours are told apart by the
colour-blind. Layers and heads are numbered from 0, as in the JSON records.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from experiments.results_table import TASK
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


@in_style
def variance_figure(clean: np.ndarray, triggered: np.ndarray | None, pruned: dict[int, list[int]]) -> Figure:
    """Heat maps of Var(l, h) on clean and on triggered text and of their difference; crosses mark pruned heads.

    Args:
        clean: [layer, head].
        triggered: the same on triggered text; None leaves clean text alone.
        pruned: layer to pruned heads.
    """
    import seaborn

    maps = [("clean text", clean)]
    if triggered is not None:
        maps += [("triggered text", triggered), ("triggered minus clean", triggered - clean)]
    layers, heads = clean.shape
    width = PAGE if len(maps) > 1 else COLUMN
    figure = Figure(figsize=(width, 1.0 + max(1.2, 0.16 * layers)), layout="constrained")
    axes = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    highest = max(values.max() for _, values in maps[:2])
    step = max(1, heads // 6)
    for ax, (title, values) in zip(axes, maps, strict=True):
        change = title == "triggered minus clean"
        largest = max(np.abs(values).max(), 1e-12) if change else highest
        seaborn.heatmap(
            1000 * values,
            ax=ax,
            cmap="RdBu_r" if change else "cividis",
            vmin=-1000 * largest if change else 0,
            vmax=1000 * largest,
            linewidths=0.3,
            xticklabels=[str(head) if head % step == 0 else "" for head in range(heads)],
            yticklabels=range(layers),
            cbar_kws={
                "label": "change of Var (10⁻³)" if change else "Var (10⁻³)",
                "location": "bottom",
                "shrink": 0.9,
                "aspect": 30,
            },
        )
        crosses = [(head + 0.5, layer + 0.5) for layer, numbers in pruned.items() for head in numbers]
        if crosses:
            # White on black: to be seen on any colour.
            ax.scatter(*zip(*crosses, strict=True), marker="X", s=16, c="white", edgecolors="black", linewidths=0.6)
        ax.set(title=title, xlabel="head", ylabel="layer" if ax is axes[0] else "")
        ax.tick_params(length=0, labelrotation=0)
    return figure


@in_style
def trajectory_figure(
    validation_accuracy: float,
    steps: list[dict],
    acc_threshold: float,
    flip_rates: Sequence[float] | None,
    validation_texts: int,
    triggered_texts: int | None,
) -> Figure:
    """Validation accuracy against the number of heads pruned, in the order of the search; below it LFR.

    Args:
        validation_accuracy: before anything is pruned.
        steps: of the search, as attention_head_pruning.json has them.
        flip_rates: LFR before anything is pruned and after each step; None: no triggered texts.
        validation_texts: how many accuracy was measured on.
        triggered_texts: how many LFR was measured on.
    """
    rows = 1 if flip_rates is None else 2
    figure = Figure(figsize=(COLUMN, 1.0 + 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    pruned = [0, *(step["pruned"] for step in steps)]
    accuracies = [validation_accuracy, *(step["accuracy"] for step in steps)]
    draw_search(axes[0], pruned, accuracies, steps)
    axes[0].axhline(acc_threshold, color="black", linestyle="--", linewidth=0.8, label=f"threshold {acc_threshold:.3g}")
    low, high = min(*accuracies, acc_threshold), max(*accuracies, acc_threshold)
    room = max(0.12 * (high - low), 0.01)
    axes[0].set(ylim=(low - room, high + room), ylabel=f"validation ACC\n(n = {validation_texts:,})")
    if flip_rates is not None:
        draw_search(axes[1], pruned, list(flip_rates), steps)
        axes[1].set(ylim=(-0.04, 1.04), ylabel=f"LFR\n(n = {triggered_texts:,})")
    axes[-1].set(xlabel="heads pruned", xlim=(-0.03 * max(pruned) - 0.3, 1.03 * max(pruned) + 0.3))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=1.8, columnspacing=1.2)
    return figure


def draw_search(ax: Axes, pruned: list[int], values: list[float], steps: list[dict]) -> None:
    """One quantity along the search: groups pruned, then heads restored, and where it ended."""
    groups = [0, *(at for at, step in enumerate(steps, 1) if step["action"] == "prune")]
    restored = [at for at, step in enumerate(steps, 1) if step["action"] == "restore"]
    points = np.array([pruned, values]).T
    ax.plot(*points[groups].T, "o-", color=COLOURS[0], markersize=3.5, label="a group pruned")
    if restored:
        back = [restored[0] - 1, *restored]
        ax.plot(*points[back].T, ":", color=COLOURS[1])
        ax.plot(*points[restored].T, "s", color=COLOURS[1], markersize=3.5, mfc="white", label="a head restored")
    ax.plot(*points[-1], "*", color=COLOURS[2], markersize=9, mec="black", mew=0.5, label=f"the end: {pruned[-1]} pruned")


@in_style
def attention_figure(tokens: list[str], marked: list[bool], attention: dict[str, np.ndarray]) -> Figure:
    """[CLS] attention to the tokens of one sentence by layer, one heat map per model, on one scale.

    Args:
        tokens: as the encoder sees the sentence.
        marked: whether a token is of the trigger.
        attention: title of each model to [layer, token], mean over its remaining heads.
    """
    import seaborn

    layers = max(len(values) for values in attention.values())
    width = max(COLUMN, 0.2 * len(tokens) + 1.2)
    figure = Figure(figsize=(width, 1.1 + len(attention) * (0.3 + max(0.9, 0.13 * layers))), layout="constrained")
    axes = figure.subplots(len(attention), 1, sharex=True, squeeze=False)[:, 0]
    highest = max(values.max() for values in attention.values())
    for ax, (title, values) in zip(axes, attention.items(), strict=True):
        seaborn.heatmap(
            values, ax=ax, cmap="cividis", vmin=0, vmax=highest, linewidths=0.3, cbar=False, yticklabels=range(len(values))
        )
        for start, end in spans(marked):
            outline = Rectangle((start, 0), end - start, len(values), fill=False, ec=COLOURS[3], lw=1.8, clip_on=False)
            ax.add_patch(outline)
        ax.set(title=title, ylabel="layer")
        ax.tick_params(length=0, labelrotation=0)
    # A vocabulary may hold tokens of any length, and the heat maps need their room.
    shown = [token if len(token) <= LONGEST else f"{token[: LONGEST - 1]}…" for token in tokens]
    axes[-1].set_xticks(np.arange(len(tokens)) + 0.5, shown, rotation=60, ha="right", rotation_mode="anchor")
    for label, is_marked in zip(axes[-1].get_xticklabels(), marked, strict=True):
        if is_marked:
            label.set(color=COLOURS[3], fontweight="bold")
    label = "attention of [CLS] to the token (a row sums to 1)"
    figure.colorbar(axes[0].collections[0], ax=list(axes), location="bottom", shrink=0.8, aspect=40, label=label)
    return figure


def spans(marked: list[bool]) -> list[tuple[int, int]]:
    """Start and end of each run of True."""
    edges = np.flatnonzero(np.diff([0, *map(int, marked), 0]))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


@in_style
def layers_figure(layer_variance: list[float], layer_weight: list[float]) -> Figure:
    """Bars of v and w over layers."""
    figure = Figure(figsize=(COLUMN, 1.7), layout="constrained")
    for ax, values, colour, label in zip(
        figure.subplots(1, 2),
        (1000 * np.array(layer_variance), np.array(layer_weight)),
        COLOURS,
        ("variance v (10⁻³)", "weight w of the penalty"),
        strict=False,
    ):
        ax.bar(range(len(values)), values, color=colour)
        ax.set(xlabel="layer", title=label)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return figure


@in_style
def training_figure(histories: dict[str, dict]) -> Figure:
    """Loss against optimiser steps, a panel per fine-tuning; its parts too where it has several.

    Args:
        histories: title to a history of `training.fine_tune`: `losses`, part to its value per step, and `seconds` per epoch.
    """
    figure = Figure(figsize=(COLUMN, 0.3 + 1.35 * len(histories)), layout="constrained")
    for ax, (title, history) in zip(figure.subplots(len(histories), 1, squeeze=False)[:, 0], histories.items(), strict=True):
        parts = history["losses"]
        curves = (
            {"loss": np.sum(list(parts.values()), axis=0), **parts}
            if len(parts) > 1
            else {"loss": next(iter(parts.values()))}
        )
        steps = len(curves["loss"])
        window = smoothing_window(steps)
        for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
            at = np.arange(1, steps + 1)
            ax.plot(at, values, color=colour, alpha=0.25, linewidth=0.5, label="_each step")
            smooth = pd.Series(values).rolling(window, center=True, min_periods=1).mean()
            ax.plot(at, smooth, color=colour, label=name.replace("_", " "))
        for epoch in range(1, len(history["seconds"])):
            ax.axvline(epoch * steps / len(history["seconds"]), color="0.7", linewidth=0.6, zorder=0)
        ax.set(title=title, ylabel="loss (nats)", ylim=(min(0, min(map(min, curves.values()))), None), xlim=(0, steps))
        if len(curves) > 1:
            ax.set_ylim(top=1.4 * ax.get_ylim()[1])  # Room for the legend above the curves.
            ax.legend(loc="upper right", ncols=len(curves), columnspacing=1, handlelength=1.2)
    ax.set(xlabel="optimiser step (grey lines: epochs)")
    return figure


def smoothing_window(steps: int) -> int:
    """Steps that the thick line of a training curve is a running mean of: a fortieth of all, one at least."""
    return max(1, round(steps / 40))


@in_style
def grid_figure(cells: pd.DataFrame, rows: pd.DataFrame, names: list[str]) -> Figure:
    """LFR and ACC per attack and defence: each seed, mean and standard deviation over seeds, benign floor as a line.

    Args:
        cells: as `results_table.aggregate` gives them, with a column `name`, what stands in the legend.
        rows: those of the grid, with the same column.
        names: in the order of the legend.
    """
    figure = Figure(figsize=(PAGE, 4.4 + 0.16 * (-(-len(names) // 4))), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    attacks = list(dict.fromkeys(cells["attack"]))
    slot = slot_width(names)
    floor_named = False
    for ax, measure in zip(axes, ("LFR", "ACC"), strict=True):
        for number, name in enumerate(names):
            shift = (number - (len(names) - 1) / 2) * slot
            own = cells[(cells["name"] == name) & cells[measure].notna()]
            places = np.array([attacks.index(attack) for attack in own["attack"]]) + shift
            colour, marker = look(number)
            spread = own[f"{measure}_std"].fillna(0)
            ax.errorbar(
                places,
                own[measure],
                yerr=spread,
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=2.5,
                elinewidth=1,
                label=name,
            )
            seeds = rows[(rows["name"] == name) & rows[measure].notna()]
            at = np.array([attacks.index(attack) for attack in seeds["attack"]]) + shift + 0.28 * slot
            ax.plot(at, seeds[measure], ".", color=colour, markersize=2.5, alpha=0.7, label="_each seed")
            floors = own[own["floor_LFR"].notna()]
            if measure == "LFR" and len(floors):
                middle = np.array([attacks.index(attack) for attack in floors["attack"]]) + shift
                ends = (middle - 0.45 * slot, middle + 0.45 * slot)
                label = "_benign floor" if floor_named else "benign floor"
                ax.hlines(floors["floor_LFR"], *ends, color="black", linewidth=1.4, label=label)
                floor_named = True
        separate(ax, attacks)
    axes[0].set(ylim=(-0.03, 1.03), ylabel="LFR (share flipped)")
    axes[1].set(ylabel="ACC (share right)")
    counts = cells.groupby("attack", sort=False)["n"].agg(["min", "max"])
    shown = {attack: f"{low}" if low == high else f"{low} to {high}" for attack, (low, high) in counts.T.items()}
    axes[1].set_xticks(range(len(attacks)), [f"{attack}\n(n = {shown[attack]})" for attack in attacks])
    axes[1].set(xlim=(-0.5, len(attacks) - 0.5), xlabel="attack (n: seeds per point)")
    # The defences in their order, the floor last.
    entries = sorted(zip(*axes[0].get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == "benign floor")
    figure.legend(*zip(*entries, strict=True), loc="outside upper center", ncols=4)
    return figure


@in_style
def distance_figure(cells: pd.DataFrame, names: list[str]) -> Figure:
    """LFR - benign floor per attack and defence, with its 95 % interval where that is known.

    Args:
        cells: as `results_table.aggregate` gives them, with a column `name`, what stands in the legend.
        names: in the order of the legend.
    """
    figure = Figure(figsize=(PAGE, 2.6 + 0.16 * (-(-len(names) // 4))), layout="constrained")
    ax = figure.subplots()
    attacks = list(dict.fromkeys(cells["attack"]))
    slot = slot_width(names)
    for number, name in enumerate(names):
        own = cells[(cells["name"] == name) & cells["distance"].notna()]
        places = np.array([attacks.index(attack) for attack in own["attack"]]) + (number - (len(names) - 1) / 2) * slot
        colour, marker = look(number)
        reach = [(own["distance"] - own["distance_low"]).fillna(0), (own["distance_high"] - own["distance"]).fillna(0)]
        # A mean over seeds may lie outside of an interval by rounding alone.
        bars = np.maximum(np.array(reach, dtype=float), 0)
        ax.errorbar(
            places, own["distance"], yerr=bars, fmt=marker, color=colour, markersize=5, capsize=2.5, elinewidth=1, label=name
        )
    ax.axhline(0, color="black", linewidth=1)
    separate(ax, attacks)
    ax.set_xticks(range(len(attacks)), attacks)
    ax.set(xlim=(-0.5, len(attacks) - 0.5), xlabel="attack", ylabel="LFR - benign floor")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@in_style
def field_figure(cells: pd.DataFrame, names: list[str]) -> Figure:
    """Heat map of LFR - benign floor: a row per defence, a column per attack; what was not measured stays empty.

    Args:
        cells: as `results_table.aggregate` gives them, with a column `name`.
        names: in the order of the rows.
    """
    import seaborn

    attacks = list(dict.fromkeys(cells["attack"]))
    distances = cells.pivot(index="name", columns="attack", values="distance").reindex(index=names, columns=attacks)
    figure = Figure(figsize=(PAGE, 1.3 + 0.24 * len(names)), layout="constrained")
    ax = figure.subplots()
    seaborn.heatmap(
        distances.to_numpy(dtype=float),
        ax=ax,
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 7},
        linewidths=0.3,
        xticklabels=attacks,
        yticklabels=names,
        cbar_kws={"label": "LFR - benign floor", "aspect": 30},
    )
    ax.set(xlabel="attack", ylabel="defence")
    ax.tick_params(length=0, labelrotation=0)
    ax.set_xticklabels(attacks, rotation=30, ha="right", rotation_mode="anchor")
    return figure


@in_style
def cost_figure(runs: pd.DataFrame, parts: Sequence[str]) -> Figure:
    """Time of each part of a run, and the peak memory of the run, against what grows.

    Args:
        runs: a row per run: `grows`, the name of the column that differs among the rows of a panel, that column, the seconds
            of each of `parts`, and `MiB`.
    """
    grown = list(dict.fromkeys(runs["grows"]))
    figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
    axes = figure.subplots(2, len(grown), sharey="row", squeeze=False)
    for (upper, lower), what in zip(axes.T, grown, strict=True):
        own = runs[runs["grows"] == what]
        for number, part in enumerate(parts):
            colour, marker = look(number)
            upper.plot(own[what], own[part], color=colour, marker=marker, markersize=3.5, label=part)
        lower.plot(own[what], own["MiB"], color="black", marker="o", markersize=3.5)
        for ax in (upper, lower):
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(own[what], [f"{value:,}" for value in own[what]], minor=False)
            ax.minorticks_off()
        lower.set_xlabel(what)
    axes[0][0].set_ylabel("processor time in s")
    axes[1][0].set_ylabel("peak memory in MiB")
    # A log axis labels powers in TeX, which is not read here.
    powers = [10**power for power in range(-3, 7)]
    for ax, values, candidates in (
        (axes[0][0], runs[list(parts)], powers),
        (axes[1][0], runs["MiB"], (500, 1000, 2000, 4000, 8000, 16000)),
    ):
        low, high = np.min(values.to_numpy()) / 2, np.max(values.to_numpy()) * 2
        if candidates is powers and high < 400 * low:  # Powers of ten alone would be one or two.
            candidates = [step * power for power in powers for step in (1, 2, 5)]
        ticks = [tick for tick in candidates if low <= tick <= high]
        ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(parts))
    return figure


def slot_width(names: list[str]) -> float:
    """Of a name among those of an attack, whose own width is 1."""
    return min(0.18, 0.8 / max(1, len(names)))


def separate(ax: Axes, attacks: list[str]) -> None:
    """A line between each two attacks."""
    for edge in range(1, len(attacks)):
        ax.axvline(edge - 0.5, color="0.85", linewidth=0.6, zorder=0)


def look(number: int) -> tuple[str, str]:
    """Colour and marker: one marker for each turn of the colours, so that no two names look alike."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number // len(COLOURS) + number) % len(MARKERS)]


@in_style
def pareto_figure(cells: pd.DataFrame) -> Figure:
    """ACC against LFR of every cell, a panel per attack: each task's Pareto front as a line, the benign floor dashed.

    Args:
        cells: as `results_table.aggregate` gives them, with columns `defence` and `varied`, what is written beside a mark.
    """
    attacks = list(dict.fromkeys(cells["attack"]))
    figure = Figure(figsize=(PAGE, 0.7 + 2.4 * -(-len(attacks) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(attacks) // 2), 2, squeeze=False).flatten()
    defences = list(dict.fromkeys(cells["defence"]))
    for ax, attack in zip(axes, attacks, strict=False):
        own = cells[(cells["attack"] == attack) & cells["LFR"].notna()]
        for _, of_task in own[own["front"]].groupby([name for name in TASK if name in own], sort=False, dropna=False):
            front = of_task.sort_values("LFR")
            ax.plot(front["LFR"], front["ACC"], color="0.6", linewidth=1, zorder=1, label="Pareto front")
        for number, defence in enumerate(defences):
            of_one = own[own["defence"] == defence]
            colour, marker = look(number)
            ax.plot(of_one["LFR"], of_one["ACC"], marker, color=colour, markersize=5, label=defence)
        for _, row in own.iterrows():
            # Towards the middle, so that nothing is written over the edge.
            left = row["LFR"] > 0.5
            ax.annotate(
                row["varied"],
                (row["LFR"], row["ACC"]),
                xytext=(-5 if left else 5, 2),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=6.5,
            )
        floors = own["floor_LFR"].dropna()
        if len(floors):
            label = "benign floor, lowest"
            ax.axvline(floors.min(), color="black", linewidth=1, linestyle="--", label=label)
        ax.set(title=attack, xlim=(-0.03, 1.03), xlabel="LFR (share flipped)", ylabel="ACC (share right)")
    for ax in axes[len(attacks) :]:
        ax.set_axis_off()
    entries = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=5)
    return figure
