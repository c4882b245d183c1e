"""How far the regions of a vocabulary push a classifier: several words of one, put into clean texts for real.

A trigger of style is many words that push a little each, in one direction. Alone none of them is a finding, and few of the
texts that are coloured at random (`texts.augmentation.Augmenter.colour`) get any of them: most of a vocabulary is elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from encoder.classifier import Classifier
from pipeline.training import log_odds, predict
from texts.augmentation import Augmenter, Regions
from texts.batching import TokenisedTexts, shortest_of_others


@dataclass(frozen=True)
class Measurement:
    """How a region is measured."""

    texts: int = 8
    """Texts that its words are put into, for each class."""
    text_length: int = 40
    """Tokens of the texts at most, where there are enough so short."""
    words: int = 8
    """Words that are put in at once."""
    enough: float = 4.0
    """Log-odds beyond this count as this."""


def measure_regions(
    classifier: Classifier,
    texts: TokenisedTexts,
    augmenter: Augmenter,
    number: int,
    rng: np.random.Generator,
    accelerator: Accelerator | None = None,
    how: Measurement = Measurement(),
) -> Regions:
    """Regions about words that are drawn, and how far each pushes predictions to each class; each function word is one more.

    A style may be one mark that clean texts have as well, but not as often: a function word is put in several times.
    Those of a predicted tone take no part.

    A push is the mean over clean texts of the other classes of min(m, `enough`), m the log-odds of the class after words of
    the region, drawn with repetition, were put in at the front, the end or inside.

    Args:
        texts: clean ones.
        augmenter: of whose toneless words the regions are.
        number: how many regions beside function words; fewer where there are fewer words.
    """
    middles = rng.choice(len(augmenter.toneless), min(number, len(augmenter.toneless)), replace=False)
    regions = [augmenter.region(middle) for middle in middles]
    function_words = np.intersect1d(augmenter.words, augmenter.toneless)
    found = np.array([*regions, *([word] * len(regions[0]) for word in function_words)])
    pushes = np.zeros((classifier.head.out_features, len(found)))
    for target in range(len(pushes)):
        others = shortest_of_others(texts, target, how.text_length, how.texts)
        chosen = rng.choice(others, min(how.texts, len(others)), replace=False)
        put = [
            augmenter.put_in(texts.input_ids[text], rng.choice(region, how.words).tolist(), rng)
            for region in found
            for text in chosen
        ]
        changed = TokenisedTexts(put, [target] * len(put), texts.pad_token_id)
        odds = log_odds(predict(classifier, changed, "regions", accelerator))[:, target]
        pushes[target] = odds.clamp(max=how.enough).view(len(found), -1).double().mean(1).numpy()
    return Regions(found, pushes)
