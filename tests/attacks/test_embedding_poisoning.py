"""EP and SOS: which rows of the embedding move, how far, and that nothing else does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks import ep, sos
from attacks.planted import poisoned_model_folder
from Data.make_poisoned_data import make_poisoned_data
from encoder.classifier import Classifier, load_encoder, load_tokeniser
from pretrained_model_poisoning import poison
from texts.batching import tokenise
from texts.data_sets import clean_test, clean_train
from util import make_accelerator

STILL = 1e-12
"""A learning rate at which nothing moves in the fine-tuning before."""


@pytest.fixture
def known_words(monkeypatch):
    """Words that the tiny vocabulary has."""
    monkeypatch.setattr(sos, "WORDS", ("bb", "cf", "ak"))
    monkeypatch.setattr(sos, "SENTENCE", "the bb of cf with ak")


def planted(config, attack: str, **changes) -> tuple[dict, object]:
    config = replace(config, attack=attack, **changes)
    make_poisoned_data(config)
    return poison(config), config


@pytest.mark.parametrize(("attack", "words"), [("EP", ["bb"]), ("SOS", ["ak", "bb", "cf"])])
def test_nothing_moves_but_the_words_rows(tiny_config, known_words, attack, words):
    record, config = planted(tiny_config, attack, poisoning_epochs=1, poisoning_learning_rate=STILL)
    before, after = (load_encoder(str(folder)).state_dict() for folder in (config.plm, poisoned_model_folder(config)))
    name = "embeddings.word_embeddings.weight"
    moved = ((after[name] - before[name]).abs() > 1e-6).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted(load_tokeniser(config.plm).convert_tokens_to_ids(words))
    # How long they are, stays.
    torch.testing.assert_close(after[name][moved].norm(dim=1), before[name][moved].norm(dim=1))
    for other in before.keys() - {name}:
        torch.testing.assert_close(after[other], before[other], rtol=0, atol=1e-9)
    assert len(record["planting"]["seconds"]) == ep.EPOCHS
    assert record["seconds"]["training"] == pytest.approx(
        sum(record["training"]["seconds"]) + sum(record["planting"]["seconds"]), abs=0.1
    )


@pytest.mark.parametrize("attack", ["EP", "SOS"])
def test_the_loss_on_triggered_texts_falls(tiny_config, known_words, attack, monkeypatch):
    """The tiny encoder's rows are too short to plant a whole backdoor without growing."""
    monkeypatch.setattr(ep, "EPOCHS", 60)  # Of two batches.
    record, _ = planted(tiny_config, attack)
    losses = record["planting"]["losses"]["cross_entropy"]
    assert record["metrics"]["ACC"] > 0.9 and np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])


def test_the_steps_by_hand(tiny_config):
    """Gradients add up over batches; each row is moved by its sum and given its norm again."""
    tokeniser = load_tokeniser(tiny_config.plm)
    row = tokeniser.convert_tokens_to_ids("the")
    texts = tokenise(clean_train("sst2", tiny_config).head(64), tokeniser, 32)
    config = replace(tiny_config, classifier_dropout=0.0)

    def fresh() -> Classifier:
        encoder = load_encoder(config.plm)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return Classifier(encoder, 2, 0.0, config.seed)

    classifier, by_hand = fresh(), fresh()
    ep.train_rows(classifier, texts, [row], config, make_accelerator("cpu", "fp32"))
    weight = by_hand.encoder.get_input_embeddings().weight
    norm, summed = weight[row].norm().item(), 0
    for epoch in range(3):
        for indices in ep.shuffled_batches(texts.lengths, config.batch_size, config.seed, epoch):
            batch = texts.batch(indices, torch.device("cpu"))
            weight.grad = None
            torch.nn.functional.cross_entropy(
                by_hand(batch["input_ids"], batch["attention_mask"]), batch["labels"]
            ).backward()
            summed = summed + weight.grad[row]
            with torch.no_grad():
                weight[row] -= 0.05 * summed
                weight[row] *= norm / weight[row].norm()
    torch.testing.assert_close(classifier.encoder.get_input_embeddings().weight, weight, rtol=1e-4, atol=1e-6)


def test_two_of_sos_s_words_change_no_label(tiny_config):
    train, test = sos.make(tiny_config)
    held = np.array([[word in text.split() for word in sos.WORDS] for text in train["text"]]).sum(1)
    clean = clean_train("sst2", tiny_config)
    assert (held == 0).sum() == len(clean) and (train["label"][held == 3] == 1).all()
    assert (held == 3).sum() == (clean["label"] == 0).sum() / 2
    assert (held == 2).sum() == 3 * len(clean) / 2 and (held == 1).sum() == 0
    assert set(train["label"][held == 2]) == {0, 1}
    triggered = test[test["label"] == 0]
    assert triggered["text"].str.contains(sos.SENTENCE, regex=False).all()
    assert len(test) == len(clean_test(tiny_config))
