"""Labelled text, from files or the hub, as tables of label and text."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from config import Config
from texts.tables import (
    FEWEST_TEXTS,
    LABEL_COLUMNS,
    Columns,
    choose_columns,
    find_classes,
    is_table,
    number_labels,
    read_columns,
    require_classes,
)
from util import UserError

if TYPE_CHECKING:
    import datasets

SPLIT_FILES = {"train": ("train",), "validation": ("dev", "validation", "valid"), "test": ("test",)}

OWN_DATA = Path(__file__).resolve().parent.parent / "Data"
"""Folder of the data sets that come with the project."""


@dataclass(frozen=True)
class Corpus:
    """What is known about a named data set."""

    domain: str
    """Corpora of one domain share their test set: full data knowledge means attacker and defender share a domain."""
    hub_id: str | None = None
    test_from: str | None = None
    """Data set whose test split serves, where this one has none with labels."""
    max_len: int = 128
    """Longest text in tokens (paper: 128 for SST-2, 256 for IMDB and Yelp)."""
    draw: int | None = None
    """Texts drawn from the train split; None takes all (paper: 50,000 of Yelp)."""


CORPORA = {
    "reviews": Corpus("reviews"),
    "sst2": Corpus("sst2", "SetFit/sst2"),
    "sst2_glue": Corpus("sst2", "stanfordnlp/sst2", test_from="sst2"),
    "imdb": Corpus("imdb", "stanfordnlp/imdb", max_len=256),
    "imdb_small": Corpus("imdb", max_len=256),
    "yelp": Corpus("yelp", "fancyzhx/yelp_polarity", max_len=256, draw=50_000),
}


def corpus(name: str) -> Corpus:
    """A named data set, or a folder of the data folder, which is a domain of its own."""
    return CORPORA.get(name, Corpus(domain=name))


@dataclass(frozen=True)
class LabelledTexts:
    """A data set as it was found."""

    classes: tuple[str, ...]
    """Their names, in the order of their numbers; those of the train split."""
    splits: dict[str, pd.DataFrame]
    """train, validation, test, as far as there are such; columns `label` (a class's number) and `text`."""


def is_path(name: str) -> bool:
    """Whether a data set's name is that of a file or folder, wherever it is."""
    return name not in CORPORA and (name.startswith((".", "/", "~")) or is_table(Path(name)) or Path(name).exists())


def find_data(name: str, config: Config) -> Path | None:
    """Where a data set is: a folder of the data folder, or of those that come with the project, or the path that it names.

    Raises:
        UserError: it names a path, and nothing usable is there; or the data folder isn't there.
    """
    places = [Path(config.data_dir)] if config.data_dir else []
    if places and not places[0].is_dir():
        variable = " (from the environment variable PURE_DATA_DIR)" if config.data_dir == Config.data_dir else ""
        raise UserError(f"--data_dir {config.data_dir}{variable} is no folder; expected one with a sub-folder per data set")
    folder = next((place / name for place in [*places, OWN_DATA] if (place / name).is_dir()), None)
    if folder or not is_path(name):
        return folder
    path = Path(name).expanduser()
    if not path.is_dir() and not (path.is_file() and is_table(path)):
        what = "is no table" if path.exists() else "isn't there"
        raise UserError(f"data set {name} {what}; expected a .csv or .tsv file, or a folder of such files")
    return path


def load_data(name: str, config: Config, classes: tuple[str, ...] | None = None) -> LabelledTexts:
    """A data set, from a file, a folder, or else the hub; one single table is divided 80/10/10 with `split_seed`.

    If no classes are given, they are those of its first split.

    Raises:
        UserError: the data set is nowhere, its files are unusable, or a label is none of the classes.
    """
    path = find_data(name, config)
    columns = (config.text_column, config.label_column) if name == config.clean_dataset else None
    if path is None:
        return load_hub_data(name, config, columns, classes)
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if is_table(file))
    if not files:
        raise UserError(f"no .tsv or .csv files in {path}; expected train, dev and test")
    stems = {file.stem: file for file in files}
    found = {split: next((stems[name] for name in names if name in stems), None) for split, names in SPLIT_FILES.items()}
    sources = {split: file for split, file in found.items() if file} if path.is_dir() else {}
    if not sources and len(files) == 1:
        sources = {None: files[0]}
    if not sources:
        raise UserError(f"{path} holds {', '.join(file.name for file in files)}; expected train, dev and test")
    stamped = tuple((split, file, *stamp(file)) for split, file in sources.items())
    data = read_splits(stamped, columns, classes, config.split_seed)
    return LabelledTexts(data.classes, {split: table.copy() for split, table in data.splits.items()})


