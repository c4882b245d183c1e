"""DAN beside an exported model: what `predict.py` needs to say how odd a text is, as one small safetensors file."""

from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
import torch

from detection.dan import Distances, fit_distances, states_of
from detection.detector import Watched, halves, threshold
from util import UserError

FILE = "oddness.safetensors"
ALLOWED = 0.05
"""Share of held-out clean texts that are called odd."""


def fit_oddness(watched: Watched, validation: pd.DataFrame) -> tuple[Distances, float] | None:
    """DAN fitted on half of some clean texts, and its threshold on the other half; None: there are too few texts."""
    try:
        fitted, held_out = halves(validation, watched.seed)
    except UserError:
        return None
    found = fit_distances(watched, fitted)
    return found, threshold(found.scores(states_of(watched, list(held_out["text"]))), ALLOWED)


def save_oddness(folder: Path, found: Distances, limit: float) -> None:
    """Write the arrays of `Distances` under their names, and `threshold` [1], in fp32."""
    arrays = {**vars(found), "threshold": np.array([limit])}
    safetensors.numpy.save_file({name: array.astype(np.float32) for name, array in arrays.items()}, folder / FILE)


@torch.inference_mode()
def plain_states(model, tokeniser, texts: list[str]) -> np.ndarray:
    """[layer, text, channel] of the first token, by a model of transformers, one text after another; fp64."""
    found = []
    for text in texts:
        encoded = tokeniser(text, truncation=True, return_tensors="pt")
        states = model(**encoded, output_hidden_states=True).hidden_states
        found.append(torch.stack([state[0, 0] for state in states[1:]]).double().numpy())
    return np.stack(found, axis=1)
