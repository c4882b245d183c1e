"""How the cost of a scan grows: with the words of the vocabulary and the encoder's layers.

    python -m experiments.scan_growth --output results/scan_growth.csv

A smaller vocabulary is the first part of MiniLM's, which has characters and frequent words first. Encoders of other depths
have MiniLM's shape and random weights. The texts are the project's reviews.
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import run_script

# isort: split
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from config import preset_config
from detection.encoder_scan import Effort, scan_encoder
from encoder.classifier import load_tokeniser, resolve_plm
from experiments.growth import encoder_of_depth, measure_growth

ALL = Effort()
"""What a scan tries by itself."""


@dataclass(frozen=True)
class Growth:
    """What grows, the other at MiniLM's: 6 layers of 12 heads, 30,522 tokens."""

    tokens: tuple[int, ...] = (5000, 10000, 20000, 30522)
    """Tokens of the vocabulary."""
    layers: tuple[int, ...] = (3, 6, 12, 24)
    """Layers of the encoder, of 12 heads each."""
    threads: int = 1
    output: str = "results/scan_growth.csv"
    """Table to write; the figure goes beside it as .png and .pdf."""


def write_encoder(folder: Path, tokens: int, layers: int) -> None:
    """MiniLM with the first `tokens` of its vocabulary, and with `layers` layers; with its tokeniser, cut alike."""
    from transformers import BertTokenizer

    encoder = encoder_of_depth(layers)
    encoder.get_input_embeddings().weight = torch.nn.Parameter(encoder.get_input_embeddings().weight.detach()[:tokens])
    encoder.config.vocab_size = tokens
    encoder.save_pretrained(folder)
    vocabulary = load_tokeniser(resolve_plm("minilm")).get_vocab()
    BertTokenizer(vocab={token: number for token, number in vocabulary.items() if number < tokens}).save_pretrained(folder)


def cost(tokens: int, layers: int, effort: Effort = ALL) -> dict[str, float]:
    """Seconds of processor time of a scan, and seconds of the clock of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(Path(folder), tokens, layers)
        config = preset_config("quick", attack="none", poisoned_model=folder, device="cpu")
        started = time.process_time()
        found = scan_encoder(config, None, (), effort)
        seconds = time.process_time() - started
    return {
        "words": found["settings"]["words"],
        "scan": seconds,
        **{f"{part}, s": s for part, s in found["seconds"].items()},
    }


def main() -> None:
    growth = tyro.cli(Growth, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    runs = [("tokens", {"tokens": tokens, "layers": 6}) for tokens in growth.tokens]
    runs += [("layers", {"tokens": 30522, "layers": layers}) for layers in growth.layers]
    measure_growth(runs, cost, ("scan",), Path(growth.output), growth.threads)


if __name__ == "__main__":
    run_script(main)
