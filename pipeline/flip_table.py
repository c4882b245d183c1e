"""The flip table: which words of the vocabulary, put into texts, move their predictions to one class, and how far.

All words are ranked by a first-order estimate. The first of them are then inserted for real: into a few texts, and the first
of these into all.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from encoder.classifier import Classifier
from encoder.embedding_rows import robust_z
from pipeline.slots import Slots, first_order, inserted, open_slots, without_holder
from pipeline.training import log_odds, predict
from texts.batching import TokenisedTexts, tokenise
from texts.vocabulary import letter_pairs, whole_words
from util import UserError

FEW = 4
"""Texts, the shortest, that words are inserted into at first."""
KEPT = 100
"""Words per class that are then inserted into all texts."""
RANDOM = 100
"""Words drawn at random that the others are held against."""
TEXTS = 32
"""Clean texts that words are inserted into, over all classes, unless asked for others."""
TRIED = 1000
"""Words per class that are inserted, unless asked for others."""
FLIPPED = 0.9
"""Share of texts that a word flips from which it is a finding."""
UNUSUAL = 7.0
"""Robust z of its shift, among random words, from which it is one."""


def choose_texts(
    classifier: Classifier, table: pd.DataFrame, tokeniser, max_len: int, number: int, seed: int
) -> pd.DataFrame:
    """Texts that are classified rightly, as many of each class, `number` in all or a few more.

    Raises:
        UserError: there are such texts of one class at most.
    """
    predicted = predict(classifier, tokenise(table, tokeniser, max_len), "texts for the scan").argmax(-1).numpy()
    right = table[(predicted == table["label"].to_numpy()) & (table["text"].str.strip() != "")]
    found = right["label"].nunique()
    if found < 2:
        raise UserError(
            f"of {len(table)} labelled texts those that are classified rightly are of {found} classes; a scan needs such "
            "texts of two classes or more: are these the texts of a task that the encoder can learn?"
        )
    each = -(-number // found)
    return pd.concat([part.sample(min(len(part), each), random_state=seed) for _, part in right.groupby("label")])


def tokens_together(texts: TokenisedTexts) -> set[tuple[int, ...]]:
    """Every token of some texts, and every two that follow each other."""
    single = {(token,) for ids in texts.input_ids for token in ids}
    return single | {pair for ids in texts.input_ids for pair in itertools.pairwise(ids)}


def candidates(tokeniser, known: TokenisedTexts) -> pd.DataFrame:
    """The words that are ranked: word, tokens, known (whether some clean text has them).

    Raises:
        UserError: the tokeniser has no words.
    """
    seen = tokens_together(known)
    words = whole_words(tokeniser)
    if not any(word.isalpha() for word in words):
        raise UserError("the tokeniser has no whole words that could be inserted into texts; give another with --tokeniser")
    words |= letter_pairs(tokeniser)
    return pd.DataFrame(
        {"word": list(words), "tokens": list(words.values()), "known": [made in seen for made in words.values()]}
    )


@dataclass(frozen=True)
class Trial:
    """A classifier, and texts with room for words of one token and of two."""

    classifier: Classifier
    slots: dict[int, Slots]
    """Number of tokens to slots."""
    before: dict[int, torch.Tensor]
    """The same to log-odds [text, class] of these texts as they are."""
    accelerator: Accelerator | None = None
    """In whose arithmetic words are inserted; fp32 if there is none."""

    def estimates(self, words: pd.DataFrame, target: int) -> pd.Series:
        """`first_order` of words, with their index."""
        found = pd.Series(0.0, index=words.index)
        for length, part in words.groupby(words["tokens"].map(len)):
            tokens = torch.tensor(part["tokens"].tolist())
            found[part.index] = first_order(self.classifier, self.slots[length], tokens, target)
        return found

    def effects(self, words: pd.DataFrame, target: int, most: int | None = None) -> pd.DataFrame:
        """What words do to texts of all other classes, or to the shortest of them, with the words' index.

        Returns:
            texts, their number; flipped, the share that is given the class; shift, mean change of its log-odds.
        """
        found = pd.DataFrame(index=words.index, columns=["texts", "flipped", "shift"], dtype=float)
        for length, part in words.groupby(words["tokens"].map(len)):
            slots = self.slots[length]
            others = sorted(np.flatnonzero(slots.labels != target), key=lambda index: len(slots.input_ids[index]))[:most]
            logits = inserted(self.classifier, slots, torch.tensor(part["tokens"].tolist()), others, self.accelerator)
            shift = log_odds(logits)[..., target] - self.before[length][others, target]  # [word, text]
            found.loc[part.index, "texts"] = len(others)
            found.loc[part.index, "flipped"] = (logits.argmax(-1) == target).double().mean(1).numpy()
            found.loc[part.index, "shift"] = shift.double().mean(1).numpy()
        return found


def open_trial(
    classifier: Classifier,
    words: pd.DataFrame,
    texts: pd.DataFrame,
    tokeniser,
    max_len: int,
    seed: int,
    accelerator: Accelerator | None = None,
) -> Trial:
    """Room for words in some texts, columns `label` and `text`; one without room for all of them is left out.

    Raises:
        UserError: the tokeniser doesn't cut inserted words as they are cut alone.
    """
    whole = {row.word: row.tokens for row in words.itertuples() if len(row.tokens) == 1}
    slots = {
        length: open_slots(list(texts["text"]), texts["label"].to_numpy(), whole, length, tokeniser, max_len, seed)
        for length in sorted(set(words["tokens"].map(len)))
    }
    # The words are ranked, and found, by what they do to all texts: these have to be the same for words of any length.
    shared = set.intersection(*(set(each.texts) for each in slots.values()))
    slots = {length: each.of(shared) for length, each in slots.items()}
    if min(len(set(each.labels)) for each in slots.values()) < 2:
        raise UserError("the tokeniser doesn't keep inserted words apart from others; give another with --tokeniser")
    before = {length: log_odds(without_holder(classifier, each)) for length, each in slots.items()}
    return Trial(classifier, slots, before, accelerator)


def flip_table(
    classifier: Classifier,
    tokeniser,
    texts: pd.DataFrame,
    known: TokenisedTexts,
    *,
    tried: int,
    max_len: int,
    seed: int,
    accelerator: Accelerator | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank the words of the vocabulary by how they move predictions to each class.

    Args:
        texts: what words are inserted into, columns `label` and `text`, classified rightly.
        known: clean texts, whose words are told from those that no clean text has.
        tried: words per class that are inserted for real.
        accelerator: in whose arithmetic that is done; fp32 if there is none.

    Returns:
        A row per class and word: class; rank, from 1; word; known, whether some clean text has it; estimate, by first order,
        and estimate_rank; texts that it was inserted into, 0 for most; flipped, the share of them that then are given the
        class; shift, the mean change of its log-odds; z, the `robust_z` of that among random words.
        The same of the random words: class, word, texts, flipped, shift.

    Raises:
        UserError: no word can be inserted.
    """
    words = candidates(tokeniser, known)
    trial = open_trial(classifier, words, texts, tokeniser, max_len, seed, accelerator)
    single = words[words["tokens"].map(len) == 1]
    pool = single if single["known"].all() else single[~single["known"]]
    drawn = pool.sample(min(RANDOM, len(pool)), random_state=seed)
    tables, random_tables = [], []
    for target in range(classifier.head.out_features):
        chance = drawn[["word"]].join(trial.effects(drawn, target))
        table = words.assign(estimate=trial.estimates(words, target), texts=0.0, flipped=np.nan, shift=np.nan)
        for some, most in ((first_words, FEW), (finalists, None)):
            found = trial.effects(words.loc[some(table, tried)], target, most)
            table.loc[found.index, found.columns] = found
        table["texts"] = table["texts"].astype(int)
        table["estimate_rank"] = table["estimate"].rank(ascending=False, method="first").astype(int)
        table = table.sort_values(["texts", "flipped", "shift", "estimate"], ascending=False, kind="stable")
        table["z"] = robust_z(table["shift"], chance["shift"])
        table = table.assign(**{"class": target, "rank": range(1, len(table) + 1)})
        tables.append(table[COLUMNS])
        random_tables.append(chance.assign(**{"class": target}))
    return pd.concat(tables, ignore_index=True), pd.concat(random_tables, ignore_index=True)


