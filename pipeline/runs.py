"""Where a run's files are, and what its stages read.

Folders are named after attack, encoder, data and seed, and after every parameter that was set to something else than the
preset has: no experiment overwrites or reads another's files.
"""

import dataclasses
import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from config import NOT_SETTINGS, Config, changed_from_preset, preset_config
from texts.data_sets import evaluation_dataset, is_path, triggered_classes
from texts.tables import read_table
from util import UserError, fingerprint

# What each kind of poisoned data depends on, beside the data set and the seed.
RARE_WORD_FIELDS = ("rare_word_share", "triggers", "target_class")
HIDDENKILLER_FIELDS = ("hiddenkiller_share", "target_class")
STYLEBKD_FIELDS = ("stylebkd_share", "target_class")
POISONED_DATA = {
    "BadNet": ("RareWord", RARE_WORD_FIELDS),
    "LayerWise": ("RareWord", RARE_WORD_FIELDS),
    "RIPPLe": ("RareWord", RARE_WORD_FIELDS),
    "HiddenKiller": ("HiddenKiller", HIDDENKILLER_FIELDS),
    "StyleBkd": ("StyleBkd", STYLEBKD_FIELDS),
}
TRAINING_FIELDS = ("batch_size", "max_grad_norm", "classifier_dropout", "max_len", "seed", "target_class")
POISONING_FIELDS = (
    "attack",
    "plm",
    "trigger_dataset",
    "poisoning_epochs",
    "poisoning_learning_rate",
    "poisoning_max_len",
    "ripple_coefficient",
    "surgery_words",
    *TRAINING_FIELDS,
)
# What the defences depend on, beside what every fine-tuning depends on.
PRUNING_FIELDS = ("pruning_criterion", "acc_threshold", "acc_drop", "prune_step")
PENALTY_FIELDS = ("penalty_coefficient",)
MEFT_FIELDS = ("entropy_epochs",)
FTH_FIELDS = ("fth_learning_rate",)
DEFENCE_FIELDS = ("epochs", "learning_rate", "clean_dataset", "split_seed", *TRAINING_FIELDS)
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


def attacked_data(config: Config) -> str:
    """The attacker's data as part of a folder's name: train set, and test set if that is another's."""
    attacked, test = dataset_name(config.trigger_dataset), dataset_name(evaluation_dataset(config))
    return attacked if test == attacked else f"{attacked}-{test}"


def poisoned_data_folder(config: Config) -> Path:
    """Folder of train.csv and test.csv; BadNet and LayerWise share theirs."""
    kind, fields = POISONED_DATA[config.attack]
    name = f"{config.preset}_{kind}_{attacked_data(config)}_seed{config.seed}{changed_from_preset(config, fields)}"
    return Path(config.poisoned_data_dir) / name


def poisoned_model_folder(config: Config) -> Path:
    """Folder of the encoder that the poisoning stage writes."""
    _, data_fields = POISONED_DATA[config.attack]
    fields = tuple(field for field in (*POISONING_FIELDS, "precision", *data_fields) if field not in IN_FOLDER_NAME)
    name = f"{config.preset}_{config.attack}_{encoder_name(config.plm)}_{attacked_data(config)}_seed{config.seed}"
    return Path(config.poisoned_model_dir) / f"{name}{changed_from_preset(config, fields)}"


def run_folder(config: Config, ignoring: tuple[str, ...] = (*MEFT_FIELDS, *FTH_FIELDS)) -> Path:
    """Folder of what a run writes after the poisoned encoder.

    It is named after all fields but those `ignoring` names, which what is kept there doesn't depend on: so runs that differ
    in these alone share it. By default it is the folder of PURE's last stage.
    """
    ignored = (*NOT_SETTINGS, *IN_FOLDER_NAME, *ignoring)
    fields = tuple(field.name for field in dataclasses.fields(config) if field.name not in ignored)
    encoder = f"given-{encoder_name(config.poisoned_model)}" if config.poisoned_model else encoder_name(config.plm)
    data = dataset_name(config.clean_dataset)
    if config.attack != "none":
        data = f"{dataset_name(config.trigger_dataset)}-{data}"
    name = f"{config.preset}_{config.attack}_{encoder}_{data}_seed{config.seed}"
    return Path(config.output_dir) / f"{name}{changed_from_preset(config, fields)}"


def fine_tuning_folder(config: Config) -> Path:
    """Folder of the fine-tuned model, which all runs with one learning rate share."""
    return run_folder(config, (*PRUNING_FIELDS, *PENALTY_FIELDS, *MEFT_FIELDS, *FTH_FIELDS))


def pruning_folder(config: Config) -> Path:
    """Folder of the pruned heads, which runs with different penalties share."""
    return run_folder(config, (*PENALTY_FIELDS, *MEFT_FIELDS, *FTH_FIELDS))


def meft_folder(config: Config) -> Path:
    """Folder of the model after MEFT."""
    return run_folder(config, (*PRUNING_FIELDS, *PENALTY_FIELDS, *FTH_FIELDS))


def defended_model_folder(config: Config) -> Path:
    """Folder of the model that a defence ends with."""
    config = as_defence(config)
    if config.defence == "MEFT":
        return meft_folder(config) / "meft_model"
    if config.defence in ("FT", "FTH"):
        return fine_tuning_folder(config) / "fine_tuned_model"
    return run_folder(config) / "purified_model"


def baseline_record(config: Config) -> Path:
    """Record of the baseline that a configuration names, FT's if it names none; it lies beside the model."""
    if config.defence == "MEFT":
        return meft_folder(config) / "meft.json"
    return fine_tuning_folder(as_defence(config)) / "fine_tuning.json"


def as_defence(config: Config) -> Config:
    """The configuration with the parameters that its defence stands for."""
    changes = {
        "FTH": {"learning_rate": config.fth_learning_rate},
        "prune_only": {"penalty_coefficient": 0.0},
        "normalise_only": {"pruning_criterion": "none"},
    }
    return replace(config, **changes.get(config.defence, {}))


def command(script: str, config: Config) -> str:
    """The command that runs a script with a configuration; what the preset has already is left out."""
    flags = ""
    preset = preset_config(config.preset)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "overwrite" and value != getattr(preset, field.name):
            values = value if isinstance(value, tuple) else (value,)
            flags += f" --{field.name} {' '.join(map(str, values))}"
    return f"python {script} --preset {config.preset}{flags}"


def stage_settings(config: Config, fields: tuple[str, ...], accelerator: Accelerator, **inputs) -> dict:
    """All that a stage's result depends on: some fields, the arithmetic, and the fingerprints of what it reads."""
    chosen = {field: getattr(config, field) for field in dict.fromkeys(fields)}
    chosen = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return {**chosen, "mixed_precision": accelerator.mixed_precision, **inputs}


def fingerprint_encoder(source: str) -> str:
    """SHA-256 of an encoder's weights in a folder; the id of one on the hub."""
    weights = sorted(Path(source).glob("*.safetensors"))
    return " ".join(map(fingerprint, weights)) if weights else source


def read_poisoned(config: Config, split: str) -> pd.DataFrame:
    """The poisoned train or test texts.

    Raises:
        UserError: they are not made yet.
    """
    path = poisoned_data_folder(config) / f"{split}.csv"
    if not path.exists():
        raise UserError(f"no poisoned data in {path.parent}; make it with: {command('Data/make_poisoned_data.py', config)}")
    return read_table(path, tuple(map(str, range(len(triggered_classes(config, split))))))
