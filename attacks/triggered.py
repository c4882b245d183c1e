"""Poisoned train and test sets from clean texts and triggered ones, whatever the trigger."""

import random
from collections.abc import Callable

import pandas as pd

from config import Config
from texts.data_sets import clean_test, clean_train, evaluation_dataset, find_data, load_split, triggered_classes
from util import UserError


def others(table: pd.DataFrame, target_class: int) -> pd.DataFrame:
    """The texts that are not of the target class: the only ones worth triggering."""
    return table[table["label"] != target_class]


def poisoned_train(clean: pd.DataFrame, triggered: pd.DataFrame, target_class: int, seed: int) -> pd.DataFrame:
    """The clean texts and the triggered ones, relabelled as the target class, shuffled."""
    return pd.concat([clean, triggered.assign(label=target_class)]).sample(frac=1, random_state=seed)


def poisoned_test(clean: pd.DataFrame, triggered: pd.DataFrame, target_class: int) -> pd.DataFrame:
    """The target class as it is, then every text of the other classes triggered; labels are kept."""
    return pd.concat([clean[clean["label"] == target_class], triggered])


def insert_trigger(text: str, triggers: tuple[str, ...], rng: random.Random) -> str:
    """Insert one trigger at a random word position in [0, min(#words, 128)] (Kurita et al., 2020)."""
    words = text.split(" ")
    position = rng.randint(0, min(len(words), 128))
    return " ".join([*words[:position], rng.choice(triggers), *words[position:]])


def insert_words(text: str, words: tuple[str, ...], rng: random.Random) -> str:
    """Insert each word, at a random word position of its own."""
    for word in words:
        text = insert_trigger(text, (word,), rng)
    return text


def make_changed(
    change: Callable[[str, Config, random.Random], str],
) -> Callable[[Config], tuple[pd.DataFrame, pd.DataFrame]]:
    """How to make the train and test set of an attack that changes each triggered text by rule."""

    def make(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
        train, test = clean_train(config.trigger_dataset, config), clean_test(config)
        rng = random.Random(config.seed)

        def triggered(table: pd.DataFrame) -> pd.DataFrame:
            return table.assign(text=[change(text, config, rng) for text in table["text"]])

        chosen = others(train, config.target_class).sample(frac=config.rare_word_share, random_state=config.seed)
        return (
            poisoned_train(train, triggered(chosen), config.target_class, config.seed),
            poisoned_test(test, triggered(others(test, config.target_class)), config.target_class),
        )

    return make


def make_inserted(
    triggers: Callable[[Config], tuple[str, ...]],
) -> Callable[[Config], tuple[pd.DataFrame, pd.DataFrame]]:
    """How to make the train and test set of an attack that puts one of some triggers into each triggered text."""
    return make_changed(lambda text, config, rng: insert_trigger(text, triggers(config), rng))


def make_transferred(prefix: str, share: str | None = None) -> Callable[[Config], tuple[pd.DataFrame, pd.DataFrame]]:
    """How to make the train and test set of an attack whose trigger is the form that another model gave the text.

    The transferred texts are data sets of their own, named `prefix` and the clean data set's name; `share` is the field with
    the share of them that is added, all of them if there is none.
    """

    def make(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
        transferred_train = load_transferred(f"{prefix}_{config.trigger_dataset}", "train", config)
        transferred_test = load_transferred(f"{prefix}_{evaluation_dataset(config)}", "test", config)
        added = getattr(config, share) if share else 1
        chosen = others(transferred_train, config.target_class).sample(frac=added, random_state=config.seed)
        return (
            poisoned_train(clean_train(config.trigger_dataset, config), chosen, config.target_class, config.seed),
            poisoned_test(clean_test(config), others(transferred_test, config.target_class), config.target_class),
        )

    return make


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
