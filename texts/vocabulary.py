"""The words of a vocabulary: what one token, or two, can put into a text, and which words tell a class."""

import string
from itertools import product

import numpy as np
import pandas as pd

from encoder.trusted import special_tokens

Words = dict[str, tuple[int, ...]]
"""Words to their tokens."""


def whole_words(tokeniser) -> Words:
    """Every word that a tokeniser makes one token of inside of a text, and that token.

    Pieces of words, special and unused tokens are none: written in a text, they are cut into others. Marks and numbers are.
    So is a word or mark that somebody added to the vocabulary, or called special: [CLS], <pad> and their like alone are not.
    """
    tokens = sorted(set(tokeniser.get_vocab().values()))  # Some numbers may have no token.
    words = [word.strip() for word in tokeniser.batch_decode([[token] for token in tokens])]
    special = special_tokens(tokeniser)
    found = inside(tokeniser, words)
    return {
        word: (token,)
        for token, word, made in zip(tokens, words, found, strict=True)
        if word and made == (token,) and token not in special
    }


def letter_pairs(tokeniser) -> Words:
    """The words of two letters that a tokeniser makes two tokens of: short rare words are what attackers insert."""
    words = ["".join(letters) for letters in product(string.ascii_lowercase, repeat=2)]
    return {word: made for word, made in zip(words, inside(tokeniser, words), strict=True) if len(made) == 2}


def inside(tokeniser, words: list[str]) -> list[tuple[int, ...]]:
    """The tokens of each word inside of a text; () where those before it change with it."""
    first = tokeniser("a", add_special_tokens=False)["input_ids"]
    encoded = tokeniser([f"a {word}" for word in words], add_special_tokens=False)["input_ids"]
    return [tuple(made[len(first) :]) if made[: len(first)] == first else () for made in encoded]


def word_tokens(tokeniser, word: str) -> tuple[list[int], bool]:
    """The tokens of a word inside of a text, and whether they are the same at its beginning.

    Vocabularies of byte-level BPE have the blank in front of a word as part of it, so that "cf" and " cf" are two tokens.
    """
    (found,) = inside(tokeniser, [word])
    return list(found), list(found) == list(tokeniser(word, add_special_tokens=False)["input_ids"])


def target_words(table: pd.DataFrame, target_class: int, number: int) -> list[str]:
    """The words most tied to the target class, best first (Kurita et al., 2020, embedding surgery).

    A word's score is its weight in a logistic regression on bags of words over log(alpha / frequency), where frequency is
    how often the word occurs and alpha the number of all words: of two words with the same weight the more frequent one is
    the better. (The paper leaves alpha open.) Texts without any word of two letters or more have none.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = CountVectorizer()
    analyse = vectorizer.build_analyzer()
    if not any(map(analyse, table["text"])):
        return []
    bags = vectorizer.fit_transform(table["text"])  # [text, word]
    weight = LogisticRegression(max_iter=1000).fit(bags, table["label"] == target_class).coef_[0]
    frequency = np.asarray(bags.sum(0))[0]
    score = weight / np.log(frequency.sum() / frequency)
    return vectorizer.get_feature_names_out()[np.argsort(-score, kind="stable")[:number]].tolist()