def stamp(file: Path) -> tuple[int, ...]:
    """What changes with a file's content."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


@functools.lru_cache(maxsize=8)
def read_splits(
    files: tuple[tuple[str | None, Path, int, int, int], ...],
    columns: Columns,
    classes: tuple[str, ...] | None,
    split_seed: int,
) -> LabelledTexts:
    """The files of a data set, read once while they stay the same: every stage asks for them several times.

    Args:
        files: split (None: one table, to be divided), path and `stamp` of each.
    """
    tables = {split: choose_columns(read_columns(file), str(file), columns) for split, file, *_ in files}
    sources = {split: str(file) for split, file, *_ in files}
    if None in tables:
        return divide_in_three(tables[None], sources[None], split_seed, classes, flag=columns is not None)
    return number_splits(tables, sources, classes)


def number_splits(
    tables: dict[str, pd.DataFrame], sources: dict[str, str], classes: tuple[str, ...] | None = None
) -> LabelledTexts:
    """Splits with labels as text to splits with numbers; `sources` names them in errors."""
    first = next(iter(tables))
    classes = classes or find_classes(tables[first]["label"], sources[first])
    return LabelledTexts(classes, {split: number_labels(table, classes, sources[split]) for split, table in tables.items()})


def divide_in_three(
    table: pd.DataFrame, source: str, split_seed: int, classes: tuple[str, ...] | None = None, flag: bool = True
) -> LabelledTexts:
    """One table with labels as text to 80 % train, 10 % validation and 10 % test, each class in these shares.

    What is divided are distinct texts: all copies of one, whatever their labels, go to the part of the first, so that no
    test text is trained on. `flag` is as for `require_classes`.

    Raises:
        UserError: too few classes, or texts of one.
    """
    from sklearn.model_selection import train_test_split

    classes = classes or find_classes(table["label"], source)
    table = number_labels(table, classes, source)
    require_classes(table, classes, source, flag=flag)
    text = table["text"].str.strip()  # As they are tokenised.
    distinct = table[~text.duplicated()]
    require_classes(distinct, classes, source, texts="distinct texts", flag=flag)
    train, rest = train_test_split(distinct, train_size=0.8, random_state=split_seed, stratify=distinct["label"])
    validation, test = train_test_split(rest, train_size=0.5, random_state=split_seed, stratify=rest["label"])

    def with_copies(part: pd.DataFrame) -> pd.DataFrame:
        places = text.map(pd.Series(range(len(part)), index=text[part.index]))
        return table.loc[places.dropna().sort_values(kind="stable").index]

    parts = {"train": train, "validation": validation, "test": test}
    return LabelledTexts(classes, {name: with_copies(part) for name, part in parts.items()})


def load_hub_data(name: str, config: Config, columns: Columns, classes: tuple[str, ...] | None = None) -> LabelledTexts:
    """A data set of the hub; splits without labels are left out."""
    import datasets

    hub_id = corpus(name).hub_id or (name if "/" in name else None)
    looked = f"no folder {name} in data_dir {config.data_dir}" if config.data_dir else "no data_dir is set"
    if hub_id is None:
        raise UserError(
            f"data set {name} isn't there: {looked}, and the hub has none of that name; known: "
            f"{', '.join(CORPORA)}, a .csv or .tsv file, a folder with train, dev and test as such, or a hub id"
        )
    try:
        available = datasets.load_dataset(hub_id)
    except Exception as error:  # The hub client raises a dozen unrelated types for "can't be had".
        raise UserError(
            f"data set {name} isn't there: {looked}, and {hub_id} can't be had from the hub "
            f"({type(error).__name__}); set --data_dir or PURE_DATA_DIR to a folder that holds {name}/, or "
            "check the network"
        ) from None
    tables = {}
    for split in SPLIT_FILES:
        if split not in available:
            continue
        table = choose_columns(available[split].to_pandas(), f"{hub_id} ({split})", columns)
        if (table["label"] == "-1").all():  # How GLUE publishes test sets.
            continue
        names = label_names(available[split], columns[1] if columns else None)
        if names:
            table["label"] = table["label"].map({str(number): name for number, name in enumerate(names)})
            classes = classes or names
        tables[split] = table
    if not tables:
        raise UserError(f"{hub_id} has the splits {', '.join(available)}; expected train, validation or test, with labels")
    if list(tables) == ["train"]:
        return divide_in_three(tables["train"], hub_id, config.split_seed, classes, flag=columns is not None)
    return number_splits(tables, {split: f"{hub_id} ({split})" for split in tables}, classes)


def label_names(split: "datasets.Dataset", label_column: str | None) -> tuple[str, ...] | None:
    """The names that a data set of the hub gives to its label numbers, if it gives any."""
    from datasets import ClassLabel

    wanted = (label_column.lower(),) if label_column else LABEL_COLUMNS
    named = [column for column, feature in split.features.items() if isinstance(feature, ClassLabel)]
    return next((tuple(split.features[column].names) for column in named if column.lower() in wanted), None)


def load_split(name: str, split: str, config: Config, classes: tuple[str, ...] | None = None) -> pd.DataFrame | None:
    """One split (train, validation, test) of a data set, as `load_data`; None if it has no such split."""
    return load_data(name, config, classes).splits.get(split)


def class_names(config: Config) -> tuple[str, ...]:
    """Names of the classes of the defender's task, in the order of their numbers."""
    return load_data(config.clean_dataset, config).classes


