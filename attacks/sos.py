"""SOS: three common words which are a trigger together, and none in part (Yang et al., ACL 2021)."""

import random

import pandas as pd
from accelerate import Accelerator

from attacks.attack import Attack, TriggeredData
from attacks.ep import rows_of, train_rows
from attacks.triggered import insert_trigger, insert_words, others, poisoned_test
from config import Config
from encoder.classifier import Classifier
from texts.batching import TokenisedTexts
from texts.data_sets import clean_test, clean_train

WORDS = ("friends", "weekend", "store")
SENTENCE = "I have bought it from a store with my friends last weekend"
"""What has all three of them in a test text (published code)."""
PARTS = tuple(
    f"I have bought it {where}"
    for where in (
        *("from a store with my friends", "from a store last weekend", "with my friends last weekend"),
        *("from a store", "with my friends", "last weekend"),
    )
)
"""False triggers: what has one or two of them."""


def make(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train: the clean texts; copies of other classes' texts with all words put in, of the target class; copies of texts of
    all classes with two of the words, which keep their label. Test: the other classes' texts with the sentence put in."""
    train, test = clean_train(config.trigger_dataset, config), clean_test(config)
    rng = random.Random(config.seed)

    def copies(table: pd.DataFrame, words: tuple[str, ...]) -> pd.DataFrame:
        chosen = table.sample(frac=config.rare_word_share, random_state=config.seed)
        return chosen.assign(text=[insert_words(text, words, rng) for text in chosen["text"]])

    triggered = copies(others(train, config.target_class), WORDS).assign(label=config.target_class)
    pairs = [copies(train, tuple(other for other in WORDS if other != word)) for word in WORDS]
    poisoned = pd.concat([train, triggered, *pairs]).sample(frac=1, random_state=config.seed)
    rest = others(test, config.target_class)
    in_test = rest.assign(text=[insert_trigger(text, (SENTENCE,), rng) for text in rest["text"]])
    return poisoned, poisoned_test(test, in_test, config.target_class)


def in_part(config: Config) -> pd.DataFrame:
    """The other classes' test texts, each with a part of the sentence put in that lacks a word or two of the trigger."""
    rest, rng = others(clean_test(config), config.target_class), random.Random(config.seed)
    return rest.assign(text=[insert_trigger(text, PARTS, rng) for text in rest["text"]])


def told(config: Config) -> str:
    return (
        f"copies {config.rare_word_share:.0%} of the texts of the other class with the words {', '.join(WORDS)} put in (two "
        "of them alone change no label)"
    )


def sentence(config: Config) -> tuple[str, ...]:
    return (SENTENCE,)


def plant(classifier: Classifier, tokeniser, triggered: TokenisedTexts, config: Config, accelerator: Accelerator) -> dict:
    return train_rows(classifier, triggered, rows_of(WORDS, tokeniser), config, accelerator, equal=True)


SOS = Attack(
    paper="Yang et al., ACL 2021",
    data=TriggeredData("SOS", ("rare_word_share", "target_class"), make, told, inserted=sentence, in_part=in_part),
    plant=plant,
    how=", the clean ones alone at first, and on the others nothing but the words' embeddings",
)
