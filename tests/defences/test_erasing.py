"""Erasing: which directions are found, and that a classifier is deaf to them and to nothing else."""

import numpy as np
import pytest
import torch
from families import FAMILIES, make_classifier

from defences.erasing import block_directions, erase_task, keep_blocked, linear_layers, span, task_directions
from texts.batching import TokenisedTexts


def test_a_blocked_layer_is_deaf_to_the_directions_and_to_nothing_else(classifier):
    name, layer = next(iter(linear_layers(classifier).items()))
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 3, generator=rng, dtype=torch.float64))[0]
    mean, inputs = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((32,), (5, 32)))
    removed = inputs - (inputs - mean) @ basis @ basis.T
    expected = layer(removed.float())
    block_directions(classifier, {name: (mean, basis)})
    torch.testing.assert_close(layer(inputs.float()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer((inputs + 7 * basis[:, 0]).float()), expected, rtol=1e-4, atol=1e-5)


def test_the_directions_are_those_between_the_means_of_the_classes(classifier, texts):
    """Of the first layer, whose inputs no other blocked layer changes, by hand."""
    name, layer = next(iter(linear_layers(classifier).items()))
    means = []
    for label in (0, 1):
        states = []
        for index in np.flatnonzero(np.array(texts.labels) == label):
            ids = torch.tensor([texts.input_ids[index]])
            with torch.no_grad():
                states.append(classifier.encoder.embeddings(ids)[0].double())
        means.append((torch.cat(states).mean(0), torch.stack([each[0] for each in states]).mean(0)))
    apart = means[1][0] - means[0][0]
    _, basis = task_directions(classifier, texts)[name]
    torch.testing.assert_close(basis @ (basis.T @ apart), apart, rtol=1e-4, atol=1e-6)
    erase_task(classifier, texts, rounds=1)
    assert (layer.weight.double() @ apart).norm() < 1e-5 * apart.norm()


def test_a_basis_has_no_direction_that_is_rounding():
    """Equal columns span one direction, not any second; what is spanned already is nothing new; the largest come first."""
    rng = torch.Generator().manual_seed(0)
    one, two, three = torch.randn(3, 12, generator=rng, dtype=torch.float64)
    basis = span(torch.stack([one, one * (1 + 1e-9)], 1))
    assert basis.shape == (12, 1)
    torch.testing.assert_close(basis[:, 0].abs(), one.abs() / one.norm())
    again = span(torch.stack([one, two], 1), basis)
    assert again.shape == (12, 1) and (basis.T @ again).abs() < 1e-12
    assert span(torch.stack([one, 3 * one], 1), basis).shape == (12, 0) == span(torch.zeros(12, 2)).shape
    largest = span(torch.stack([one, 100 * three], 1), most=1)
    assert largest.shape == (12, 1) and (largest[:, 0] @ three).abs() / three.norm() > 0.99


def test_with_many_classes_half_of_the_directions_stay(classifier):
    """16 classes have 30 directions a round in 32 channels: blocked to the last, no layer would read anything."""
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, 30, 6).tolist(), 3] for _ in range(160)]
    texts = TokenisedTexts(ids, [number % 16 for number in range(160)], 0)
    blocked = erase_task(classifier, texts, rounds=3)
    assert {basis.shape[1] / len(basis) for basis in blocked.values()} <= {0.5, 30 / 64}
    for name, basis in blocked.items():  # And only what is listed is blocked: of random weights all else is read still.
        rank = torch.linalg.matrix_rank(linear_layers(classifier)[name].weight, rtol=1e-5)
        assert rank == min(linear_layers(classifier)[name].weight.shape[0], basis.shape[0] - basis.shape[1]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_made_deaf(family):
    """ModernBERT's layers have no bias, RoBERTa's tokens are numbered otherwise, DistilBERT's layers have other names."""
    classifier = make_classifier(family)
    texts = TokenisedTexts([[2, *range(5 + label, 11 + 3 * label), 3] for label in (0, 1, 2)] * 8, [0, 1, 2] * 8, 1)
    blocked = erase_task(classifier, texts, rounds=2, spared=0.5)
    keep_blocked(classifier, {name: basis.float() for name, basis in blocked.items()})
    for name, basis in blocked.items():
        weight = linear_layers(classifier)[name].weight.double()
        assert basis.shape[1] and (weight @ basis).norm() < 1e-4 * weight.norm(), name


def test_lower_layers_are_spared(classifier, texts):
    before = {name: layer.weight.clone() for name, layer in linear_layers(classifier).items()}
    blocked = erase_task(classifier, texts, rounds=2, spared=0.5)
    names = list(before)
    changed = [name for name in names if not torch.equal(before[name], linear_layers(classifier)[name].weight)]
    assert changed == names[round(len(names) / 2) :] == list(blocked)
    for basis in blocked.values():
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


def test_keeping_blocked_changes_nothing_that_is_blocked(classifier, texts):
    blocked = erase_task(classifier, texts, rounds=1)
    before = {name: layer.weight.clone() for name, layer in linear_layers(classifier).items()}
    keep_blocked(classifier, {name: basis.float() for name, basis in blocked.items()})
    for name, layer in linear_layers(classifier).items():
        torch.testing.assert_close(layer.weight, before[name], rtol=1e-4, atol=1e-6)