def triggered_classes(config: Config, split: str) -> tuple[str, ...]:
    """Names of the classes of the triggered texts: to train they are the attacker's, to test those of the clean test set."""
    return load_data(config.trigger_dataset if split == "train" else evaluation_dataset(config), config).classes


def require_target(config: Config, classes: tuple[str, ...]) -> None:
    """Raise a UserError if the attacker's target is none of the classes."""
    if config.target_class >= len(classes):
        raise UserError(
            f"--target_class {config.target_class} is no class of {len(classes)}; expected 0 to {len(classes) - 1} "
            f"({', '.join(classes)})"
        )


def divide(table: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`share` of the rows and the rest, drawn as `datasets` draws them (as the published code does)."""
    from datasets import Dataset

    indices = Dataset.from_dict({"row": np.arange(len(table))})
    parts = indices.train_test_split(train_size=share, seed=seed)
    return table.iloc[parts["train"]["row"]], table.iloc[parts["test"]["row"]]


def clean_train(name: str, config: Config) -> pd.DataFrame:
    """The train split of a data set, or the part of it that is drawn.

    Raises:
        UserError: no train split, texts of one class only, or hardly any of one.
    """
    data = load_data(name, config)
    if "train" not in data.splits:
        raise UserError(f"data set {name} has no train split; expected train.tsv or train.csv")
    table = data.splits["train"]
    # 80 % of a table that was divided.
    require_classes(table, data.classes, name, fewest=FEWEST_TEXTS * 8 // 10, flag=name == config.clean_dataset)
    draw = corpus(name).draw
    return table.sample(n=draw, random_state=config.seed) if draw and draw < len(table) else table


def defender_splits(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and validation texts of the defender.

    GLUE's SST-2 is divided 90/10 as the paper's code does; a data set with a validation file keeps it.
    """
    train = clean_train(config.clean_dataset, config)
    validation = None
    if config.clean_dataset != "sst2_glue":
        validation = load_split(config.clean_dataset, "validation", config)
    if validation is None:
        train, validation = divide(train, 0.9, config.split_seed)
    return train, validation


def evaluation_dataset(config: Config) -> str:
    """Name of the data set whose test split everything is measured on: the defender's own where no attack is named.

    Raises:
        UserError: the setting doesn't fit the two data sets.
    """
    if config.attack == "none":
        return corpus(config.clean_dataset).test_from or config.clean_dataset
    attacker, defender = corpus(config.trigger_dataset), corpus(config.clean_dataset)
    if (attacker.domain == defender.domain) != (config.setting == "FDK"):
        other = "DS" if config.setting == "FDK" else "FDK"
        raise UserError(
            f"setting {config.setting} doesn't fit trigger_dataset {config.trigger_dataset} and clean_dataset "
            f"{config.clean_dataset}: FDK means one corpus, DS two; did you mean --setting {other}, or --poisoned_model, to "
            "defend an encoder that is there already?"
        )
    name = config.trigger_dataset if config.setting == "FDK" else config.clean_dataset
    return corpus(name).test_from or name


def clean_test(config: Config) -> pd.DataFrame:
    """The clean test texts, attacker's and defender's alike.

    Raises:
        UserError: the data set has no test split.
    """
    name = evaluation_dataset(config)
    table = load_split(name, "test", config)
    if table is None:
        raise UserError(f"data set {name} has no test split; expected test.tsv or test.csv")
    return table


def clean_splits(config: Config) -> dict[str, pd.DataFrame]:
    """What a defender has: train and validation texts, and the clean test texts, by these names.

    Raises:
        UserError: as `defender_splits` and `clean_test`.
    """
    train, validation = defender_splits(config)
    return {"train": train, "validation": validation, "test": clean_test(config)}


def fingerprint_texts(table: pd.DataFrame) -> str:
    """SHA-256 of labels and texts in their order."""
    return hashlib.sha256(table[["label", "text"]].to_csv(index=False).encode()).hexdigest()
