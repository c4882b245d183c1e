"""STRIP: a text whose prediction stays sure whatever words are replaced (Gao et al., ACSAC 2019; STRIP-ViTA, TDSC 2021)."""

import random
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from detection.detector import Detector, Scores, Watched
from pipeline.training import predict
from util import UserError

COPIES = 20
"""Changed copies of each text."""
REPLACED = 0.5
"""Share of a text's words that a copy has others for, one word at least."""


def telling_words(texts: list[str]) -> list[list[str]]:
    """The words of each text, those of the highest tf-idf first; texts without words are left out.

    Raises:
        UserError: no text has any.
    """
    vectorizer = TfidfVectorizer()
    if not any(map(vectorizer.build_analyzer(), texts)):
        raise UserError("STRIP puts words of other texts in, and no clean validation text has one of two letters or more")
    weight, names = vectorizer.fit_transform(texts).tocsr(), vectorizer.get_feature_names_out()
    found = []
    for row in weight:
        order = np.lexsort((row.indices, -row.data))
        found.append([str(names[column]) for column in row.indices[order]])
    return [words for words in found if words]


def replacements(pool: list[list[str]], rng: random.Random) -> Iterator[str]:
    """Words of one text after another, drawn at random."""
    while True:
        yield from rng.choice(pool)


def copies(text: str, pool: list[list[str]], seed: int) -> list[str]:
    """`COPIES` copies of a text with words at random places replaced by those of other texts; of seed and text alone."""
    rng, result = random.Random(f"{seed} {text}"), []
    for _ in range(COPIES):
        words = text.split()
        new = replacements(pool, rng)
        for place in rng.sample(range(len(words)), max(1, round(REPLACED * len(words))) if words else 0):
            words[place] = next(new)
        result.append(" ".join(words))
    return result


def fit(watched: Watched, clean: pd.DataFrame) -> Scores:
    """The score is minus the mean, over the copies of one text, of the entropy of their predictions."""
    pool = telling_words(list(clean["text"]))

    def scores(texts: list[str]) -> np.ndarray:
        changed = [copy for text in texts for copy in copies(text, pool, watched.seed)]
        logits = predict(watched.classifier, watched.tokenise(changed), "STRIP")  # [text * copy, class]
        entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1)
        return -entropy.view(len(texts), COPIES).mean(1).numpy()

    return scores


STRIP = Detector(paper="Gao et al., ACSAC 2019 and TDSC 2021", fit=fit)
