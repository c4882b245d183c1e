"""DAN: how far a text's [CLS] is from the classes' means, layer by layer (Chen et al., Findings of EMNLP 2022)."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Distances:
    """What the scores of texts are made of, for every layer."""

    means: np.ndarray
    """Of the classes, [layer, class, channel]."""
    precision: np.ndarray
    """Inverse of one covariance for all classes, [layer, channel, channel]."""
    usual: np.ndarray
    spread: np.ndarray
    """Mean and standard deviation of the distances of held-out texts, [layer]."""

    def scores(self, states: np.ndarray) -> np.ndarray:
        """States of [CLS], [layer, text, channel], to the mean over layers of their standardised distances, [text]."""
        layers = zip(states, self.means, self.precision, self.usual, self.spread, strict=True)
        return np.mean([(distances(each, means, by) - usual) / spread for each, means, by, usual, spread in layers], axis=0)


def states_of(watched: Watched, texts: list[str]) -> np.ndarray:
    """[layer, text, channel], fp64."""
    return cls_states(watched.classifier, watched.tokenise(texts)).double().numpy()


def fit_distances(watched: Watched, clean: pd.DataFrame) -> Distances:
    """Per layer the means of the classes and one covariance, shrunk by 0.1, of what texts are apart from them; mean and
    standard deviation of the distance are of held-out texts."""
    fitted, held_out = train_test_split(np.arange(len(clean)), test_size=HELD_OUT, random_state=watched.seed)
    labels = clean["label"].to_numpy()[fitted]
    classes = np.unique(labels)
    found = []
    for layer in states_of(watched, list(clean["text"])):
        means = np.stack([layer[fitted][labels == label].mean(0) for label in classes])
        apart = layer[fitted] - means[np.searchsorted(classes, labels)]
        precision = ShrunkCovariance().fit(apart).precision_
        usual = distances(layer[held_out], means, precision)
        found.append((means, precision, usual.mean(), max(usual.std(), 1e-12)))
    return Distances(*(np.stack(each) for each in zip(*found, strict=True)))


def fit(watched: Watched, clean: pd.DataFrame) -> Scores:
    found = fit_distances(watched, clean)
    return lambda texts: found.scores(states_of(watched, texts))


DAN = Detector(paper="Chen et al., Findings of EMNLP 2022", fit=fit)
