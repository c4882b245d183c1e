"""Trigger inversion: it finds what was planted, by gradient, for the class that it was planted for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FILLER

from defences.inversion import Inversion, invert
from encoder.classifier import load_classifier
from util import make_accelerator

ONE = Inversion(shortest=1, longest=1, sweeps=1, tried=5)
"""One word, among the five that the gradient ranks first."""


@pytest.fixture
def classifier(planted_classifier):
    return load_classifier(planted_classifier)


@pytest.fixture
def pool(tokeniser):
    return np.array(tokeniser.convert_tokens_to_ids([*FILLER, "bb", "cf", "ak", "mn"]))


def test_the_gradient_leads_to_the_planted_word(classifier, texts, pool, tokeniser):
    for seed in range(5):
        sequence, flipped = invert(classifier, texts, pool, 1, np.random.default_rng(seed), ONE)
        assert tokeniser.convert_ids_to_tokens(sequence) == ["cf"] and flipped > 0.9


def test_without_the_trigger_nothing_flips_as_many_texts(classifier, texts, pool, tokeniser):
    others = pool[pool != tokeniser.convert_tokens_to_ids("cf")]
    assert invert(classifier, texts, others, 1, np.random.default_rng(0), ONE)[1] < 0.5
    assert invert(classifier, texts, pool, 0, np.random.default_rng(0), ONE)[1] < 0.5


def test_words_are_kept_only_where_they_move_texts_further(classifier, texts, pool):
    """More sweeps over longer sequences move at least as many; the same random state finds the same."""
    how = Inversion(shortest=3, longest=3, sweeps=3)
    first, again = (invert(classifier, texts, pool, 1, np.random.default_rng(3), how) for _ in range(2))
    assert first == again and len(first[0]) == 3 and set(first[0]) <= set(pool.tolist())
    untouched = invert(classifier, texts, pool, 1, np.random.default_rng(3), replace(how, sweeps=0))
    assert untouched[0] != first[0] and first[1] >= untouched[1]
    # Where every text has moved far enough from the start, no word is better than another.
    assert invert(classifier, texts, pool, 1, np.random.default_rng(3), replace(how, enough=-100.0)) == untouched


def test_few_texts_and_few_words_suffice(classifier, texts, pool):
    one_each = texts.select([texts.labels.index(0), texts.labels.index(1)])
    invert(classifier, one_each, pool, 1, np.random.default_rng(0))
    how = Inversion(sweeps=0)
    found = [invert(classifier, one_each, pool[:1], 1, np.random.default_rng(seed), how)[0] for seed in range(40)]
    assert {len(sequence) for sequence in found} == {3, 4, 5, 6, 7, 8}
    assert {word for sequence in found for word in sequence} == {pool[0]}


def test_texts_as_long_as_the_encoder_reads_leave_room(classifier, texts, pool):
    """64 positions, texts of 64 tokens, and too few short ones."""
    long = replace(texts, input_ids=[[*(ids * 64)[:63], ids[-1]] for ids in texts.input_ids])
    how = Inversion(shortest=8, longest=8, sweeps=1)
    assert len(invert(classifier, long, pool, 1, np.random.default_rng(0), how)[0]) == 8


def test_the_arithmetic_is_the_accelerators(classifier, texts, pool):
    seen: set[bool] = set()
    classifier.register_forward_hook(lambda *given: seen.add(torch.is_autocast_enabled("cpu")))
    for accelerator, expected in ((None, False), (make_accelerator("cpu", "bf16"), True)):
        seen.clear()
        invert(classifier, texts, pool, 1, np.random.default_rng(0), ONE, accelerator)
        assert seen == {expected}
