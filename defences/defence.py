"""What a row of the table of defences says, and where a stage of one keeps what it made."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from attacks import ATTACKS
from attacks.planted import poisoning_fields
from config import SWEPT, Config, changed_from_preset
from defences import DEFENCES
from pipeline.runs import DATA_FIELDS, IN_FOLDER_NAME, dataset_name, encoder_name
from util import load_json, named

EXPORT = "exported_model"
"""Folder of a run with the defended model for plain transformers."""


@dataclass(frozen=True)
class Stage:
    """One step of a defence. Runs share it where all that it reads, and all that the stages before it read, is the same."""

    run: str
    """Its function, "module:name": from a configuration to its record. By name, since PURE's are scripts above this room."""
    record: str
    """Its JSON file."""
    product: str | None
    """Folder that it writes beside the record; None: the record is all there is."""
    reads: tuple[str, ...]
    """Fields of `Config` that its result depends on, beside those that the stages before it read."""
    title: str
    told: Callable[[Config], str]
    """What happens in it and why, for a reader."""
    done: Callable[[dict], str]
    """What happened, for the model card: its record to a sentence or more."""
    after: "Stage | None" = None
    """The stage before it."""
    phases: dict[str, str] = field(default_factory=dict)
    """Its fine-tunings: name in the record to title."""
    passes: Callable[[Config], int] = lambda config: 0
    """Passes over a train set, for an estimate of the time left."""
    method: int = 2
    """Raised when a change of the code changes results: those of earlier methods are computed anew. With method 1 the
    defender's head began as the attacker's had, where both had one seed."""

    def chain(self) -> tuple["Stage", ...]:
        """The stages up to this one, in order."""
        return (*(self.after.chain() if self.after else ()), self)


@dataclass(frozen=True)
class Defence:
    """Everything that depends on which defence it is stands in its row and nowhere else."""

    paper: str
    last: Stage
    """The stage that it ends with; those before it follow."""
    changes: Callable[[Config], dict] = lambda config: {}
    """Fields that it stands for, with their values."""
    chooses: tuple[str, ...] = ()
    """Fields that `changes` goes by and no stage reads."""
    check: Callable[[Config], object] = lambda config: None
    """Raises a UserError where a configuration lacks what it needs, before anything is run."""
    puts_aside: bool = False
    """Whether it ends with `clean_encoder` and that one's tokeniser, and the given encoder is put aside."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In order."""
        return self.last.chain()

    def reads(self) -> set[str]:
        """Fields that its result depends on, beside what everything depends on."""
        return {name for stage in self.stages for name in stage.reads}


def stage_folder(config: Config, stage: Stage) -> Path:
    """Folder of what a stage keeps.

    Args:
        config: with what its defence changes in it.
    """
    read = [name for each in stage.chain() for name in each.reads]
    if config.attack != "none":
        read += ATTACKS[config.attack].data.reads if config.poisoned_model else poisoning_fields(config)
    fields = tuple(name for name in dict.fromkeys((*DATA_FIELDS, *read)) if name not in IN_FOLDER_NAME)
    encoder = f"given-{encoder_name(config.poisoned_model)}" if config.poisoned_model else encoder_name(config.plm)
    data = dataset_name(config.clean_dataset)
    if config.attack != "none":
        data = f"{dataset_name(config.trigger_dataset)}-{data}"
    name = f"{config.preset}_{config.attack}_{encoder}_{data}_seed{config.seed}"
    return Path(config.output_dir) / f"{name}{changed_from_preset(config, fields)}"


def record_path(config: Config, stage: Stage) -> Path:
    return stage_folder(config, stage) / stage.record


def product_path(config: Config, stage: Stage) -> Path:
    """The folder of the model that a stage writes."""
    return stage_folder(config, stage) / stage.product


def as_defence(config: Config) -> Config:
    """The configuration with what its defence changes in it."""
    return replace(config, **DEFENCES[config.defence].changes(config))


def run_stage(stage: Stage, config: Config) -> dict:
    """A stage's record, computed if it isn't there."""
    return named(stage.run)(config)


def run_folder(config: Config) -> Path:
    """Folder of what belongs to a run as a whole: its numbers, page and export. Stages may lie above it, of several runs."""
    return stage_folder(as_defence(config), DEFENCES[config.defence].last) / config.defence


def defended_model_folder(config: Config) -> Path:
    """Folder of the model that a defence ends with."""
    return product_path(as_defence(config), DEFENCES[config.defence].last)


def put_exports_aside(folder: Path, product: str) -> None:
    """Rename exports that were made from a model which isn't there any more: its numbers and card would be taken for the new
    one's.

    Args:
        folder: that stages keep what they made in; the exports are in the folders of runs below it.
        product: fingerprint of the model that was there; an export that says of no model is taken for its.
    """
    for export in folder.glob(f"*/{EXPORT}"):
        if (load_json(export / "evaluation.json") or {}).get("product", product) == product:
            aside = export.with_name(f"{EXPORT}_of_an_earlier_run")
            shutil.rmtree(aside, ignore_errors=True)
            export.rename(aside)
            print(f"  the export that was there is of another model; it is in {aside} now")


def takes_notice(defence: str) -> set[str]:
    """Those of the swept fields that a defence's result depends on, beside attack and seed."""
    row = DEFENCES[defence]
    fixed = row.changes(Config())
    read = row.reads() | set(row.chooses)
    return {name for name in SWEPT if name != "seed" and name in read and name not in fixed}
