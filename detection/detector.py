"""What a row of the table of detectors says."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from encoder.classifier import Classifier
from texts.batching import TokenisedTexts, tokenise

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
