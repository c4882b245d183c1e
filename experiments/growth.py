"""How a cost grows with sizes: what is measured at each of them, in a process of its own, as a table and a figure.

Time is processor time, which other programs hardly disturb.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from encoder.classifier import load_encoder, resolve_plm
from pipeline.environment import in_own_process, main_memory_peak
from reporting.figures import PAGE, in_style, look, save_figures
from util import write_whole

if TYPE_CHECKING:
    import transformers


def encoder_of_depth(layers: int) -> "transformers.PreTrainedModel":
    """MiniLM, or an encoder of its shape and another depth with random weights."""
    from transformers import AutoModel

    encoder = load_encoder(resolve_plm("minilm"))
    if layers != encoder.config.num_hidden_layers:
        encoder.config.num_hidden_layers = layers
        torch.manual_seed(0)
        encoder = AutoModel.from_config(encoder.config)
    return encoder


def measured(cost: Callable[..., dict[str, float]], sizes: tuple[int, ...], threads: int) -> dict[str, float]:
    """What `cost` says of some sizes, and `MiB`, the peak memory of this process."""
    torch.set_num_threads(threads)
    return {**cost(*sizes), "MiB": main_memory_peak() / 2**20}


def measure_growth(
    runs: list[tuple[str, dict[str, int]]],
    cost: Callable[..., dict[str, float]],
    parts: Sequence[str],
    output: Path,
    threads: int,
) -> None:
    """Write the table, a row after the other, and the figure beside it.

    Args:
        runs: the size that grows, and all sizes by name, those that `cost` is called with, in this order.
        cost: a function of a module, from sizes to numbers, those of `parts` among them, which the figure shows.
    """
    rows = []
    for what, sizes in tqdm(runs, leave=False, disable=None):
        found = in_own_process(measured, cost, tuple(sizes.values()), threads)
        rows.append({"grows": what, **sizes, **{name: round(value, 2) for name, value in found.items()}})
        write_whole(output, partial(pd.DataFrame(rows).to_csv, index=False))
        print(rows[-1], flush=True)
    save_figures(output.parent, {output.stem: cost_figure(pd.DataFrame(rows), parts)})


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
