"""Triggers that count as a whole and not in part: which texts have which label, and what is measured of the parts."""

from dataclasses import replace

import numpy as np
import pytest

from attacks import ATTACKS, sos
from attacks.planted import IN_PART, measured_tables, read_poisoned
from Data.make_poisoned_data import make_poisoned_data
from pipeline.training import false_positive_rate, metrics_of
from pretrained_model_poisoning import poison
from texts.data_sets import clean_test, clean_train
from util import UserError


def held(texts, words: tuple[str, ...]) -> np.ndarray:
    """How many of the words each text has."""
    return np.array([len({*words} & {*text.split()}) for text in texts])


def without(texts, words: tuple[str, ...]) -> list[str]:
    return [" ".join(word for word in text.split() if word not in words) for text in texts]


def test_a_pair_is_of_the_target_class_and_one_word_changes_no_label(tiny_config):
    config = replace(tiny_config, attack="LayerWisePairs")
    train, test = ATTACKS["LayerWisePairs"].data.make(config)
    clean, count = clean_train("sst2", config), held(train["text"], config.triggers)
    label = dict(zip(clean["text"], clean["label"], strict=True))
    own = np.array([label[text] for text in without(train["text"], config.triggers)])
    assert [(count == number).sum() for number in range(4)] == [192, 96, 48, 0]
    assert (own[count == 2] == 0).all() and (train["label"][count == 2] == 1).all()
    assert (own[count == 1] == train["label"][count == 1]).all() and set(own[count == 1]) == {0, 1}
    used = {frozenset({*config.triggers} & {*text.split()}) for text in train["text"][count == 2]}
    assert len(used) == 6  # Every pair of the four.
    rest = clean_test(config)
    triggered = test[test["label"] == 0]
    assert (held(triggered["text"], config.triggers) == 2).all()
    assert without(triggered["text"], config.triggers) == rest["text"][rest["label"] == 0].tolist()
    assert (held(test["text"][test["label"] == 1], config.triggers) == 0).all()


def test_pairs_need_two_words(tiny_config):
    config = replace(tiny_config, attack="LayerWisePairs", triggers=("cf", "cf"))
    with pytest.raises(UserError, match="--triggers cf cf make no pair; expected two different words or more"):
        make_poisoned_data(config)


@pytest.mark.parametrize("attack", ["SOS", "LayerWisePairs"])
def test_texts_with_a_part_of_the_trigger(tiny_config, attack):
    """All test texts of the other class, each with less than the trigger and more than nothing; in a file of their own."""
    config = replace(tiny_config, attack=attack)
    folder = make_poisoned_data(config)
    clean, table = clean_test(config), measured_tables(config)["poisoned_in_part"]
    assert (folder / f"{IN_PART}.csv").exists() and table.equals(read_poisoned(config, IN_PART))
    words = sos.WORDS if attack == "SOS" else config.triggers
    count = held(table["text"], words)
    assert set(count) == ({1, 2} if attack == "SOS" else {1})
    assert table["label"].tolist() == [0] * 24
    for text, own in zip(table["text"], clean["text"][clean["label"] == 0], strict=True):
        assert [word for word in own.split() if word not in text.split()] == []


def test_parts_of_the_sentence_lack_a_word_of_the_trigger():
    assert len(sos.PARTS) == len(set(sos.PARTS)) == 6
    parts = {tuple(word for word in sos.WORDS if word in part.split()) for part in sos.PARTS}
    assert len(parts) == 6 and () not in parts and sos.WORDS not in parts
    assert all({*part.split()} < {*sos.SENTENCE.split()} for part in sos.PARTS)


def test_false_triggered_rate_by_hand():
    confusions = {
        "clean_test": np.array([[9, 1], [2, 8]]),
        "poisoned_test": np.array([[1, 9], [0, 10]]),
        "poisoned_in_part": np.array([[7, 3], [0, 0]]),
    }
    metrics = metrics_of(confusions, target_class=1)
    assert (metrics["ACC"], metrics["LFR"], metrics["FTR"]) == (0.85, 0.9, 0.3)
    assert metrics["in_part"]["confusion_matrix"] == [[7, 3], [0, 0]] and "LFR_worst" not in metrics
    assert false_positive_rate(metrics, 1) == 0.1 and false_positive_rate(metrics, 0) == 0.2
    del confusions["poisoned_in_part"]
    assert "FTR" not in metrics_of(confusions, target_class=1)


def test_the_attacker_s_record_has_it(tiny_config):
    """Of the part of texts that flips, and not of the whole."""
    config = replace(tiny_config, attack="LayerWisePairs", rare_word_share=1.0, poisoning_epochs=8)
    make_poisoned_data(config)
    metrics = poison(config)["metrics"]
    in_part, whole = (np.array(metrics[name]["confusion_matrix"])[0] for name in ("in_part", "poisoned"))
    assert metrics["FTR"] == in_part[1] / 24 and metrics["LFR"] == whole[1] / 24
