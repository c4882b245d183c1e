"""Labelled text, from files or the hub, as tables of label and text."""

import csv
import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from config import Config
from util import UserError, first_line

TEXT_COLUMNS = ("text", "sentence", "sentences", "content", "review")
LABEL_COLUMNS = ("label", "labels", "sentiment")
LABEL_WORDS = {"negative": 0, "positive": 1}
SPLIT_FILES = {"train": ("train",), "validation": ("dev", "validation", "valid"), "test": ("test",)}
NUM_LABELS = 2

OWN_DATA = Path(__file__).resolve().parent / "Data"
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


def read_table(path: Path) -> pd.DataFrame:
    """A TSV or CSV file as found in the wild, as columns `label` (int) and `text`.

    Headers may have stray blanks, any case and any of the usual names, in any order; labels may be 0/1 or words. In a TSV
    file quotes are plain text; in a CSV file they quote. HTML line breaks become blanks.

    Raises:
        UserError: missing, empty, not UTF-8, not a table, no text or label column, a label outside the classes, most texts
            empty.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte {raw[error.start]:#04x} in line {line}; "
            f"convert it, for example: iconv -f latin1 -t utf-8"
        ) from None
    separator, quoting = ("\t", csv.QUOTE_NONE) if path.suffix == ".tsv" else (",", csv.QUOTE_MINIMAL)
    try:
        with warnings.catch_warnings():
            # Pandas cuts off the last field of rows that are all too long, and merely warns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(content), sep=separator, quoting=quoting, dtype=str, keep_default_na=False, index_col=False
            )
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; expected a header line and one labelled text per line") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        kind = "tab" if path.suffix == ".tsv" else "comma"
        raise UserError(f"{path} is not a table of {kind}-separated columns: {first_line(error)}") from None
    return normalise(table, str(path))


def normalise(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Columns of any of the usual names to `label` (int) and `text`; `source` names the table in errors."""
    names = {str(column).strip().lower(): column for column in table.columns}
    text_column = next((names[name] for name in TEXT_COLUMNS if name in names), None)
    label_column = next((names[name] for name in LABEL_COLUMNS if name in names), None)
    for kind, column, expected in (("text", text_column, TEXT_COLUMNS), ("label", label_column, LABEL_COLUMNS)):
        if column is None:
            raise UserError(
                f"{source} has no {kind} column: found {', '.join(map(repr, table.columns))}; expected one "
                f"of {', '.join(expected)}"
            )
    if table.empty:
        raise UserError(f"{source} is empty: it has a header but no texts")
    words = table[label_column].astype(str).str.strip().str.lower()
    labels = pd.to_numeric(words.map(lambda word: LABEL_WORDS.get(word, word)), errors="coerce")
    wrong = ~labels.isin(range(NUM_LABELS))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{source}: label {words.iloc[row]!r} of text {row + 1} is outside the classes; expected 0 to "
            f"{NUM_LABELS - 1}, or {' or '.join(LABEL_WORDS)} ({int(wrong.sum())} such labels)"
        )
    texts = table[text_column].astype(str).str.replace(re.compile(r"<br\s*/?>"), " ", regex=True)
    empty = texts.str.strip() == ""
    if empty.mean() > 0.5:  # A few are found in published files too.
        raise UserError(
            f"{source}: {int(empty.sum())} of {len(texts)} texts are empty, text {int(np.argmax(empty)) + 1} is the first; "
            "is this the right column?"
        )
    return pd.DataFrame({"label": labels.astype(int), "text": texts})


def find_folder(name: str, config: Config) -> Path | None:
    """Folder of a data set's files: in the data folder, or among those that come with the project."""
    places = [Path(config.data_dir)] if config.data_dir else []
    return next((place / name for place in [*places, OWN_DATA] if (place / name).is_dir()), None)


def load_split(name: str, split: str, config: Config) -> pd.DataFrame | None:
    """One split (train, validation, test) of a data set, from the data folder or else the hub.

    A data set that comes as one single file is divided 80/10/10 with `split_seed`. None: the data set has no such split.

    Raises:
        UserError: the data set is in neither place, or its files are unusable.
    """
    folder = find_folder(name, config)
    if folder is None:
        return load_hub_split(name, split, config)
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in (".tsv", ".csv")}
    if not files:
        raise UserError(f"no .tsv or .csv files in {folder}; expected train, dev and test")
    for stem in SPLIT_FILES[split]:
        if stem in files:
            return read_table(files[stem])
    if len(files) > 1 or "train" in files:
        return None
    whole = read_table(next(iter(files.values())))
    train, rest = divide(whole, 0.8, config.split_seed)
    validation, test = divide(rest, 0.5, config.split_seed)
    return {"train": train, "validation": validation, "test": test}[split]


def load_hub_split(name: str, split: str, config: Config) -> pd.DataFrame | None:
    """One split of a data set of the hub; None if it has no such split with labels."""
    hub_id = corpus(name).hub_id
    looked = f"no folder {name} in data_dir {config.data_dir}" if config.data_dir else "no data_dir is set"
    if hub_id is None:
        raise UserError(
            f"data set {name} isn't there: {looked}, and the hub has none of that name; known: "
            f"{', '.join(CORPORA)}, or a folder of data_dir with train, dev and test as .tsv or .csv"
        )
    try:
        available = datasets.load_dataset(hub_id)
    except Exception as error:  # The hub client raises a dozen unrelated types for "can't be had".
        raise UserError(
            f"data set {name} isn't there: {looked}, and {hub_id} can't be had from the hub "
            f"({type(error).__name__}); set --data_dir or PURE_DATA_DIR to a folder that holds {name}/, or "
            "check the network"
        ) from None
    if split not in available:
        return None
    table = available[split].to_pandas()
    if "label" in table and (table["label"] < 0).all():  # How GLUE publishes test sets.
        return None
    return normalise(table, f"{hub_id} ({split})")


def divide(table: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`share` of the rows and the rest, drawn as `datasets` draws them (as the published code does)."""
    indices = datasets.Dataset.from_dict({"row": np.arange(len(table))})
    parts = indices.train_test_split(train_size=share, seed=seed)
    return table.iloc[parts["train"]["row"]], table.iloc[parts["test"]["row"]]


def clean_train(name: str, config: Config) -> pd.DataFrame:
    """The train split of a data set, or the part of it that is drawn.

    Raises:
        UserError: no train split, or texts of one class only.
    """
    table = load_split(name, "train", config)
    if table is None:
        raise UserError(f"data set {name} has no train split; expected train.tsv or train.csv")
    if table["label"].nunique() < NUM_LABELS:
        raise UserError(
            f"all {len(table)} train texts of {name} have label {table['label'].iloc[0]}; a classifier needs "
            f"texts of {NUM_LABELS} classes"
        )
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
    """Name of the data set whose test split everything is measured on.

    Raises:
        UserError: the setting doesn't fit the two data sets.
    """
    attacker, defender = corpus(config.trigger_dataset), corpus(config.clean_dataset)
    if (attacker.domain == defender.domain) != (config.setting == "FDK"):
        other = "DS" if config.setting == "FDK" else "FDK"
        raise UserError(
            f"setting {config.setting} doesn't fit trigger_dataset {config.trigger_dataset} and clean_dataset "
            f"{config.clean_dataset}: FDK means one corpus, DS two; did you mean --setting {other}?"
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


def fingerprint_texts(table: pd.DataFrame) -> str:
    """SHA-256 of labels and texts in their order."""
    return hashlib.sha256(table[["label", "text"]].to_csv(index=False).encode()).hexdigest()
