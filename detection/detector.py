"""What a row of the table of detectors says."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from encoder.classifier import Classifier
from texts.batching import TokenisedTexts, tokenise
from texts.tables import FEWEST_TEXTS
from util import UserError

Scores = Callable[[list[str]], np.ndarray]
"""Texts to their scores [text]: the higher, the odder. The score of a text doesn't depend on those beside it."""


@dataclass(frozen=True)
class Watched:
    """The classifier whose texts are looked at, and what goes with it."""

    classifier: Classifier
    tokeniser: object
    max_len: int
    seed: int
    language_model: str | None = None
    """Folder of a language model, for the detectors that need one."""

    def tokenise(self, texts: list[str]) -> TokenisedTexts:
        return tokenise(pd.DataFrame({"text": texts, "label": 0}), self.tokeniser, self.max_len)


@dataclass(frozen=True)
class Detector:
    """A score for texts. Everything that depends on which detector it is stands in its row and nowhere else."""

    paper: str
    fit: Callable[[Watched, pd.DataFrame], Scores]
    """Classifier and clean texts, columns `label` and `text`, to the scores of any texts."""
    needs_language_model: bool = False

    def calibrate(self, watched: Watched, validation: pd.DataFrame) -> tuple[Scores, np.ndarray]:
        """Scores that were fitted on half of some clean texts, and those of the other half, for `threshold`.

        Raises:
            UserError: as `halves`.
        """
        fitted, held_out = halves(validation, watched.seed)
        scores = self.fit(watched, fitted)
        return scores, scores(list(held_out["text"]))


def halves(validation: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clean validation texts to fit a detector on, and to set its threshold on.

    Raises:
        UserError: fewer than two classes, or too few texts.
    """
    from sklearn.model_selection import train_test_split

    counts = validation["label"].value_counts()
    if len(counts) < 2 or counts.min() < FEWEST_TEXTS:
        raise UserError(
            f"validation texts are of {len(counts)} classes, {counts.min()} of the smallest; detectors need two classes "
            f"or more, and {FEWEST_TEXTS} texts of each"
        )
    return tuple(train_test_split(validation, train_size=0.5, stratify=validation["label"], random_state=seed))


def threshold(scores: np.ndarray, allowed: float) -> float:
    """The lowest of some scores that no more than a share of them are above."""
    above = min(int(allowed * len(scores)), len(scores) - 1)
    return float(np.sort(scores)[-1 - above])
