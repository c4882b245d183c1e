"""How well detectors tell triggered texts from clean ones: false rejections, false acceptances, AUROC."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from detection import DETECTORS
from detection.detector import Watched
from encoder.classifier import load_classifier, load_tokeniser
from pipeline.training import predict
from texts.tables import FEWEST_TEXTS
from util import UserError

ALLOWED = (0.01, 0.05)
"""Shares of clean texts that may be rejected falsely; thresholds are set for each."""


def threshold(scores: np.ndarray, allowed: float) -> float:
    """The lowest of some scores that no more than a share of them are above."""
    above = min(int(allowed * len(scores)), len(scores) - 1)
    return float(np.sort(scores)[-1 - above])


def detection_rates(
    folder: Path,
    validation: pd.DataFrame,
    clean: pd.DataFrame,
    triggered: pd.DataFrame,
    *,
    target_class: int,
    max_len: int,
    seed: int,
    device: torch.device,
    detectors: tuple[str, ...] = (),
    language_model: str | None = None,
    allowed: tuple[float, ...] = ALLOWED,
) -> pd.DataFrame:
    """Every detector on the texts of one classifier.

    It is fitted on half of the clean validation texts; on the other half its threshold is set, so that no more than the
    allowed share of them is above.

    Args:
        folder: of a classifier, as `encoder.classifier.save_classifier` writes it.
        validation, clean, triggered: tables of label and text; the last two are test texts.
        target_class: the attacker's. Of the triggered texts those count that are of another class and are given this one:
            the others need no detector.
        detectors: names; none: all, but for those that need a language model if there is none.
        language_model: folder of one.
        allowed: shares, 0 to 1.

    Returns:
        A row per detector and allowed share: detector; allowed; FRR, share of the clean texts that are rejected; FAR, share
        of the triggered that are not; AUROC; clean and triggered, how many there are; seconds, fitting and scoring. Without
        triggered texts FAR and AUROC are missing.

    Raises:
        UserError: no such folder, fewer than two classes, too few texts, or no language model where one is needed.
    """
    names = detectors or tuple(name for name, row in DETECTORS.items() if language_model or not row.needs_language_model)
    for name in names:
        if DETECTORS[name].needs_language_model and not language_model:
            raise UserError(f"{name} needs a language model, such as GPT-2; name its folder with --language_model")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; expected a classifier, as a run writes it")
    counts = validation["label"].value_counts()
    if len(counts) < 2 or counts.min() < FEWEST_TEXTS:
        raise UserError(
            f"validation texts are of {len(counts)} classes, {counts.min()} of the smallest; detectors need two classes "
            f"or more, and {FEWEST_TEXTS} texts of each"
        )
    watched = Watched(load_classifier(folder).to(device), load_tokeniser(str(folder)), max_len, seed, language_model)
    fitted, held_out = train_test_split(validation, train_size=0.5, stratify=validation["label"], random_state=seed)
    others = triggered[triggered["label"] != target_class]
    if len(others):
        given = predict(watched.classifier, watched.tokenise(list(others["text"])), "triggered texts").argmax(-1).numpy()
        others = others[given == target_class]
    rows = []
    for name in names:
        started = time.perf_counter()
        score = DETECTORS[name].fit(watched, fitted)
        usual, on_clean = score(list(held_out["text"])), score(list(clean["text"]))
        on_triggered = score(list(others["text"])) if len(others) else np.empty(0)
        far, auroc = np.nan, np.nan
        if len(others):
            auroc = roc_auc_score([0] * len(on_clean) + [1] * len(on_triggered), np.r_[on_clean, on_triggered])
        seconds = round(time.perf_counter() - started, 1)
        for share in allowed:
            limit = threshold(usual, share)
            if len(others):
                far = float((on_triggered <= limit).mean())
            frr = float((on_clean > limit).mean())
            counts = {"clean": len(on_clean), "triggered": len(on_triggered), "seconds": seconds}
            rows.append({"detector": name, "allowed": share, "FRR": frr, "FAR": far, "AUROC": auroc, **counts})
    return pd.DataFrame(rows)
