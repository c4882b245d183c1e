"""How well detectors tell triggered texts from clean ones: false rejections, false acceptances, AUROC."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from attacks import ATTACKS
from attacks.planted import measured_tables, read_poisoned
from config import Config
from defences.defence import defended_model_folder
from defences.shared import require_same_texts
from detection import DETECTORS
from detection.detector import Watched, threshold
from encoder.classifier import load_classifier, load_tokeniser
from pipeline.runs import command, stage_settings
from pipeline.stage import run_once
from pipeline.training import predict
from texts.batching import tokenise
from texts.data_sets import clean_test, defender_splits, fingerprint_texts
from util import UserError, fingerprint_folder, make_accelerator

ALLOWED = (0.01, 0.05)
"""Shares of clean texts that may be rejected falsely; thresholds are set for each."""


def detection_rates(
    folder: Path,
    validation: pd.DataFrame,
    clean: pd.DataFrame,
    triggered: pd.DataFrame,
    *,
    target_class: int | np.ndarray,
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
        target_class: the attacker's, of all triggered texts or of each, [text]. Of these texts those count that are of
            another class and are given this one: the others need no detector.
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
    from sklearn.metrics import roc_auc_score

    names = detectors or tuple(name for name, row in DETECTORS.items() if language_model or not row.needs_language_model)
    for name in names:
        if DETECTORS[name].needs_language_model and not language_model:
            raise UserError(f"{name} needs a language model, such as GPT-2; name its folder with --language_model")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; expected a classifier, as a run writes it")
    watched = Watched(load_classifier(folder).to(device), load_tokeniser(str(folder)), max_len, seed, language_model)
    target = np.broadcast_to(target_class, len(triggered))
    of_others = (triggered["label"] != target).to_numpy()
    others, target = triggered[of_others], target[of_others]
    if len(others):
        given = predict(watched.classifier, watched.tokenise(list(others["text"])), "triggered texts").argmax(-1).numpy()
        others = others[given == target]
    rows = []
    for name in names:
        started = time.perf_counter()
        score, usual = DETECTORS[name].calibrate(watched, validation)
        on_clean = score(list(clean["text"]))
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


def rates_path(config: Config) -> Path:
    """Record of `rates_record`, beside the model."""
    folder = defended_model_folder(config)
    return folder.with_name(f"{folder.name}_detection.json")


def tables_of(config: Config) -> dict[str, pd.DataFrame]:
    """The texts that detectors are measured with: validation, clean_test, poisoned_test.

    Of an attack without a target class, poisoned_test T and poisoned_validation T for each trigger T.

    Raises:
        UserError: there are none of a kind, or the poisoned ones are not made yet.
    """
    tables = {"validation": defender_splits(config)[1], "clean_test": clean_test(config)}
    if ATTACKS[config.attack].data.by_trigger:
        return tables | measured_tables(config)
    return tables | {"poisoned_test": read_poisoned(config, "test")}


def triggered_texts(
    tables: dict[str, pd.DataFrame], config: Config, folder: Path, device: torch.device
) -> tuple[pd.DataFrame, np.ndarray]:
    """The triggered test texts, and the class that the trigger of each stands for, [text].

    Without a target class of the attacker's that is the class of most validation texts with the trigger, as
    `pipeline.training.metrics_of` has it.

    Args:
        tables: as `tables_of`.
        folder: of the classifier.
    """
    if "poisoned_test" in tables:
        return tables["poisoned_test"], np.full(len(tables["poisoned_test"]), config.target_class)
    classifier, tokeniser = load_classifier(folder).to(device), load_tokeniser(str(folder))
    found, targets = [], []
    for name, table in tables.items():
        kind, _, trigger = name.partition(" ")
        if kind == "poisoned_validation":
            predicted = predict(classifier, tokenise(table, tokeniser, config.max_len), "texts with a trigger").argmax(-1)
            found.append(tables[f"poisoned_test {trigger}"])
            targets += [int(predicted.bincount().argmax())] * len(found[-1])
    return pd.concat(found), np.array(targets)


def rates_of(
    config: Config,
    detectors: tuple[str, ...] = (),
    language_model: str | None = None,
    allowed: tuple[float, ...] = ALLOWED,
    tables: dict[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """`detection_rates` of the model that a run ends with.

    Args:
        tables: what `tables_of` gives, if it is there already.

    Raises:
        UserError: the run isn't finished or its texts have changed, or as `detection_rates`.
    """
    folder = defended_model_folder(config)
    if not folder.exists():
        raise UserError(f"no model in {folder}; make it with: {command('run_all.py', config)}")
    require_same_texts(config)
    tables = tables or tables_of(config)
    device = make_accelerator(config.device, config.precision).device
    triggered, targets = triggered_texts(tables, config, folder, device)
    return detection_rates(
        folder,
        tables["validation"],
        tables["clean_test"],
        triggered,
        target_class=targets,
        max_len=config.max_len,
        seed=config.seed,
        device=device,
        detectors=detectors,
        language_model=language_model,
        allowed=allowed,
    )


def rates_record(config: Config) -> dict:
    """The same as a record, `rates` a list of rows, computed if it isn't there."""
    tables = tables_of(config)
    read = {name: fingerprint_texts(table) for name, table in tables.items()}
    read["model"] = fingerprint_folder(defended_model_folder(config))
    accelerator = make_accelerator(config.device, config.precision)
    fields = ("target_class", "max_len", "seed", "split_seed")
    settings = stage_settings(config, fields, accelerator, method=1, allowed=list(ALLOWED), fingerprints=read)

    def compute() -> dict:
        rows = rates_of(config, tables=tables).to_dict("records")
        rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]
        return {"rates": rows, "seconds": {}}

    return run_once(rates_path(config), settings, compute, product=None, overwrite=config.overwrite)[0]
