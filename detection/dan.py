"""DAN: how far a text's [CLS] is from the classes' means, layer by layer (Chen et al., Findings of EMNLP 2022)."""

import numpy as np
import pandas as pd
from sklearn.covariance import ShrunkCovariance
from sklearn.model_selection import train_test_split

from detection.detector import Detector, Scores, Watched
from detection.states import cls_states

HELD_OUT = 0.2
"""Share of the clean texts that distances are standardised on (published code)."""


def distances(states: np.ndarray, means: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance to the nearest class, [text]: min_c (h - mu_c)^T Sigma^-1 (h - mu_c).

    Args:
        states: h, [text, channel].
        means: mu, [class, channel].
        precision: Sigma^-1, [channel, channel].
    """
    away = states[:, None] - means  # [text, class, channel]
    return np.einsum("tci,ij,tcj->tc", away, precision, away, optimize=True).min(1)


def fit(watched: Watched, clean: pd.DataFrame) -> Scores:
    """Per layer the means of the classes and one covariance, shrunk by 0.1, of what texts are apart from them; the distance
    is standardised by its mean and standard deviation on held-out texts, and the score is the mean over layers."""
    fitted, held_out = train_test_split(np.arange(len(clean)), test_size=HELD_OUT, random_state=watched.seed)
    states = cls_states(watched.classifier, watched.tokenise(list(clean["text"]))).double().numpy()
    labels = clean["label"].to_numpy()[fitted]
    layers = []
    for layer in states:
        means = np.stack([layer[fitted][labels == label].mean(0) for label in np.unique(labels)])
        apart = layer[fitted] - means[np.searchsorted(np.unique(labels), labels)]
        precision = ShrunkCovariance().fit(apart).precision_
        usual = distances(layer[held_out], means, precision)
        layers.append((means, precision, usual.mean(), max(usual.std(), 1e-12)))

    def scores(texts: list[str]) -> np.ndarray:
        found = cls_states(watched.classifier, watched.tokenise(texts)).double().numpy()
        standardised = [
            (distances(layer, means, precision) - mean) / spread
            for layer, (means, precision, mean, spread) in zip(found, layers, strict=True)
        ]
        return np.mean(standardised, axis=0)

    return scores


DAN = Detector(paper="Chen et al., Findings of EMNLP 2022", fit=fit)
