"""The figures of a run: numbers in, a matplotlib figure out. Layers and heads are numbered from 0, as in its records."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from reporting.figures import COLOURS, COLUMN, LONGEST, PAGE, in_style


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
