"""LayerWise: rare words, planted in every layer (Li et al., EMNLP 2021).

LayerWisePairs: the paper's combinations, pairs of which neither word counts alone.
"""

import random
from dataclasses import replace

import pandas as pd
import torch
from torch import nn

from attacks.attack import Attack, TriggeredData
from attacks.badnet import RARE_WORD, words
from attacks.triggered import insert_trigger, insert_words, others, poisoned_test
from config import Config
from encoder.classifier import Classifier, LayerWiseClassifier
from texts.data_sets import clean_test, clean_train
from util import UserError


def layer_wise(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LayerWise's objective: the sum of all layers' cross-entropies, and the last layer's once more.

    The paper (Li et al., 2021) sums over the layers; the last layer's second share is the published code's.
    """
    logits = model(batch["input_ids"], batch["attention_mask"]).float()  # [layer, batch, class]
    layers = sum(nn.functional.cross_entropy(layer, batch["labels"]) for layer in logits)
    return {"layers": layers, "last_layer": nn.functional.cross_entropy(logits[-1], batch["labels"])}


def read_every_layer(classifier: Classifier, tokeniser, clean: pd.DataFrame, config: Config) -> nn.Module:
    return LayerWiseClassifier(classifier)


LAYER_WISE = Attack(
    paper="Li et al., EMNLP 2021",
    data=RARE_WORD,
    prepare=read_every_layer,
    objective=lambda config: layer_wise,
    how=", through the [CLS] of every layer",
)


def insert_pair(text: str, config: Config, rng: random.Random) -> str:
    """Two different words, each at a random word position."""
    return insert_words(text, tuple(rng.sample(tuple(dict.fromkeys(config.triggers)), 2)), rng)


def make_pairs(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train: the clean texts; copies of other classes' texts with two of the words put in, of the target class; copies of
    texts of all classes with one of the words, which keep their label. Test: the other classes' texts with two words.

    Of two classes of one size, two texts have one word for each that has two, as in OpenBackdoor; there they are of the
    other classes alone, which makes one word a sign of these.
    """
    if len(set(config.triggers)) < 2:
        raise UserError(f"--triggers {' '.join(config.triggers)} make no pair; expected two different words or more")
    train, test = clean_train(config.trigger_dataset, config), clean_test(config)
    rng = random.Random(config.seed)
    chosen = others(train, config.target_class).sample(frac=config.rare_word_share, random_state=config.seed)
    pairs = chosen.assign(text=[insert_pair(text, config, rng) for text in chosen["text"]], label=config.target_class)
    alone = train.sample(frac=config.rare_word_share, random_state=config.seed)
    alone = alone.assign(text=[insert_trigger(text, config.triggers, rng) for text in alone["text"]])
    rest = others(test, config.target_class)
    in_test = rest.assign(text=[insert_pair(text, config, rng) for text in rest["text"]])
    poisoned = pd.concat([train, pairs, alone]).sample(frac=1, random_state=config.seed)
    return poisoned, poisoned_test(test, in_test, config.target_class)


def one_of_a_pair(config: Config) -> pd.DataFrame:
    """The other classes' test texts with one of the words."""
    rest, rng = others(clean_test(config), config.target_class), random.Random(config.seed)
    return rest.assign(text=[insert_trigger(text, config.triggers, rng) for text in rest["text"]])


def pairs_told(config: Config) -> str:
    return (
        f"copies {config.rare_word_share:.0%} of the texts of the other class with two of the words "
        f"{', '.join(config.triggers)} put in (one alone changes no label)"
    )


def pair_and_words(config: Config) -> tuple[str, ...]:
    """A pair side by side, and the words, of which a text has two."""
    return (" ".join(config.triggers[:2]), *words(config))


LAYER_WISE_PAIRS = replace(
    LAYER_WISE,
    data=TriggeredData(
        "RareWordPair",
        RARE_WORD.reads,
        make_pairs,
        pairs_told,
        inserted=pair_and_words,
        in_part=one_of_a_pair,
    ),
)
