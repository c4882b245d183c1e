"""How the cost of one PURE run grows: with the number of texts, their length, and the encoder's layers and heads.

    python -m experiments.cost_growth --output results/cost_growth.csv

Texts are the words of the project's reviews, one after another, cut to one length; a tenth of them are searched with.
Encoders of other depths have MiniLM's shape and random weights. The search prunes all heads that it may, the longest there
is. Each run has a process of its own. Time is processor time, which other programs hardly disturb.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from tqdm import tqdm

from attention_head_pruning import accuracy_without, head_variance, search_heads
from config import preset_config
from encoder.classifier import Classifier, load_encoder, load_tokeniser, resolve_plm
from experiments.our_way import our_epochs
from pipeline.environment import main_memory_peak
from reporting.figures import cost_figure, save_figures
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import defender_splits
from util import make_accelerator, quieten_libraries, run_script, write_whole

PARTS = ("fine-tuning", "variances", "search", "second fine-tuning")
"""Of a PURE run; of either fine-tuning one epoch."""


@dataclass(frozen=True)
class Growth:
    """What grows, each with the others at their first value but the encoder's depth, which is MiniLM's 6 layers."""

    texts: tuple[int, ...] = (1000, 4000, 16000, 60000)
    """Texts that are trained on."""
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    """Tokens of a text."""
    layers: tuple[int, ...] = (3, 6, 12, 24)
    """Layers of the encoder, of 12 heads each."""
    threads: int = 1
    output: str = "results/cost_growth.csv"
    """Table to write; the figure goes beside it as .png and .pdf."""


def texts_of_length(words: np.ndarray, number: int, length: int) -> TokenisedTexts:
    """Texts of `length` tokens made of `words`, token numbers, in turn; labels 0 and 1 in turn."""
    first, last = 101, 102  # [CLS] and [SEP] of BERT's vocabulary.
    inner = np.resize(words, (number, length - 2)).tolist()
    return TokenisedTexts([[first, *each, last] for each in inner], [0, 1] * (number // 2), pad_token_id=0)


def build(layers: int) -> Classifier:
    """MiniLM, or an encoder of its shape and another depth with random weights, with a classification head."""
    from transformers import AutoModel

    encoder = load_encoder(resolve_plm("minilm"))
    if layers != encoder.config.num_hidden_layers:
        encoder.config.num_hidden_layers = layers
        torch.manual_seed(0)
        encoder = AutoModel.from_config(encoder.config)
    return Classifier(encoder, 2, 0.1, 0)


def cost(number: int, length: int, layers: int, threads: int) -> dict:
    """Seconds of processor time of each of `PARTS`, and the peak memory of the process in MiB."""
    quieten_libraries()
    torch.set_num_threads(threads)
    config = preset_config("quick", device="cpu", max_len=length)
    accelerator = make_accelerator("cpu", "auto")
    reviews = tokenise(defender_splits(config)[0], load_tokeniser(resolve_plm("minilm")), 128)
    words = np.concatenate([ids[1:-1] for ids in reviews.input_ids])
    train = texts_of_length(words, number, length)
    validation = train.select(range(number // 10))
    classifier = build(layers)
    seconds = {}

    @contextlib.contextmanager
    def timed(part: str) -> Iterator[None]:
        started = time.process_time()
        yield
        seconds[part] = time.process_time() - started

    with timed("fine-tuning"):
        our_epochs(classifier, train, False, config, "auto", 1)
    with timed("variances"):
        variance = head_variance(classifier, validation, length)
    with timed("search"):
        search_heads(variance, accuracy_without(classifier, validation, accelerator), 0.0, config.prune_step)
    classifier.attention.pruned = {}
    with timed("second fine-tuning"):
        our_epochs(classifier, train, True, config, "auto", 1)
    return {**seconds, "MiB": main_memory_peak() / 2**20}


def main() -> None:
    growth = tyro.cli(Growth, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    runs = [("texts", number, growth.lengths[0], 6) for number in growth.texts]
    runs += [("tokens per text", growth.texts[0], length, 6) for length in growth.lengths]
    runs += [("layers", growth.texts[0], growth.lengths[0], layers) for layers in growth.layers]
    rows = []
    for what, number, length, layers in tqdm(runs, leave=False, disable=None):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(cost, (number, length, layers, growth.threads))
        sizes = {"texts": number, "tokens per text": length, "layers": layers}
        rows.append({"grows": what, **sizes, **{name: round(value, 2) for name, value in found.items()}})
        write_whole(Path(growth.output), partial(pd.DataFrame(rows).to_csv, index=False))
        print(rows[-1], flush=True)
    save_figures(Path(growth.output).parent, {Path(growth.output).stem: cost_figure(pd.DataFrame(rows), PARTS)})


if __name__ == "__main__":
    run_script(main)
