"""This project's way: what `experiments.published_way` and `experiments.trainer_way` are, of the code that runs use."""

import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path

from attention_head_pruning import accuracy_without, head_variance, search_heads
from attention_normalization import pure_objective
from config import Config
from encoder.classifier import Classifier
from encoder.cls_attention import Heads
from experiments.published_way import COEFFICIENT, WEIGHTS
from pipeline.training import Objective, cross_entropy, fine_tune
from texts.batching import TokenisedTexts
from util import make_accelerator


def our_search(classifier: Classifier, texts: TokenisedTexts, config: Config, precision: str) -> tuple[Heads, list[dict]]:
    """Variances and search; the pruned heads, and the search's steps."""
    variance = head_variance(classifier, texts, config.max_len)
    measure_accuracy = accuracy_without(classifier, texts, make_accelerator(config.device, precision))
    try:
        return search_heads(variance, measure_accuracy, config.acc_threshold, config.prune_step)
    finally:
        classifier.attention.pruned = {}


def our_objective(classifier: Classifier, penalty: bool) -> Objective:
    """Cross-entropy, and PURE's penalty if it is asked for, with one weight for all layers."""
    layers = len(classifier.attention.num_heads)
    pure = partial(pure_objective, attention=classifier.attention, weights=[WEIGHTS] * layers, coefficient=COEFFICIENT)
    return pure if penalty else cross_entropy


def our_epochs(
    classifier: Classifier, texts: TokenisedTexts, penalty: bool, config: Config, precision: str, epochs: int
) -> float:
    """Train with what a run uses, without a word; the seconds of the last epoch."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        history = fine_tune(
            classifier,
            texts,
            our_objective(classifier, penalty),
            learning_rate=config.learning_rate,
            epochs=epochs,
            config=config,
            accelerator=make_accelerator(config.device, precision),
            checkpoint=Path(folder) / "checkpoint.pt",
            settings={},
            description="benchmark",
        )
    return history["seconds"][-1]
