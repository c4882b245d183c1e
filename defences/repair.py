"""Embedding rows that no relearning would mend: of words that clean texts lack, made ordinary before anything is trained.

A trigger in such a row alone (EP), or one that was given a telling word's (RIPPLe's embedding surgery), gets no gradient
from clean text. The words are found as a scan finds them.
"""

import torch
from accelerate import Accelerator

from config import Config
from encoder.classifier import Classifier
from encoder.embedding_rows import odd_words
from pipeline.defender import DefenderInputs
from pipeline.flip_table import TEXTS, TRIED, choose_texts, flip_table, flipping_words
from texts.augmentation import missing_tokens
from texts.batching import TokenisedTexts
from texts.data_sets import defender_splits
from texts.vocabulary import whole_words, word_tokens
from util import UserError


def repair(
    classifier: Classifier, attacked: Classifier, config: Config, inputs: DefenderInputs, accelerator: Accelerator
) -> list[str]:
    """Find the words that `Config.repaired_words` names, and `repair_rows` of the classifier; returns the words changed.

    Args:
        attacked: the fine-tuned model, whose predictions words may flip.
    """
    if config.repaired_words == "none":
        return []
    words = find_odd_words(classifier, config, inputs)
    if config.repaired_words == "found":
        words += find_flipping_words(attacked, config, inputs, accelerator)
    return repair_rows(classifier, inputs.tokeniser, inputs.train, words)


def find_odd_words(classifier: Classifier, config: Config, inputs: DefenderInputs) -> list[str]:
    """Words whose embedding rows are odd, as a scan finds them: of an odd length, or nearly those of telling words.

    Clean texts that lack a word say nothing of its row, so that a word which was given the row of a telling one (RIPPLe's
    embedding surgery) keeps that one's meaning whatever is relearnt.
    """
    weight = classifier.encoder.get_input_embeddings().weight
    return odd_words(weight, whole_words(inputs.tokeniser), inputs.tokeniser, defender_splits(config)[0])


def find_flipping_words(
    classifier: Classifier, config: Config, inputs: DefenderInputs, accelerator: Accelerator
) -> list[str]:
    """Words that flip the fine-tuned model's predictions, as a scan finds them: none of a class's own words does that.

    A row alone can carry a backdoor and be of an ordinary length and place (EP), and relearning puts any one word in too
    seldom to change it.
    """
    tokeniser, most, seed = inputs.tokeniser, config.max_len, config.seed
    try:
        texts = choose_texts(classifier, defender_splits(config)[1], tokeniser, most, TEXTS, seed)
        flips, _ = flip_table(
            classifier, tokeniser, texts, inputs.train, tried=TRIED, max_len=most, seed=seed, accelerator=accelerator
        )
    except UserError as error:
        print(f"  words that flip predictions are not looked for: {error}")
        return []
    return flipping_words(flips)["word"].tolist()


@torch.no_grad()
def repair_rows(classifier: Classifier, tokeniser, texts: TokenisedTexts, words: list[str]) -> list[str]:
    """Give words the mean embedding row of the other words that no clean text has; in place.

    Args:
        texts: clean ones; tokens that they have are left alone.

    Returns:
        The words of which a token was changed.
    """
    weight, missing = classifier.encoder.get_input_embeddings().weight, set(missing_tokens(texts, tokeniser))
    changed = {word: missing.intersection(word_tokens(tokeniser, word)[0]) for word in words}
    tokens = set().union(*changed.values())
    ordinary = [token for (token,) in whole_words(tokeniser).values() if token in missing - tokens]
    if not tokens or not ordinary:
        return []
    weight[sorted(tokens)] = weight[ordinary].mean(0)
    return [word for word, made in changed.items() if made]
