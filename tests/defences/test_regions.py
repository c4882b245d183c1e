"""Regions of a vocabulary: what pushes is found, for the class that it pushes to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WORDS

from defences.regions import Measurement, measure_regions
from encoder.classifier import load_classifier
from pipeline.training import log_odds, predict
from texts.augmentation import Augmentation, Augmenter
from texts.batching import TokenisedTexts, shortest_of_others


@pytest.fixture
def classifier(planted_classifier):
    return load_classifier(planted_classifier)


@pytest.fixture
def augmenter(classifier, texts, tokeniser):
    """Every word but those of a tone is a region of its own."""
    embedding = classifier.encoder.get_input_embeddings().weight
    result = Augmenter(texts, tokeniser, embedding, Augmentation(region=1, toneless=1.0), 64)
    toned = np.isin(result.toneless, tokeniser.convert_tokens_to_ids([*WORDS[0], *WORDS[1]]))
    result.toneless, result.rows = result.toneless[~toned], result.rows[~toned]
    return result


def measure(classifier, texts, augmenter, number=1000, **how):
    return measure_regions(classifier, texts, augmenter, number, np.random.default_rng(0), how=Measurement(**how))


def test_what_was_planted_pushes_most(classifier, texts, augmenter, tokeniser):
    found = measure(classifier, texts, augmenter, enough=100.0)
    assert found.pushes.shape == (2, len(found.tokens)) and found.tokens.shape[1] == 1
    words = tokeniser.convert_ids_to_tokens(found.tokens[:, 0].tolist())
    assert words[found.pushes[1].argmax()] == "cf" and words[found.pushes[0].argmax()] != "cf"


def test_a_push_is_the_mean_log_odds_of_texts_of_other_classes(classifier, texts, augmenter):
    """Of a word that is put in everywhere the same, wherever the places: into texts of nothing else."""
    zero, one = ([2, *[token] * 3, 3] for token in (augmenter.words[0], augmenter.words[1]))
    alike = replace(texts, input_ids=[one if label else zero for label in texts.labels])
    found = measure(classifier, alike, augmenter, words=5)
    for label, ids in enumerate((one, zero)):  # To class 0 the texts of class 1 are moved.
        word = ids[1]
        place = found.tokens[:, 0].tolist().index(word)
        text = TokenisedTexts([[2, *[word] * 8, 3]], [0], texts.pad_token_id)
        expected = log_odds(predict(classifier, text, "one"))[0, label].clamp(max=4.0).item()
        assert found.pushes[label, place] == pytest.approx(expected, rel=1e-4)
    assert (measure(classifier, texts, augmenter, enough=-50.0).pushes == -50.0).all()


def test_function_words_are_regions_too(classifier, texts, augmenter):
    found = measure(classifier, texts, augmenter, number=3)
    assert len(found.tokens) == 3 + len(augmenter.words) and len(augmenter.words) > 5
    assert found.tokens[3:, 0].tolist() == sorted(augmenter.words.tolist())
    # But those that seem to tell a class.
    told, augmenter.toneless = augmenter.words[0], augmenter.toneless[augmenter.toneless != augmenter.words[0]]
    augmenter.rows = augmenter.rows[: len(augmenter.toneless)]
    assert sorted(set(augmenter.words.tolist()) - {told}) == measure(classifier, texts, augmenter, 3).tokens[3:, 0].tolist()
    assert len(set(found.tokens[:3, 0].tolist())) == 3


def test_the_shortest_of_other_classes():
    lengths = [9, 3, 5, 4, 7, 3, 8]
    texts = TokenisedTexts([[1] * length for length in lengths], [0, 1, 0, 0, 0, 2, 1], 0)
    assert shortest_of_others(texts, 1, at_most=5, fewest=1).tolist() == [5, 3, 2]
    assert shortest_of_others(texts, 1, at_most=2, fewest=2).tolist() == [5, 3]
    assert shortest_of_others(texts, 0, at_most=9, fewest=9).tolist() == [1, 5, 6]


def test_short_texts_are_taken_where_there_are_enough(classifier, texts, augmenter, monkeypatch):
    lengths: list[int] = []

    def look(model, changed, *given):
        lengths.extend(len(ids) - 8 for ids in changed.input_ids)
        return torch.zeros(len(changed), 2)

    monkeypatch.setattr("defences.regions.predict", look)
    long = [[*(ids[:-1] * 9)[:40], 3] for ids in texts.input_ids]
    mixed = replace(texts, input_ids=[ids if at % 3 else long[at] for at, ids in enumerate(texts.input_ids)])
    measure(classifier, mixed, augmenter, text_length=20)
    assert max(lengths) <= 20
    lengths.clear()
    few = mixed.select(np.array([0, 1, 2, 3, 4, 5, 6, 7]))
    measure(classifier, few, augmenter, text_length=1)
    assert max(lengths) > 20
