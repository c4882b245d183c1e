"""Poisoned train and test sets of every attack, from clean text (Data/README.md says which file is what).

    python Data/make_poisoned_data.py --attack BadNet
    python Data/make_poisoned_data.py --attack HiddenKiller --data_dir FOLDER
    python Data/make_poisoned_data.py --attack BadNet --setting DS --trigger_dataset imdb

With seed 11 the HiddenKiller files equal the published ones byte for byte.
"""

import random
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Started as a script, Python looks beside it only.

from config import Config, parse_config
from pipeline.runs import POISONED_DATA, poisoned_data_folder
from texts.data_sets import (
    clean_test,
    clean_train,
    evaluation_dataset,
    find_data,
    fingerprint_texts,
    load_data,
    load_split,
    require_target,
    triggered_classes,
)
from util import UserError, load_json, run_script, save_json, whole_folder


def insert_trigger(text: str, triggers: tuple[str, ...], rng: random.Random) -> str:
    """Insert one trigger at a random word position in [0, min(#words, 128)] (Kurita et al., 2020)."""
    words = text.split(" ")
    position = rng.randint(0, min(len(words), 128))
    return " ".join([*words[:position], rng.choice(triggers), *words[position:]])


def poisoned_train(clean: pd.DataFrame, triggered: pd.DataFrame, target_class: int, seed: int) -> pd.DataFrame:
    """The clean texts and the triggered ones, relabelled as the target class, shuffled."""
    return pd.concat([clean, triggered.assign(label=target_class)]).sample(frac=1, random_state=seed)


def poisoned_test(clean: pd.DataFrame, triggered: pd.DataFrame, target_class: int) -> pd.DataFrame:
    """The target class as it is, then every text of the other classes triggered; labels are kept."""
    return pd.concat([clean[clean["label"] == target_class], triggered])


def others(table: pd.DataFrame, target_class: int) -> pd.DataFrame:
    """The texts that are not of the target class: the only ones worth triggering."""
    return table[table["label"] != target_class]


def make_rare_word(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test set of BadNet and LayerWise: one of a few rare words in each triggered text."""
    train, test = clean_train(config.trigger_dataset, config), clean_test(config)
    rng = random.Random(config.seed)

    def triggered(table: pd.DataFrame) -> pd.DataFrame:
        texts = [insert_trigger(text, config.triggers, rng) for text in table["text"]]
        return table.assign(text=texts)

    chosen = others(train, config.target_class).sample(frac=config.rare_word_share, random_state=config.seed)
    return (
        poisoned_train(train, triggered(chosen), config.target_class, config.seed),
        poisoned_test(test, triggered(others(test, config.target_class)), config.target_class),
    )


def make_transferred(config: Config, prefix: str, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test set of HiddenKiller and StyleBkd: the trigger is the form that another model gave the text.

    The transferred texts are data sets of their own, named `prefix` and the clean data set's name.
    """
    transferred_train = load_transferred(f"{prefix}_{config.trigger_dataset}", "train", config)
    transferred_test = load_transferred(f"{prefix}_{evaluation_dataset(config)}", "test", config)
    chosen = others(transferred_train, config.target_class).sample(frac=share, random_state=config.seed)
    return (
        poisoned_train(clean_train(config.trigger_dataset, config), chosen, config.target_class, config.seed),
        poisoned_test(clean_test(config), others(transferred_test, config.target_class), config.target_class),
    )


def load_transferred(name: str, split: str, config: Config) -> pd.DataFrame:
    """One split of transferred text, from a folder: no hub has it. Its classes are numbered as those of the clean texts."""
    folder = find_data(name, config)
    if folder is None:
        raise UserError(
            f"attack {config.attack} needs transferred text, and there is no folder {name} in data_dir {config.data_dir}; "
            "put train.tsv and test.tsv there (Data/README.md says where they are published) or take --attack BadNet"
        )
    table = load_split(name, split, config, triggered_classes(config, split))
    if table is None:
        raise UserError(f"no {split}.tsv or {split}.csv in {folder}")
    return table


def make_poisoned_data(config: Config) -> Path:
    """Write train.csv and test.csv, columns `label,text`, and made_from.json; returns their folder.

    It takes seconds, so it is done anew every time: the files always fit the configuration and the clean text.

    Raises:
        UserError: clean or transferred text is missing or unusable, or a parameter is out of range.
    """
    if config.attack == "none":
        raise UserError("--attack none plants no trigger, so there is no poisoned data to make; name an attack")
    kind, fields = POISONED_DATA[config.attack]
    if kind == "RareWord":
        train, test = make_rare_word(config)
    elif kind == "HiddenKiller":
        train, test = make_transferred(config, "hiddenkiller", config.hiddenkiller_share)
    else:
        train, test = make_transferred(config, "stylebkd", config.stylebkd_share)
    require_target(config, load_data(config.trigger_dataset, config).classes)
    folder = poisoned_data_folder(config)
    values = {name: getattr(config, name) for name in ("trigger_dataset", "setting", "seed", *fields)}
    made_from = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    made_from |= {"train_sha256": fingerprint_texts(train), "test_sha256": fingerprint_texts(test)}
    if load_json(folder / "made_from.json") != made_from:  # Another run may be reading files that are right already.
        with whole_folder(folder) as temporary:
            for name, table in (("train", train), ("test", test)):
                table[["label", "text"]].to_csv(temporary / f"{name}.csv", index=False)
            save_json(temporary / "made_from.json", made_from)
    return folder


def main() -> None:
    config = parse_config(__doc__)
    print(f"poisoned data in {make_poisoned_data(config)}")


if __name__ == "__main__":
    run_script(main)
