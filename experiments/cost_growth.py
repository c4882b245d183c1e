"""How the cost of one PURE run grows: with the number of texts, their length, and the encoder's layers and heads.

    python -m experiments.cost_growth --output results/cost_growth.csv

Texts are the words of the project's reviews, one after another, cut to one length; a tenth of them are searched with.
Encoders of other depths have MiniLM's shape and random weights. The search prunes all heads that it may, the longest there
is.
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import make_accelerator, run_script

# isort: split
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from attention_head_pruning import accuracy_without, head_variance, search_heads
from config import preset_config
from encoder.classifier import Classifier, load_tokeniser, resolve_plm
from experiments.growth import encoder_of_depth, measure_growth
from experiments.our_way import our_epochs
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import defender_splits

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


def cost(number: int, length: int, layers: int) -> dict[str, float]:
    """Seconds of processor time of each of `PARTS`."""
    config = preset_config("quick", device="cpu", max_len=length)
    accelerator = make_accelerator("cpu", "auto")
    reviews = tokenise(defender_splits(config)[0], load_tokeniser(resolve_plm("minilm")), 128)
    words = np.concatenate([ids[1:-1] for ids in reviews.input_ids])
    train = texts_of_length(words, number, length)
    validation = train.select(range(number // 10))
    classifier = Classifier(encoder_of_depth(layers), 2, 0.1, 0)
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
    return seconds


def main() -> None:
    growth = tyro.cli(Growth, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    names = ("texts", "tokens per text", "layers")
    runs = [("texts", number, growth.lengths[0], 6) for number in growth.texts]
    runs += [("tokens per text", growth.texts[0], length, 6) for length in growth.lengths]
    runs += [("layers", growth.texts[0], growth.lengths[0], layers) for layers in growth.layers]
    sized = [(what, dict(zip(names, sizes, strict=True))) for what, *sizes in runs]
    measure_growth(sized, cost, PARTS, Path(growth.output), growth.threads)


if __name__ == "__main__":
    run_script(main)
