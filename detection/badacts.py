"""BadActs, its detection: activations outside of their intervals on clean texts (Yi et al., Findings of ACL 2024)."""

import numpy as np
import pandas as pd

from detection.detector import Detector, Scores, Watched
from detection.states import cls_states

WIDTH = 3.0
"""Standard deviations on each side of the mean that an interval reaches (published code: 3)."""


def fit(watched: Watched, clean: pd.DataFrame) -> Scores:
    """Mean and standard deviation of every channel of [CLS] in every layer; the score is the share of them that are outside
    of mean ± 3 standard deviations."""

    def activations(texts: list[str]) -> np.ndarray:
        return cls_states(watched.classifier, watched.tokenise(texts)).double().numpy()  # [layer, text, channel]

    usual = activations(list(clean["text"]))
    mean, spread = usual.mean(1, keepdims=True), usual.std(1, keepdims=True)

    def scores(texts: list[str]) -> np.ndarray:
        return (np.abs(activations(texts) - mean) > WIDTH * spread).mean((0, 2))

    return scores


BADACTS = Detector(paper="Yi et al., Findings of ACL 2024", fit=fit)
