"""Where an attack's poisoned texts and encoder are."""

from pathlib import Path

import pandas as pd

from attacks import ATTACKS
from config import Config, changed_from_preset
from pipeline.runs import IN_FOLDER_NAME, POISONING_FIELDS, command, dataset_name, encoder_name
from texts.data_sets import clean_test, defender_splits, evaluation_dataset, triggered_classes
from texts.tables import read_table
from util import UserError

RECORD = "poisoning.json"
DATA_RECORD = "made_from.json"
SPLIT_FIELDS = ("split_seed", "text_column", "label_column")
"""What the attacker's texts depend on beside their data set, where both sides' texts are parts of one table."""
IN_PART = "test_in_part"
"""Test texts with a part of the trigger, if it has parts, beside train and test."""


def attacked_data(config: Config) -> str:
    """The attacker's data as part of a folder's name: train set, and test set if that is another's."""
    attacked, test = dataset_name(config.trigger_dataset), dataset_name(evaluation_dataset(config))
    return attacked if test == attacked else f"{attacked}-{test}"


def poisoned_data_folder(config: Config) -> Path:
    """Folder of train.csv, test.csv and the like; attacks with the same kind of triggered data share theirs."""
    data = ATTACKS[config.attack].data
    changed = changed_from_preset(config, (*data.reads, *SPLIT_FIELDS))
    return Path(config.poisoned_data_dir) / (
        f"{config.preset}_{data.name}_{attacked_data(config)}_seed{config.seed}{changed}"
    )


def poisoning_fields(config: Config) -> tuple[str, ...]:
    """Fields that the poisoned encoder depends on, less those that the attack has values of its own for."""
    attack = ATTACKS[config.attack]
    fixed = {"poisoning_epochs": attack.epochs, "poisoning_learning_rate": attack.learning_rate}
    fields = dict.fromkeys((*POISONING_FIELDS, *attack.reads, *attack.data.reads))
    return tuple(field for field in fields if fixed.get(field) is None)


def poisoned_model_folder(config: Config) -> Path:
    """Folder of the encoder that the poisoning stage writes."""
    fields = (*poisoning_fields(config), *SPLIT_FIELDS, "precision")
    fields = tuple(field for field in fields if field not in IN_FOLDER_NAME)
    name = f"{config.preset}_{config.attack}_{encoder_name(config.plm)}_{attacked_data(config)}_seed{config.seed}"
    return Path(config.poisoned_model_dir) / f"{name}{changed_from_preset(config, fields)}"


def read_poisoned(config: Config, split: str) -> pd.DataFrame:
    """The poisoned train or test texts, or those of `IN_PART`.

    Raises:
        UserError: they are not made yet.
    """
    path = poisoned_data_folder(config) / f"{split}.csv"
    if not path.exists():
        raise UserError(f"no poisoned data in {path.parent}; make it with: {command('Data/make_poisoned_data.py', config)}")
    return read_table(path, tuple(map(str, range(len(triggered_classes(config, split))))))


def measured_tables(config: Config) -> dict[str, pd.DataFrame]:
    """The tables that a classifier is measured on, by the names that `pipeline.training.metrics_of` knows.

    Raises:
        UserError: there is no test split, or the poisoned texts are not made yet.
    """
    tables = {"clean_test": clean_test(config)}
    if config.attack == "none":
        return tables
    data = ATTACKS[config.attack].data
    if data.by_trigger:
        for name, table in (("poisoned_test", tables["clean_test"]), ("poisoned_validation", defender_splits(config)[1])):
            tables |= {f"{name} {trigger}": triggered for trigger, triggered in data.by_trigger(table, config).items()}
        return tables
    tables["poisoned_test"] = read_poisoned(config, "test")
    if data.in_part:
        tables["poisoned_in_part"] = read_poisoned(config, IN_PART)
    return tables
