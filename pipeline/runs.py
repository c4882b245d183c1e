"""How runs' folders are named, and what a stage's result depends on.

Folders are named after attack, encoder, data and seed, and after every parameter that was set to something else than the
preset has, of those that what is kept there depends on: no experiment overwrites or reads another's files, and experiments
share what they have in common.
"""

import dataclasses
import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from accelerate import Accelerator

from config import Config, preset_config
from encoder.trusted import fingerprint_files, local_folder
from texts.data_sets import is_path

TRAINING_FIELDS = ("batch_size", "max_grad_norm", "classifier_dropout", "max_len", "seed", "target_class")
POISONING_FIELDS = (
    "attack",
    "plm",
    "trigger_dataset",
    "poisoning_epochs",
    "poisoning_learning_rate",
    "poisoning_max_len",
    *TRAINING_FIELDS,
)
"""What every poisoned encoder depends on."""
DATA_FIELDS = ("setting", "tokeniser", "text_column", "label_column", "split_seed", "max_len", "precision")
"""What everything that the defender does depends on, through the texts it reads and the arithmetic."""
DEFENCE_FIELDS = ("epochs", "learning_rate", "clean_dataset", "split_seed", *TRAINING_FIELDS)
"""What every fine-tuning of the defender depends on."""
IN_FOLDER_NAME = ("preset", "attack", "plm", "poisoned_model", "trigger_dataset", "clean_dataset", "seed")


def encoder_name(source: str) -> str:
    """An encoder's name, hub id or folder as part of a folder's name; two folders of one name stay apart."""
    return path_name(source) if Path(source).is_dir() else source.replace("/", "-")


def dataset_name(name: str) -> str:
    """The same for a data set."""
    return path_name(name) if is_path(name) else name.replace("/", "-")


def path_name(source: str) -> str:
    path = Path(source).expanduser().resolve()
    return f"{path.stem if path.is_file() else path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def command(script: str, config: Config, **also: object) -> str:
    """The command that runs a script with a configuration, to be pasted into a shell; what the preset has is left out.

    Args:
        also: flags of the script's own, and their values.
    """
    preset = preset_config(config.preset)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "overwrite"}
    changed = {name: value for name, value in values.items() if value != getattr(preset, name)}
    words = ["python", script, "--preset", config.preset]
    for name, value in (changed | also).items():
        words += flag_words(name, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


def flag_words(name: str, values: Iterable[object]) -> list[str]:
    """A flag and its values as words of a command line."""
    first, *more = map(str, values)
    # Standing alone, a value that begins with a dash would be taken for a flag.
    return [f"--{name}={first}", *more] if first.startswith("-") else [f"--{name}", first, *more]


def stage_settings(config: Config, fields: tuple[str, ...], accelerator: Accelerator, **inputs) -> dict:
    """All that a stage's result depends on: some fields, the arithmetic, and the fingerprints of what it reads."""
    chosen = {field: getattr(config, field) for field in dict.fromkeys(fields)}
    chosen = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return {**chosen, "mixed_precision": accelerator.mixed_precision, **inputs}


def fingerprint_encoder(source: str) -> str:
    """SHA-256 of all that loading an encoder reads: weights, config.json, tokeniser; names and contents."""
    return fingerprint_files(local_folder(source))
