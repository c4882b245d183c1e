"""Texts changed at random in ways that should leave their labels: words put in, left out, moved, and put for each other.

Clean texts alone train neither the embeddings of words that they lack, nor deafness to how something is said. A trigger that
is put into a text, or the style that a text is reworded in, is one more such change to a classifier that learnt from these.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from texts.batching import TokenisedTexts


@dataclass(frozen=True)
class Augmentation:
    """How `Augmenter` changes a text; shares and probabilities are from 0 to 1."""

    inserted: float = 0.8
    """Share of the texts that words are put into, left out of, or moved in."""
    dropped: float = 0.1
    """Share of a text's tokens that are dropped."""
    missing: float = 0.1
    """Tokens that no clean train text has, per token of the text: the only way to reach the embeddings of rare triggers."""
    frequent: float = 0.1
    """Frequent tokens, per token of the text."""
    splice: float = 0.5
    """Probability of a span of another text at the front, the end or inside."""
    rotate: float = 0.25
    """Probability that the text is cut in two at a random token and its halves change places."""
    longest_span: int = 10
    """Tokens of a span, at most; at least 2."""
    number_frequent: int = 80
    """How many tokens count as frequent."""
    swapped: float = 0.8
    """Share of the texts in which function words are put for each other: they carry a text's style, not its tone."""
    swaps: float = 0.35
    """Probability with which such a word is replaced there."""
    near: float = 0.6
    """Probability that what takes its place is one of its neighbours in the embedding, and not any function word."""
    neighbours: int = 12
    """How many neighbours a word has."""
    number_function: int = 200
    """Function words are found among so many of the most frequent tokens,"""
    tied: float = 0.7
    """as those whose log share of texts differs by less than this between any two classes."""


def no_words(tokeniser) -> set[int]:
    """Numbers of the special tokens and of the unused ones."""
    unused = {number for token, number in tokeniser.get_vocab().items() if token.startswith("[unused")}
    return {*tokeniser.all_special_ids, *unused}


def missing_tokens(texts: TokenisedTexts, tokeniser) -> np.ndarray:
    """Numbers of the vocabulary's tokens that `texts` lack, word pieces included, special and unused tokens left out."""
    seen = {token for ids in texts.input_ids for token in ids}
    return np.array(sorted(set(tokeniser.get_vocab().values()) - no_words(tokeniser) - seen))


def frequent_tokens(texts: TokenisedTexts, tokeniser, number: int) -> np.ndarray:
    """Numbers of the most frequent tokens of `texts`, special tokens left out, most frequent first."""
    tokens, counts = np.unique(np.concatenate([ids for ids in texts.input_ids]), return_counts=True)
    ordered = tokens[np.argsort(-counts, kind="stable")]
    return ordered[~np.isin(ordered, tokeniser.all_special_ids)][:number]


def function_words(texts: TokenisedTexts, tokeniser, number: int, tied: float) -> np.ndarray:
    """Those of the `number` most frequent tokens that are about as frequent in every class, most frequent first.

    With n_c texts of class c, s_c of which have the token, log((s_c + 2) / n_c) has to differ by less than `tied`.
    """
    tokens = frequent_tokens(texts, tokeniser, number)
    labels = np.array(texts.labels)
    held = np.array([np.isin(tokens, ids) for ids in texts.input_ids])  # [text, token]
    share = np.array([np.log((held[labels == label].sum(0) + 2) / (labels == label).sum()) for label in np.unique(labels)])
    return tokens[np.ptp(share, axis=0) < tied]


def nearest_tokens(embedding: torch.Tensor, tokens: np.ndarray, number: int, tokeniser) -> dict[int, list[int]]:
    """Each of `tokens` to the tokens of the most similar rows of `embedding`, [token, channel], by cosine about the mean.

    Special and unused tokens, and the token itself, are left out.
    """
    rows = nn.functional.normalize(embedding - embedding.mean(0), dim=1)
    cosine = rows[tokens] @ rows.T  # [one of tokens, token]
    cosine[:, sorted(no_words(tokeniser))] = -torch.inf
    cosine[range(len(tokens)), tokens] = -torch.inf
    near = cosine.topk(min(number, cosine.shape[1] - 1)).indices.tolist()
    return dict(zip(tokens.tolist(), near, strict=True))


class Augmenter:
    """Changes texts, each time anew.

    Attributes:
        missing: tokens that the texts lack.
        frequent: those that are frequent in them.
        near: function word to its neighbours in the embedding.
    """

    def __init__(
        self, texts: TokenisedTexts, tokeniser, embedding: torch.Tensor, augmentation: Augmentation, max_len: int
    ) -> None:
        """
        Args:
            texts: clean train texts, which `changed` changes.
            embedding: of the encoder, [token, channel].
            max_len: longest result, in tokens.
        """
        self.texts, self.augmentation, self.max_len = texts, augmentation, max_len
        self.missing = missing_tokens(texts, tokeniser)
        self.frequent = frequent_tokens(texts, tokeniser, augmentation.number_frequent)
        words = function_words(texts, tokeniser, augmentation.number_function, augmentation.tied)
        self.near = nearest_tokens(embedding.detach(), words, augmentation.neighbours, tokeniser)
        self.words = words

    def changed(self, rng: np.random.Generator) -> TokenisedTexts:
        """All texts, each changed once; labels stay."""
        ids, others = self.texts.input_ids, rng.permutation(len(self.texts))
        inserted = [self.insert(each, ids[other], rng) for each, other in zip(ids, others, strict=True)]
        return replace(self.texts, input_ids=[self.swap(each, rng) for each in inserted])

    def insert(self, ids: list[int], other: list[int], rng: np.random.Generator) -> list[int]:
        """One text with words put in, left out or moved, or as it is.

        Args:
            ids: tokens, the first and the last of them special.
            other: tokens of another text, whose spans may be spliced in.
        """
        how = self.augmentation
        if rng.random() >= how.inserted:
            return ids
        first, *inner, last = ids
        kept = [token for token in inner if rng.random() >= how.dropped] or inner
        form = rng.random()
        if form < how.splice:
            length = rng.integers(2, how.longest_span + 1)
            start = rng.integers(1, max(2, len(other) - length))
            at = rng.choice([0, len(kept), rng.integers(len(kept) + 1)])
            kept[at:at] = other[start : min(start + length, len(other) - 1)]
        elif form < how.splice + how.rotate and kept:
            at = rng.integers(len(kept))
            kept = kept[at:] + kept[:at]
        for tokens, share in ((self.missing, how.missing), (self.frequent, how.frequent)):
            for _ in range(rng.binomial(len(inner), share) if len(tokens) else 0):
                kept.insert(rng.integers(len(kept) + 1), int(rng.choice(tokens)))
        return [first, *kept[: self.max_len - 2], last]

    def swap(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """One text with function words put for each other, or as it is."""
        how = self.augmentation
        if rng.random() >= how.swapped:
            return ids
        return [self.instead(token, rng) if token in self.near and rng.random() < how.swaps else token for token in ids]

    def instead(self, word: int, rng: np.random.Generator) -> int:
        others = self.near[word] if rng.random() < self.augmentation.near else self.words
        return int(rng.choice(others))
