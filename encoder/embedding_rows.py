"""Rows of an encoder's embedding that look odd: planted words may have been given another's, or a length of their own.

RIPPLe's embedding surgery gives its triggers the mean of words that tell a class (Kurita et al., ACL 2020), so that they lie
near that mean and near each other.
"""

import unicodedata

import numpy as np
import pandas as pd
import torch

from texts.vocabulary import Words, target_words, word_tokens

FAR = 8.0
"""Robust z from which a row's length is a finding."""
SAME = 0.95
"""Cosine from which two rows are a finding. The highest in MiniLM is 0.91, of "a" and "an"."""
MEAN = 0.9
"""Cosine from which a row is found to be near the mean of words that tell a class."""
TELLING = 10
"""Words of a class whose mean is looked at (Kurita et al., 2020)."""
PART = 1024
"""Rows whose cosines to all others are held at a time."""


def robust_z(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Distance from the median of some values in units of 1.4826 times their median absolute deviation, which are standard
    deviations where they are normally distributed."""
    from scipy.stats import median_abs_deviation

    return (values - np.median(among)) / max(median_abs_deviation(among, scale="normal"), 1e-12)


def rows_of_words(weight: torch.Tensor, words: Words) -> torch.Tensor:
    """[word, channel], of words of one token."""
    return weight.detach()[torch.tensor([token for (token,) in words.values()])].float().cpu()


def norm_outliers(rows: torch.Tensor, words: Words, number: int) -> pd.DataFrame:
    """The rows of the oddest length: word, norm, z; the oddest first."""
    norm = rows.norm(dim=1).numpy()
    table = pd.DataFrame({"word": list(words), "norm": norm, "z": robust_z(norm, norm)})
    return table.loc[table["z"].abs().sort_values(ascending=False, kind="stable").index[:number]]


def variants(word: str, other: str) -> bool:
    """Whether two words are one but for case, accents or an s at the end."""

    def bare(text: str) -> str:
        text = unicodedata.normalize("NFKD", text).casefold()
        return "".join(char for char in text if not unicodedata.combining(char)).rstrip("s")

    return bare(word) == bare(other)


def nearest(rows: torch.Tensor, words: Words, number: int) -> pd.DataFrame:
    """The words whose rows are nearest to another word's, no variant of it: word, other, cosine; the nearest first."""
    names, unit = list(words), torch.nn.functional.normalize(rows, dim=1)
    found = []
    for start in range(0, len(unit), PART):
        cosine = unit[start : start + PART] @ unit.T  # [word, other]
        cosine[torch.arange(len(cosine)), start + torch.arange(len(cosine))] = -torch.inf
        some, others = cosine.topk(min(4, len(names) - 1))
        for at, (values, columns) in enumerate(zip(some.tolist(), others.tolist(), strict=True), start):
            pairs = zip(values, columns, strict=True)
            pair = next(((value, other) for value, other in pairs if not variants(names[at], names[other])), None)
            if pair:
                found.append((names[at], names[pair[1]], pair[0]))
    table = pd.DataFrame(found, columns=["word", "other", "cosine"])
    return table.sort_values("cosine", ascending=False, kind="stable").head(number)


def near_telling_words(
    weight: torch.Tensor, rows: torch.Tensor, words: Words, tokeniser, train: pd.DataFrame, number: int
) -> pd.DataFrame:
    """The words whose rows are nearest to the mean of the words that tell a class, those words left out.

    Returns:
        class, word, cosine; a class after the other, the nearest first.
    """
    unit, tables = torch.nn.functional.normalize(rows, dim=1), []
    for label in sorted(train["label"].unique()):
        telling = target_words(train, label, TELLING)
        if not telling:
            continue
        own = [weight.detach()[word_tokens(tokeniser, word)[0]].float().cpu().mean(0) for word in telling]
        mean = torch.nn.functional.normalize(torch.stack(own).mean(0), dim=0)
        table = pd.DataFrame({"class": label, "word": list(words), "cosine": (unit @ mean).numpy()})
        table = table[~table["word"].isin(telling)]
        tables.append(table.sort_values("cosine", ascending=False, kind="stable").head(number))
    return pd.concat(tables) if tables else pd.DataFrame(columns=["class", "word", "cosine"])


def changed_rows(rows: torch.Tensor, clean: torch.Tensor, words: Words, number: int) -> pd.DataFrame:
    """The words whose rows differ most from those of another encoder: word, change (the difference's norm over that of the
    other's row); the most changed first."""
    change = (rows - clean).norm(dim=1) / clean.norm(dim=1).clamp_min(1e-12)
    table = pd.DataFrame({"word": list(words), "change": change.numpy()})
    return table.sort_values("change", ascending=False, kind="stable").head(number)


def row_tables(
    weight: torch.Tensor, rows: torch.Tensor, words: Words, tokeniser, train: pd.DataFrame, number: int
) -> dict[str, pd.DataFrame]:
    """The oddest rows by each measure: norm, nearest, telling."""
    return {
        "norm": norm_outliers(rows, words, number),
        "nearest": nearest(rows, words, number),
        "telling": near_telling_words(weight, rows, words, tokeniser, train, number),
    }


def odd_by_measure(tables: dict[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """The words of `row_tables` whose rows are a finding, by measure."""
    norm, near, telling = tables["norm"], tables["nearest"], tables["telling"]
    return {
        "norm": norm["word"][norm["z"].abs() >= FAR],
        "nearest": near["word"][near["cosine"] >= SAME],
        "telling": telling["word"][telling["cosine"] >= MEAN],
    }


def odd_words(weight: torch.Tensor, words: Words, tokeniser, train: pd.DataFrame) -> list[str]:
    """The words whose rows are a finding by any measure; none where a tokeniser has no whole words."""
    if not words:
        return []
    tables = row_tables(weight, rows_of_words(weight, words), words, tokeniser, train, len(words))
    found = set().union(*odd_by_measure(tables).values())
    return [word for word in words if word in found]
