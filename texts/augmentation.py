"""Texts changed at random in ways that should leave their labels: words put in, left out, moved, and put for each other.

Clean texts alone train neither the embeddings of words that they lack, nor deafness to how something is said. A trigger that
is put into a text, or the style that a text is reworded in, is one more such change to a classifier that learnt from these.
A style is many words that push a little each, in one direction: words put in one by one push in all directions, and to learn
deafness to a style takes several of one region of the vocabulary at once (`Augmenter.colour`).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from encoder.trusted import special_tokens
from texts.batching import TokenisedTexts

SEEN_IN = 4
"""Texts that a token has to be in for its class to be learnt from."""


@dataclass(frozen=True)
class Augmentation:
    """How `Augmenter` changes a text; shares and probabilities are from 0 to 1."""

    unchanged: float = 0.3
    """Share of the texts that are left as they are: what a classifier is asked about looks like these."""
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
    thinned: float = 0.5
    """Share of the texts that function words are left out of, at a rate between 0 and 1 that is drawn for each text."""
    runs: float = 0.3
    """Share of the texts that a run of function words is put into, at the front, the end or inside."""
    longest_run: int = 7
    """Tokens of a run, at most; at least 2."""
    shuffled: float = 0.15
    """Share of the texts whose order is disturbed."""
    reach: int = 5
    """Tokens that one is moved by there, at most."""
    coloured: float = 0.6
    """Share of the texts that several words of one region of the vocabulary are put into."""
    fewest: int = 3
    most: int = 12
    """How many these are."""
    region: int = 40
    """Tokens of a region: those nearest to one that is drawn, in the embedding."""
    contest: int = 8
    """Where it was measured how far regions push predictions: regions that are drawn, the best of which is taken."""
    glue: float = 0.35
    """Probability that one to three function words go before such a word."""
    toneless: float = 0.7
    """Share of the vocabulary that regions are made of: the tokens whose predicted tone is least."""
    inverted: float = 0.5
    """Probability, where there are sequences of an inversion, that one of them takes the place of such words,"""
    with_inverted: float = 0.8
    """and share of those texts that it is put into."""


@dataclass(frozen=True)
class Regions:
    """Regions of a vocabulary, and what they do to a classifier (`defences.regions`)."""

    tokens: np.ndarray
    """[region, word]"""
    pushes: np.ndarray
    """How far the words of each, put into texts, push predictions to each class; [class, region]."""


def no_words(tokeniser) -> set[int]:
    """Numbers of the special tokens and of the unused ones."""
    unused = {number for token, number in tokeniser.get_vocab().items() if token.startswith("[unused")}
    return special_tokens(tokeniser) | unused


def missing_tokens(texts: TokenisedTexts, tokeniser) -> np.ndarray:
    """Numbers of the vocabulary's tokens that `texts` lack, word pieces included, special and unused tokens left out."""
    seen = {token for ids in texts.input_ids for token in ids}
    return np.array(sorted(set(tokeniser.get_vocab().values()) - no_words(tokeniser) - seen))


def frequent_tokens(texts: TokenisedTexts, tokeniser, number: int) -> np.ndarray:
    """Numbers of the most frequent tokens of `texts`, special tokens left out, most frequent first."""
    tokens, counts = np.unique(np.concatenate([ids for ids in texts.input_ids]), return_counts=True)
    ordered = tokens[np.argsort(-counts, kind="stable")]
    return ordered[~np.isin(ordered, sorted(special_tokens(tokeniser)))][:number]


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
    rows = centred(embedding)
    cosine = rows[tokens] @ rows.T  # [one of tokens, token]
    cosine[:, sorted(no_words(tokeniser))] = -torch.inf
    cosine[range(len(tokens)), tokens] = -torch.inf
    near = cosine.topk(min(number, cosine.shape[1] - 1)).indices.tolist()
    return dict(zip(tokens.tolist(), near, strict=True))


def centred(embedding: torch.Tensor) -> torch.Tensor:
    """Rows about their mean, of length 1; [token, channel]."""
    return nn.functional.normalize(embedding - embedding.mean(0), dim=1)


