"""Fine-pruning: which neurons go, that they stay away, and when the search ends."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, SIZE, make_classifier
from test_defences import defend
from transformers import AutoModel, NomicBertConfig

from defences import fine_pruning
from defences.defence import defended_model_folder, product_path
from defences.fine_pruning import mean_activation, output_layers, search_neurons, zero_neurons
from defences.fine_tuning import FINE_TUNING
from encoder.classifier import Classifier, load_classifier, load_encoder
from util import UserError


def test_mean_activation_by_hand(classifier, texts):
    """Of the first layer over all tokens, of the last over [CLS], text by text, so that nothing is padded."""
    first, last = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    plain = load_encoder(classifier.encoder.name_or_path).eval()
    lower, upper = plain.encoder.layer
    for ids in texts.input_ids:
        with torch.no_grad():
            states = lower.attention(plain.embeddings(torch.tensor([ids])))[0]
            first += lower.intermediate(states)[0].abs().double().sum(0)
            states = lower.output(lower.intermediate(states), states)
            last += upper.intermediate(upper.attention(states)[0])[0, 0].abs().double()
    activation = mean_activation(classifier, texts)
    torch.testing.assert_close(activation[0], first / int(texts.lengths.sum()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(activation[1], last / len(texts), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neuron_that_is_zeroed_is_heard_no_more(family):
    """Whatever activates it: the layer's last linear map then gives the same for any value of it, in every family."""
    classifier = make_classifier(family)
    linears = output_layers(classifier)
    assert [linear.in_features for linear in linears] == [64, 64, 64]
    pruned = torch.zeros(3, 64, dtype=torch.bool)
    pruned[1, [3, 60]] = True
    before = [linear.weight.clone() for linear in linears]
    zero_neurons(classifier, pruned)
    inputs = torch.randn(5, 64)
    other = inputs.clone()
    other[:, [3, 60]] = 7.0
    assert torch.equal(linears[1](inputs), linears[1](other))
    assert torch.equal(linears[0].weight, before[0]) and torch.equal(linears[1].weight[:, 4], before[1][:, 4])


def test_the_search_ends_before_the_group_that_costs_too_much(classifier):
    """Groups of 6 of 128 neurons, the least active first, of both layers."""
    generator = torch.Generator().manual_seed(0)
    activation = torch.rand(2, 64, generator=generator, dtype=torch.float64)
    before = [linear.weight.detach().clone() for linear in output_layers(classifier)]
    accuracies = iter([0.9, 0.86, 0.84])
    pruned, steps = search_neurons(classifier, activation, lambda: next(accuracies), 0.85)
    assert steps == [{"pruned": 6, "accuracy": 0.9}, {"pruned": 12, "accuracy": 0.86}, {"pruned": 18, "accuracy": 0.84}]
    assert torch.equal(pruned, activation <= activation.flatten().sort().values[11])
    for linear, weight, neurons in zip(output_layers(classifier), before, pruned, strict=True):
        assert torch.equal(linear.weight, weight * ~neurons)


def test_pruned_neurons_stay_away_while_the_rest_is_tuned(given, monkeypatch):
    accuracies = iter([0.9, 0.9, 0.9, 0.1])
    monkeypatch.setattr(fine_pruning, "accuracy", lambda *read: next(accuracies))
    config = replace(given, defence="fine_pruning", epochs=2, acc_threshold=0.5)
    record = defend(config)
    assert sum(record["search"]["pruned_neurons"]) == 18 and len(record["search"]["steps"]) == 4
    tuned, model = (load_classifier(folder) for folder in (product_path(config, FINE_TUNING), defended_model_folder(config)))
    counts = []
    for before, after in zip(output_layers(tuned), output_layers(model), strict=True):
        gone = (after.weight == 0).all(0)
        counts.append(int(gone.sum()))
        moved = (before.weight - after.weight).norm(dim=0)
        assert moved[~gone].min() > 1e-4
    assert counts == record["search"]["pruned_neurons"]


def test_a_model_that_is_below_the_threshold_from_the_start(given):
    config = replace(given, defence="fine_pruning", learning_rate=1e-9, acc_threshold=0.999)
    with pytest.raises(UserError, match="before any neuron is pruned, below acc_threshold"):
        defend(config)


def test_layers_whose_attention_is_registered_last():
    config = NomicBertConfig(**SIZE, max_position_embeddings=64)
    classifier = Classifier(AutoModel.from_config(config), 2, 0.0, seed=11)
    with pytest.raises(UserError, match="the layers of NomicBertModel can't be told, and with them which neurons it has"):
        output_layers(classifier)


def test_layers_that_cannot_be_told(classifier, monkeypatch):
    monkeypatch.setattr(fine_pruning, "layers_of", lambda classifier: [])
    with pytest.raises(UserError, match="the layers of BertModel can't be told"):
        output_layers(classifier)
