"""The words of a vocabulary: what one token, or two, can put into a text."""

import string
from itertools import product

Words = dict[str, tuple[int, ...]]
"""Words to their tokens."""


def whole_words(tokeniser) -> Words:
    """Every word that a tokeniser makes one token of inside of a text, and that token.

    Pieces of words, special and unused tokens are none: written in a text, they are cut into others. Marks and numbers are.
    """
    tokens = range(len(tokeniser))
    words = [word.strip() for word in tokeniser.batch_decode([[token] for token in tokens])]
    special = {*tokeniser.all_special_ids, *getattr(tokeniser, "added_tokens_decoder", {})}
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