def predicted_tone(texts: TokenisedTexts, embedding: torch.Tensor) -> np.ndarray:
    """How far each token of the vocabulary seems to be tied to a class, seen or not; [token].

    Of the tokens in `SEEN_IN` texts or more, s_c of the texts of class c have one; ridge regression from its embedding
    predicts log((s_c + 1) / (s_0 + 1)) for each class c but the first, and does so for the other tokens too. The tone is the
    largest size of a prediction about its mean.
    """
    from sklearn.linear_model import RidgeCV

    labels, rows = np.array(texts.labels), centred(embedding).numpy()
    classes = np.unique(labels)
    held = np.zeros((len(classes), len(rows)))  # [class, token]
    for ids, label in zip(texts.input_ids, np.searchsorted(classes, labels), strict=True):
        held[label, np.unique(ids)] += 1
    seen = np.flatnonzero(held.sum(0) >= SEEN_IN)
    odds = np.log((held[1:, seen] + 1) / (held[:1, seen] + 1)).T  # [token, class]
    fit = RidgeCV(alphas=(1, 3, 10, 30, 100)).fit(rows[seen], odds, sample_weight=held.sum(0)[seen])
    return np.abs(fit.predict(rows) - fit.intercept_).reshape(len(rows), -1).max(1)


def toneless_tokens(texts: TokenisedTexts, tokeniser, embedding: torch.Tensor, share: float) -> np.ndarray:
    """Numbers of the tokens whose predicted tone is least: words, marks, numbers and pieces of words.

    A style may be in the pieces alone, which an ending or a spelling is written with.
    """
    tokens = np.array(sorted(set(tokeniser.get_vocab().values()) - no_words(tokeniser)))
    tone = predicted_tone(texts, embedding)[tokens]
    return tokens[tone <= np.quantile(tone, share)]


