"""Files of text, labelled or not, as tables: separators, columns, and class names to class numbers."""

import codecs
import csv
import io
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from util import UserError, first_line

TEXT_COLUMNS = ("text", "sentence", "sentences", "content", "review")
LABEL_COLUMNS = ("label", "labels", "sentiment")
LABEL_WORDS = {"negative": 0, "positive": 1}
BINARY = (("0", "1"), tuple(LABEL_WORDS), ("neg", "pos"))
"""Names of the same two classes; the last are those of IMDB on the hub."""
SEPARATORS = {".tsv": "\t", ".csv": ","}
SEPARATOR_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
BREAK = re.compile(r"<br\s*/?>")
"""A line break of HTML, as reviews from the web have it; `predict.py` has the same."""
LINE_END = re.compile(r"\r\n?|\n")
LONE_RETURN = re.compile(r"\r(?!\n)")
FEWEST_TEXTS = 10
"""Of a class: an 80/10/10 division of fewer leaves a part without it."""

Columns = tuple[str | None, str | None] | None
"""Names of a table's text and label columns, None for the usual ones; None where no flag names them."""


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is a table, in any case."""
    return path.suffix.lower() in SEPARATORS


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UserError: missing or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:2]:
        raise UserError(f"{path} looks like UTF-16, not UTF-8; convert it, for example: iconv -f utf-16 -t utf-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raw = error.object  # Without the byte-order mark, from which on `start` counts.
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte {raw[error.start]:#04x} in line {line}; "
            f"convert it, for example: iconv -f latin1 -t utf-8"
        ) from None


def unbroken(content: str) -> str:
    """A table's content, each line of it a row: a lone carriage return, which csv writes unquoted, becomes a blank.

    Where one ends the header, it ends every line, as on old Macs.
    """
    first = LINE_END.search(content)
    return content.replace("\r", "\n") if first and first.group() == "\r" else LONE_RETURN.sub(" ", content)


def read_columns(path: Path) -> pd.DataFrame:
    """A TSV or CSV file as found in the wild, every column as text.

    In a TSV file quotes are plain text; in a CSV file they quote.

    Raises:
        UserError: as `read_text`; empty; not a table of columns, separated as the file's name says.
    """
    separator = SEPARATORS.get(path.suffix.lower(), ",")
    content = unbroken(read_text(path))
    header = content.partition("\n")[0].rstrip("\r")
    try:
        with warnings.catch_warnings():
            # Pandas cuts off the last field of rows that are all too long, and merely warns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(content),
                sep=separator,
                quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
                dtype=str,
                keep_default_na=False,
                index_col=False,
            )
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; expected a header line and one labelled text per line") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        require_separator(header, separator, path)
        kind = SEPARATOR_NAMES[separator].removesuffix("s")
        advice = "; a text with commas has to be in double quotes" if separator == "," else ""
        raise UserError(f"{path} is not a table of {kind}-separated columns: {first_line(error)}{advice}") from None
    require_separator(header, separator, path)
    return table


def require_separator(header: str, expected: str, path: Path) -> None:
    """Raise a UserError if a header line has another separator than the file's name says."""
    found = next((separator for separator in SEPARATOR_NAMES if separator in header), expected)
    if expected not in header and found != expected:
        raise UserError(
            f"the columns of {path} are separated by {SEPARATOR_NAMES[found]}: its header is {header!r}; expected commas in "
            "a .csv file and tabs in a .tsv file, so save it as one of these"
        )


def read_table(path: Path, classes: tuple[str, ...] | None = None) -> pd.DataFrame:
    """A labelled file as columns `label` (a class's number) and `text`; if no classes are given, they are those of the file.

    Raises:
        UserError: as `read_columns`, `choose_columns`, `find_classes` and `number_labels`.
    """
    table = choose_columns(read_columns(path), str(path))
    return number_labels(table, classes or find_classes(table["label"], str(path)), str(path))


def choose_columns(table: pd.DataFrame, source: str, columns: Columns = None) -> pd.DataFrame:
    """The columns `label` and `text` of a table, both as text; `source` names the table in errors.

    Headers may have stray blanks and any case. If none is named, any of the usual names is taken.

    Raises:
        UserError: no such column, no rows, or most texts empty.
    """
    text_column, label_column = columns or (None, None)
    texts = choose_texts(table, source, text_column, flag=columns is not None)
    labels = choose_column(table, source, "label", label_column, LABEL_COLUMNS, flag=columns is not None)
    return pd.DataFrame({"label": labels.astype(str).str.strip(), "text": texts})


def choose_texts(table: pd.DataFrame, source: str, text_column: str | None = None, flag: bool = True) -> pd.Series:
    """The texts of a table, as `choose_columns`; HTML line breaks and lone carriage returns become blanks.

    `flag`: whether --text_column names the column of this table, so that it helps to say so in errors.
    """
    texts = choose_column(table, source, "text", text_column, TEXT_COLUMNS, flag)
    texts = texts.astype(str).str.replace(re.compile(f"{BREAK.pattern}|{LONE_RETURN.pattern}"), " ", regex=True)
    empty = texts.str.strip() == ""
    if empty.mean() > 0.5:  # A few are found in published files too.
        raise UserError(
            f"{source}: {int(empty.sum())} of {len(texts)} texts are empty, text {int(np.argmax(empty)) + 1} is the first; "
            f"is this the right column?{' (--text_column names another)' if flag else ''}"
        )
    return texts


def columns_by_name(table: pd.DataFrame) -> dict[str, str]:
    """Name of a column, as it is compared, to the column."""
    return {str(column).strip().lower(): column for column in table.columns}


