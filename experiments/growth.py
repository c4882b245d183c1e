"""How a cost grows with sizes: what is measured at each of them, in a process of its own, as a table and a figure.

Time is processor time, which other programs hardly disturb.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

from encoder.classifier import load_encoder, resolve_plm
from pipeline.environment import main_memory_peak
from reporting.figures import cost_figure, save_figures
from util import quieten_libraries, write_whole

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
    quieten_libraries()
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
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measured, (cost, tuple(sizes.values()), threads))
        rows.append({"grows": what, **sizes, **{name: round(value, 2) for name, value in found.items()}})
        write_whole(output, partial(pd.DataFrame(rows).to_csv, index=False))
        print(rows[-1], flush=True)
    save_figures(output.parent, {output.stem: cost_figure(pd.DataFrame(rows), parts)})
