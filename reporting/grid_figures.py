"""The figures of a grid: aggregated cells in, a matplotlib figure out."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.results_table import TASK
from reporting.figures import PAGE, in_style, look


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


def slot_width(names: list[str]) -> float:
    """Of a name among those of an attack, whose own width is 1."""
    return min(0.18, 0.8 / max(1, len(names)))


def separate(ax: Axes, attacks: list[str]) -> None:
    """A line between each two attacks."""
    for edge in range(1, len(attacks)):
        ax.axvline(edge - 0.5, color="0.85", linewidth=0.6, zorder=0)


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
    entries = {}
    for ax in axes:  # A panel may lack what others have.
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=5)
    return figure
