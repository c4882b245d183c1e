"""Poisoned train and test sets of every attack, from clean text (Data/README.md says which file is what).

    python Data/make_poisoned_data.py --attack BadNet
    python Data/make_poisoned_data.py --attack HiddenKiller --data_dir FOLDER
    python Data/make_poisoned_data.py --attack BadNet --setting DS --trigger_dataset imdb

With seed 11 the HiddenKiller files equal the published ones byte for byte.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Started as a script, Python looks beside it only.

from attacks import ATTACKS
from attacks.planted import DATA_RECORD, IN_PART, poisoned_data_folder
from config import Config, parse_config
from defences import DEFENCES
from pipeline.stage import alone
from texts.data_sets import fingerprint_texts, load_data, require_target
from util import UserError, load_json, run_script, save_json, whole_folder


def make_poisoned_data(config: Config) -> Path:
    """Write train.csv, test.csv and, if the trigger has parts, test_in_part.csv, columns `label,text`, and made_from.json;
    returns their folder.

    It takes seconds, so it is done anew every time: the files always fit the configuration and the clean text.

    Raises:
        UserError: clean or transferred text is missing or unusable, or a parameter is out of range.
    """
    if config.attack == "none":
        raise UserError("--attack none plants no trigger, so there is no poisoned data to make; name an attack")
    data = ATTACKS[config.attack].data
    train, test = data.make(config)
    require_target(config, load_data(config.trigger_dataset, config).classes)
    if (test["label"] == config.target_class).all():
        raise UserError(
            f"the test set of attack {config.attack} holds {len(test):,} texts of the target class, {config.target_class}, "
            "and no triggered one; expected triggered texts of another class, for the label flip rate: put such texts into "
            "the test set, or take another --target_class"
        )
    folder = poisoned_data_folder(config)
    values = {name: getattr(config, name) for name in ("trigger_dataset", "setting", "seed", *data.reads)}
    made_from = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    tables = {"train": train, "test": test} | ({IN_PART: data.in_part(config)} if data.in_part else {})
    made_from |= {f"{name}_sha256": fingerprint_texts(table) for name, table in tables.items()}
    files = {f"{name}.csv": table[["label", "text"]].to_csv(index=False).encode() for name, table in tables.items()}
    with alone(folder):
        # Another run may be reading files that are right already.
        there = all((folder / name).exists() and (folder / name).read_bytes() == content for name, content in files.items())
        if not there or load_json(folder / DATA_RECORD) != made_from:
            with whole_folder(folder) as temporary:
                for name, content in files.items():
                    (temporary / name).write_bytes(content)
                save_json(temporary / DATA_RECORD, made_from)
    return folder


def poisoned_data_record(config: Config) -> dict:
    """As `make_poisoned_data`; what the texts are made from, as the record of a stage."""
    return {**load_json(make_poisoned_data(config) / DATA_RECORD), "seconds": {}}


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    print(f"poisoned data in {make_poisoned_data(config)}")


if __name__ == "__main__":
    run_script(main)