COLUMNS = ["class", "rank", "word", "known", "texts", "flipped", "shift", "z", "estimate", "estimate_rank"]


def first_words(table: pd.DataFrame, tried: int) -> pd.Index:
    """The words that are inserted at first: those of the highest estimate that no clean text has, and a tenth as many of the
    others, which move predictions by their meaning."""
    best = table.sort_values("estimate", ascending=False, kind="stable")
    return best.index[~best["known"]][:tried].append(best.index[best["known"]][: tried // 10])


def finalists(table: pd.DataFrame, tried: int) -> pd.Index:
    """The words that then are inserted into all texts: those of the highest shift."""
    return table[table["texts"] > 0].sort_values("shift", ascending=False, kind="stable").index[:KEPT]


def flipping_words(flips: pd.DataFrame) -> pd.DataFrame:
    """The rows of a flip table that are a finding: words that no clean text has, and that flip most texts, unlike others."""
    most = flips.groupby("class")["texts"].transform("max")
    flipping = (flips["texts"] == most) & (flips["flipped"] >= FLIPPED) & (flips["z"] >= UNUSUAL)
    return flips[flipping & ~flips["known"]]


def word_ranks(table: pd.DataFrame, words: tuple[str, ...]) -> pd.DataFrame:
    """Where some words are in a flip table: of each its row of the class in which its rank is best.

    A word that the scan doesn't try, being more than one token, has a row of missing values.
    """
    best = table[table["word"].isin(words)].sort_values(["rank", "z"], ascending=[True, False], kind="stable")
    best = best.drop_duplicates("word")
    whole = best.select_dtypes("integer").columns  # A missing value makes floats of others.
    return best.astype(dict.fromkeys(whole, "Int64")).set_index("word").reindex(list(words)).reset_index()