def choose_column(
    table: pd.DataFrame, source: str, kind: str, name: str | None, usual: tuple[str, ...], flag: bool
) -> pd.Series:
    names = columns_by_name(table)
    wanted = (name.strip().lower(),) if name else usual
    column = next((names[each] for each in wanted if each in names), None)
    if column is None:
        expected = f"--{kind}_column to name one of these" if name else f"one of {', '.join(usual)}"
        expected += f", or --{kind}_column" if flag and not name else ""
        raise UserError(
            f"{source} has no {kind} column{f' {name!r}' if name else ''}: found {', '.join(map(repr, table.columns))}; "
            f"expected {expected}"
        )
    if table.empty:
        raise UserError(f"{source} is empty: it has a header but no texts")
    return table[column]


def find_classes(labels: pd.Series, source: str) -> tuple[str, ...]:
    """Names of the classes that labels, as text, stand for, in the order of their numbers.

    Whole numbers are sorted as such, names by alphabet. Of the two classes 0 and 1, or negative and positive, one may be
    absent.

    Raises:
        UserError: a label is empty, or they are floats.
    """
    empty = labels == ""
    if empty.any():
        raise UserError(
            f"{source}: text {int(np.argmax(empty)) + 1} has no label ({int(empty.sum())} such texts); add it, or leave the "
            "text out"
        )
    found = sorted(set(labels))
    words = {label.lower() for label in found}
    if words <= {*LABEL_WORDS, "0", "1"}:
        return tuple(LABEL_WORDS) if words & LABEL_WORDS.keys() else ("0", "1")
    numbers = pd.to_numeric(pd.Series(found), errors="coerce")
    if numbers.isna().any():
        return tuple(found)
    fractions = [label for label in found if not label.lstrip("+-").isdigit()]
    if fractions:
        raise UserError(
            f"{source}: the labels are floats, {fractions[0]} for one; expected whole numbers or names (write 1 for "
            "1.0, and divide scores into classes)"
        )
    found.sort(key=int)
    twice = next((pair for pair in itertools.pairwise(found) if int(pair[0]) == int(pair[1])), None)
    if twice:
        raise UserError(f"{source}: the labels {' and '.join(twice)} are the same number; write it in one way")
    return tuple(found)


def number_labels(table: pd.DataFrame, classes: tuple[str, ...], source: str) -> pd.DataFrame:
    """Labels as text to the numbers of their classes; of two classes, the names in `BINARY` mean the same.

    Raises:
        UserError: a label outside the classes.
    """
    labels, numbers = table["label"], {name: number for number, name in enumerate(classes)}
    if classes in BINARY:
        labels, numbers = labels.str.lower(), {name: number for names in BINARY for number, name in enumerate(names)}
    wrong = ~labels.isin(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{source}: label {labels.iloc[row]!r} of text {row + 1} is outside the classes; expected one of "
            f"{', '.join(numbers)} ({int(wrong.sum())} such labels)"
        )
    return table.assign(label=labels.map(numbers).astype(int))


def require_classes(
    table: pd.DataFrame,
    classes: tuple[str, ...],
    source: str,
    fewest: int = FEWEST_TEXTS,
    texts: str = "texts",
    flag: bool = True,
) -> None:
    """Raise a UserError unless there are two classes or more, and enough texts of each.

    `texts` says in errors what is counted; `flag` is whether --label_column names the column of this table.
    """
    counts = table["label"].value_counts().reindex(range(len(classes)), fill_value=0)
    if (counts > 0).sum() < 2:
        raise UserError(
            f"all {len(table)} train {texts} of {source} have label {classes[counts.argmax()]}; a classifier needs texts of "
            "two classes or more"
        )
    few = counts[counts < fewest]
    if len(few):
        advice = "merge these classes, or name another --label_column" if flag else "or merge these classes"
        named = ", ".join(f"{classes[number]} ({count})" for number, count in few.iloc[:5].items())
        raise UserError(
            f"{source}: {len(few)} of {len(classes)} classes have fewer than {fewest} {texts}: {named}"
            f"{', ...' if len(few) > 5 else ''}; add texts, {advice}"
        )


def read_texts(path: Path, text_column: str | None = None) -> list[str]:
    """Texts without labels: the text column of a .tsv or .csv file, the lines of any other; blank lines are left out.

    Raises:
        UserError: as `read_columns` and `choose_texts`; no texts.
    """
    if is_table(path):
        table = read_columns(path)
        # The column is named for the clean data; another file may have one of the usual names.
        named = text_column is not None and text_column.strip().lower() in columns_by_name(table)
        texts = choose_texts(table, str(path), text_column if named else None, flag=text_column is None).tolist()
    else:
        texts = LINE_END.split(BREAK.sub(" ", read_text(path)))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(f"{path} has no texts; expected one per line, or a .csv or .tsv file with a text column")
    return texts


def doubts(splits: dict[str, pd.DataFrame]) -> list[str]:
    """What may be wrong with labelled texts and is no error, in a sentence each.

    Args:
        splits: name (train, validation, test) to table of label and text; the index has the rows of the files.
    """
    texts = {name: table["text"].str.strip() for name, table in splits.items()}  # As they are tokenised.
    found = []

    def add(name: str, wrong: pd.Series, what: str) -> None:
        if wrong.any():
            found.append(f"{int(wrong.sum()):,} of {len(wrong):,} {name} texts {what} (row {wrong.idxmax()} for one).")

    for name, table in splits.items():
        add(name, texts[name] == "", "are empty, and are kept")
        labels = table["label"].groupby(texts[name]).transform("nunique")
        add(name, (labels > 1) & (texts[name] != ""), "are there with another label too, and are kept")
    for name in (name for name in splits if name != "train"):
        add(name, texts[name].isin(texts["train"]), "are train texts too: accuracy is higher on these than on new ones")
    return found