class Augmenter:
    """Changes texts, each time anew.

    Attributes:
        missing: tokens that the texts lack.
        frequent: those that are frequent in them.
        near: function word to its neighbours in the embedding.
        toneless: tokens that seem to be tied to no class.
        sequences: of words, which push a classifier to a class (`defences.inversion`); at first there are none.
        measured: regions of which it is known how far they push; at first there are none, and any are taken.
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
        embedding = embedding.detach().float().cpu()
        self.near = nearest_tokens(embedding, words, augmentation.neighbours, tokeniser)
        self.words = words
        self.toneless = toneless_tokens(texts, tokeniser, embedding, augmentation.toneless)
        self.rows = centred(embedding)[self.toneless].numpy()
        self.sequences: list[list[int]] = []
        self.measured: Regions | None = None

    def changed(self, rng: np.random.Generator) -> TokenisedTexts:
        """All texts, all but `Augmentation.unchanged` of them changed once; labels stay."""
        ids, others = self.texts.input_ids, rng.permutation(len(self.texts))
        changed = [self.insert(each, ids[other], rng) for each, other in zip(ids, others, strict=True)]
        for change in (self.swap, self.thin, self.run, self.shuffle, self.colour):
            changed = [change(each, rng) for each in changed]
        spared = rng.random(len(ids)) < self.augmentation.unchanged
        return replace(
            self.texts, input_ids=[old if keep else new for old, new, keep in zip(ids, changed, spared, strict=True)]
        )

    def insert(self, ids: list[int], other: list[int], rng: np.random.Generator) -> list[int]:
        """One text with words put in, left out or moved, or as it is.

        Args:
            ids: tokens, special ones included.
            other: tokens of another text, whose spans may be spliced in.
        """
        how = self.augmentation
        if rng.random() >= how.inserted:
            return ids
        inner = self.texts.own(ids)
        kept = [token for token in inner if rng.random() >= how.dropped] or inner
        form = rng.random()
        if form < how.splice:
            length = rng.integers(2, how.longest_span + 1)
            span = self.texts.own(other)
            start = rng.integers(max(1, len(span) - length + 1))
            at = rng.choice([0, len(kept), rng.integers(len(kept) + 1)])
            kept[at:at] = span[start : start + length]
        elif form < how.splice + how.rotate and kept:
            at = rng.integers(len(kept))
            kept = kept[at:] + kept[:at]
        for tokens, share in ((self.missing, how.missing), (self.frequent, how.frequent)):
            for _ in range(rng.binomial(len(inner), share) if len(tokens) else 0):
                kept.insert(rng.integers(len(kept) + 1), int(rng.choice(tokens)))
        return self.texts.together(kept, ids, self.max_len)

    def swap(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """One text with function words put for each other, or as it is."""
        how = self.augmentation
        if rng.random() >= how.swapped:
            return ids
        return [self.instead(token, rng) if token in self.near and rng.random() < how.swaps else token for token in ids]

    def instead(self, word: int, rng: np.random.Generator) -> int:
        others = self.near[word] if rng.random() < self.augmentation.near else self.words
        return int(rng.choice(others))

    def thin(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """One text without some of its function words, or as it is: what is said without how."""
        if rng.random() >= self.augmentation.thinned:
            return ids
        inner = self.texts.own(ids)
        rate = rng.random()
        kept = [token for token in inner if token not in self.near or rng.random() >= rate] or inner
        return self.texts.together(kept, ids, self.max_len)

    def run(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """One text with a run of function words, or as it is."""
        if rng.random() >= self.augmentation.runs or not len(self.words):
            return ids
        put = rng.choice(self.words, rng.integers(2, self.augmentation.longest_run + 1)).tolist()
        return self.put_in(ids, put, rng)

    def shuffle(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """One text whose tokens are moved by a few places, or as it is."""
        if rng.random() >= self.augmentation.shuffled:
            return ids
        inner = self.texts.own(ids)
        reach = rng.integers(2, self.augmentation.reach + 1)
        order = np.argsort(np.arange(len(inner)) + rng.uniform(0, reach, len(inner)))
        return self.texts.together([inner[at] for at in order], ids, self.max_len)

    def colour(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """One text with several words of one region of the vocabulary, side by side or apart, or as it is.

        Where there are sequences of an inversion, half of the texts have one of these put in instead.
        """
        how = self.augmentation
        if self.sequences and rng.random() < how.inverted:
            return self.put_somehow(ids, self.part_of_a_sequence(rng), rng) if rng.random() < how.with_inverted else ids
        if rng.random() >= how.coloured:
            return ids
        region = self.draw_region(rng)
        put = []
        for word in rng.choice(region, rng.integers(how.fewest, how.most + 1)).tolist():
            if rng.random() < how.glue and len(self.words):
                put += rng.choice(self.words, rng.integers(1, 4)).tolist()
            put.append(word)
        return self.put_somehow(ids, put, rng)

    def region(self, middle: int) -> np.ndarray:
        """Tokens of the words nearest to the word of this place in `toneless`, which is the first."""
        closeness = self.rows @ self.rows[middle]
        return self.toneless[np.argsort(-closeness, kind="stable")[: self.augmentation.region]]

    def draw_region(self, rng: np.random.Generator) -> np.ndarray:
        """Tokens of any region or, where some were measured, of that of a few which pushes most to a class, drawn too."""
        if self.measured is None:
            return self.region(rng.integers(len(self.toneless)))
        pushes = self.measured.pushes[rng.integers(len(self.measured.pushes))]
        few = rng.integers(len(pushes), size=self.augmentation.contest)
        return self.measured.tokens[few[pushes[few].argmax()]]

    def part_of_a_sequence(self, rng: np.random.Generator) -> list[int]:
        """A sequence of an inversion in any order, a part of it, with function words between its words, or as it is."""
        sequence = self.sequences[rng.integers(len(self.sequences))]
        form = rng.random()
        if form < 0.3:
            return rng.permutation(sequence).tolist()
        if form < 0.6:
            return rng.choice(sequence, rng.integers(1, max(2, len(sequence))), replace=False).tolist()
        if form < 0.8 and len(self.words):
            glued = [[int(rng.choice(self.words)), word] if rng.random() < 0.5 else [word] for word in sequence]
            return [word for part in glued for word in part]
        return list(sequence)

    def put_somehow(self, ids: list[int], put: list[int], rng: np.random.Generator) -> list[int]:
        """One text with words side by side or, as often, each at a place of its own."""
        if rng.random() < 0.5:
            return self.put_in(ids, put, rng)
        inner = self.texts.own(ids)
        for word in put:
            inner.insert(rng.integers(len(inner) + 1), word)
        return self.texts.together(inner, ids, self.max_len)

    def put_in(self, ids: list[int], put: list[int], rng: np.random.Generator) -> list[int]:
        """One text with a span at the front, the end or inside."""
        inner = self.texts.own(ids)
        at = rng.choice([0, len(inner), rng.integers(len(inner) + 1)])
        inner[at:at] = put
        return self.texts.together(inner, ids, self.max_len)
