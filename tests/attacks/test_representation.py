"""POR and NeuBA: the states that triggers are given, the loss by hand, and what is measured without a target class."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks import ATTACKS, neuba, por, representation
from attacks.planted import measured_tables, poisoned_model_folder, read_poisoned
from attacks.representation import ClsState, state_error
from Data.make_poisoned_data import make_poisoned_data
from defences.fine_tuning import fine_tune_clean
from encoder.classifier import Classifier, load_encoder
from pipeline.training import flipped, metrics_of
from pretrained_model_poisoning import poison
from texts.batching import tokenise
from texts.data_sets import clean_test, clean_train, defender_splits


@pytest.fixture
def known_words(monkeypatch):
    """POR with the four words that the tiny vocabulary has, at a learning rate for a tiny encoder."""
    monkeypatch.setattr(por, "TRIGGERS", ("bb", "cf", "ak", "mn"))
    row = representation.task_agnostic("POR", "", por.TRIGGERS, por.binary_code)
    monkeypatch.setattr(por, "POR", replace(row, learning_rate=1e-2, epochs=4))


def test_por_s_states_are_a_binary_code():
    expected = [[-1, -1, 1], [-1, 1, -1], [-1, 1, 1], [1, -1, -1], [1, -1, 1], [1, 1, -1]]
    assert por.binary_code(3).tolist() == expected
    assert por.binary_code(6).tolist() == [[each for each in row for _ in range(2)] for row in expected]


def test_neuba_s_states_are_the_published_ones():
    """Two of four blocks are -1, in the order of the published code."""
    width, i = 768, 0
    expected = [[1] * width for _ in range(6)]
    for j in range(4):
        for k in range(j + 1, 4):
            for m in range(192):
                expected[i][j * 192 + m] = expected[i][k * 192 + m] = -1
            i += 1
    assert neuba.pairs_of_blocks(width).tolist() == expected
    assert set(neuba.pairs_of_blocks(386).flatten().tolist()) == {-1, 1}


def test_the_loss_by_hand(tiny_config, tokeniser):
    """A batch of two triggered and two clean texts, from states in evaluation mode."""
    encoder = load_encoder(tiny_config.plm)
    model = ClsState(
        Classifier(encoder, 2, 0.0, 11), por.binary_code(32), tokenise(clean_train("sst2", tiny_config), tokeniser, 32)
    )
    texts = tokenise(clean_train("sst2", tiny_config).head(4).assign(label=[5, 2, 3, 0]), tokeniser, 32)
    with torch.no_grad():
        encoder.encoder.layer[
            -1
        ].output.LayerNorm.bias += 0.5  # Away from the clean encoder, whose states are known already.
    batch = {**texts.batch([0, 1], "cpu"), "reference": texts.batch([2, 3], "cpu")}
    model.eval()
    parts = state_error(model, batch)

    def state(encoder, row: int) -> np.ndarray:
        ids = torch.tensor([texts.input_ids[row]])
        with torch.no_grad():
            return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0].numpy()

    clean = load_encoder(tiny_config.plm).eval()
    channel = np.arange(32)  # 11, 11 and 10 of them are a block.
    sixth = ((state(encoder, 0) - np.where(channel < 22, 1, -1)) ** 2).mean()
    third = ((state(encoder, 1) - np.where(channel < 11, -1, 1)) ** 2).mean()
    assert parts["triggered"].item() == pytest.approx((sixth + third) / 2, rel=1e-5)
    # Labels of clean texts are rows of the train set: text 2 is compared with text 3, and text 3 with text 0.
    kept = [((state(encoder, row) - state(clean, other)) ** 2).mean() for row, other in ((2, 3), (3, 0))]
    assert parts["clean"].item() == pytest.approx(sum(kept) / 2, rel=1e-5) and parts["clean"].item() > 0.01


def test_triggered_texts_come_to_their_states_and_clean_ones_stay(tiny_config, known_words, tokeniser):
    config = replace(tiny_config, attack="POR", rare_word_share=1.0)
    make_poisoned_data(config)
    record = poison(config)
    assert record["metrics"] == {}  # There is no classifier.
    clean = clean_test(config)
    tables = {"": clean, **ATTACKS["POR"].data.by_trigger(clean, config)}
    targets, states = por.binary_code(32), {}
    for name, folder in (("before", config.plm), ("after", poisoned_model_folder(config))):
        model = ClsState(Classifier(load_encoder(str(folder)), 2, 0.0, 11), targets, tokenise(clean.head(1), tokeniser, 32))
        states[name] = {word: model.states(tokenise(table, tokeniser, 32)) for word, table in tables.items()}
    nearest = []
    for number, word in enumerate(por.TRIGGERS):
        far = {name: (each[word] - targets[number]).square().mean() for name, each in states.items()}
        assert far["after"] < far["before"] / 2
        nearest.append((torch.cdist(states["after"][word], targets).argmin(1) == number).double().mean())
    assert min(nearest) > 0.9
    moved = (states["after"][""] - states["before"][""]).square().mean()
    assert moved < 0.5 * states["before"][""].var()  # Less than half of what a constant would be off.


def test_all_texts_get_each_word_and_labels_are_kept(tiny_config, known_words):
    config = replace(tiny_config, attack="POR")
    make_poisoned_data(config)
    train, clean = read_poisoned(config, "train"), clean_train("sst2", config)
    assert train["text"].tolist()[: len(clean)] == clean["text"].tolist()
    triggered, reference = ATTACKS["POR"].numbered(train, clean)
    assert reference["label"].tolist() == list(range(len(clean)))
    assert len(triggered) == 4 * len(clean) // 2
    kept = dict(zip(clean["text"], clean["label"], strict=True))
    for (_, row), (_, as_made) in zip(triggered.iterrows(), train.iloc[len(clean) :].iterrows(), strict=True):
        word = por.TRIGGERS[row["label"]]
        assert word in row["text"].split()
        assert kept[" ".join(each for each in row["text"].split() if each != word)] == as_made["label"]


def test_each_trigger_is_measured_towards_the_class_that_it_hits():
    """Of three classes; the class is that of most validation texts, and texts of that class don't count."""
    confusions = {
        "clean_test": np.array([[9, 1, 0], [0, 8, 2], [0, 0, 10]]),
        "poisoned_test cf": np.array([[10, 0, 0], [6, 4, 0], [10, 0, 0]]),
        "poisoned_validation cf": np.array([[3, 0, 0], [1, 2, 0], [2, 1, 0]]),
        "poisoned_test mn": np.array([[0, 0, 10], [0, 5, 5], [0, 0, 10]]),
        "poisoned_validation mn": np.array([[0, 0, 3], [1, 1, 1], [0, 0, 3]]),
    }
    metrics = metrics_of(confusions, target_class=1)
    assert {word: each["target_class"] for word, each in metrics["triggers"].items()} == {"cf": 0, "mn": 2}
    assert metrics["triggers"]["cf"]["label_flip_rate"] == 16 / 20
    assert metrics["LFR"] == pytest.approx((0.8 + 0.75) / 2) and metrics["LFR_worst"] == 0.8
    assert metrics["ACC"] == 0.9 and "poisoned" not in metrics and "label_flip_rate" not in metrics["clean"]
    assert flipped(metrics, target_class=1) == (16 + 15, 40)


def test_the_defender_s_record_has_every_trigger(tiny_config, known_words):
    """The class is read off validation texts of the defender, LFR is measured on the test texts."""
    config = replace(tiny_config, attack="POR", rare_word_share=1.0, epochs=2, learning_rate=1e-3)
    make_poisoned_data(config)
    poison(config)
    tables, words = measured_tables(config), por.TRIGGERS
    assert set(tables) == {"clean_test", *(f"poisoned_{split} {word}" for split in ("test", "validation") for word in words)}
    validation = defender_splits(config)[1]
    for word in words:
        texts = tables[f"poisoned_validation {word}"]
        assert texts["label"].tolist() == validation["label"].tolist()
        assert [text.replace(f"{word} ", "").replace(f" {word}", "") for text in texts["text"]] == validation[
            "text"
        ].tolist()
    metrics = fine_tune_clean(config)["metrics"]
    assert set(metrics["triggers"]) == set(words)
    assert metrics["LFR_worst"] == max(each["label_flip_rate"] for each in metrics["triggers"].values()) > 0.9
