"""The defences: one file and one row each; PURE's two steps are scripts of their own."""

from dataclasses import replace
from pathlib import Path

from config import SWEPT, Config
from defences.defence import Defence, Stage, product_path, stage_folder
from defences.erase_relearn import ERASE_RELEARN
from defences.fine_tuning import FT, FTH
from defences.meft import MEFT
from defences.pure import NORMALISE_ONLY, PRUNE_ONLY, PURE
from util import named

DEFENCES: dict[str, Defence] = {
    "FT": FT,
    "FTH": FTH,
    "MEFT": MEFT,
    "PURE": PURE,
    "prune_only": PRUNE_ONLY,
    "normalise_only": NORMALISE_ONLY,
    "erase_relearn": ERASE_RELEARN,
}
"""The only list of defences; everything that depends on one comes from its row."""


def as_defence(config: Config) -> Config:
    """The configuration with what its defence changes in it."""
    return replace(config, **DEFENCES[config.defence].changes(config))


def run_stage(stage: Stage, config: Config) -> dict:
    """A stage's record, computed if it isn't there."""
    return named(stage.run)(config)


def run_folder(config: Config) -> Path:
    """Folder of what a run keeps beside its last stage's record."""
    return stage_folder(as_defence(config), DEFENCES[config.defence].last)


def defended_model_folder(config: Config) -> Path:
    """Folder of the model that a defence ends with."""
    return product_path(as_defence(config), DEFENCES[config.defence].last)


def takes_notice(defence: str) -> set[str]:
    """Those of the swept fields that a defence's result depends on, beside attack and seed."""
    row = DEFENCES[defence]
    fixed = row.changes(Config())
    return {name for name in SWEPT if name != "seed" and name in row.reads() and name not in fixed}
