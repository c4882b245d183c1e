"""Equality with what the published functions computed on a fixed encoder and fixed texts (fp32, padded, eager)."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from attacks.layer_wise import layer_wise
from attention_head_pruning import head_variance, layer_variance, search_heads
from attention_normalization import layer_weights, pure_objective
from defences.meft import negative_entropy
from encoder.classifier import Classifier, LayerWiseClassifier, load_encoder, load_tokeniser, resolve_plm
from pipeline.training import accuracy, cross_entropy
from texts.batching import tokenise
from texts.tables import read_table

RELATIVE = 1e-4


@pytest.fixture(scope="module", params=[0, 1])
def case(request, golden_dir: Path, data_dir: Path):
    """A golden record, the classifier it was made with, and its texts."""
    golden = json.loads((golden_dir / "pure_golden.json").read_text())[request.param]
    head = json.loads((golden_dir / "classifier.json").read_text())
    source = resolve_plm("minilm")
    classifier = Classifier(load_encoder(source), 2, dropout=0.1, seed=0)
    with torch.no_grad():
        classifier.head.weight.copy_(torch.tensor(head["weight"]))
        classifier.head.bias.copy_(torch.tensor(head["bias"]))
    table = read_table(data_dir / golden["name"]).iloc[: golden["n"]]
    return golden, classifier.eval(), tokenise(table, load_tokeniser(source), golden["max_len"])


def close(expected):
    return pytest.approx(expected, rel=RELATIVE)


def test_golden(case):
    """One test, top to bottom as the method goes: each step needs the one before."""
    golden, classifier, texts = case
    first = texts.batch(range(32), torch.device("cpu"))
    set_seed(0)

    parts = layer_wise(LayerWiseClassifier(classifier).eval(), first)
    assert sum(parts.values()).item() == close(golden["first_batch"]["layerwise_loss"])

    assert accuracy(classifier, texts) == close(golden["accuracy"])
    variance = head_variance(classifier, texts, golden["max_len"])
    torch.testing.assert_close(variance, torch.tensor(golden["variance"], dtype=torch.float64), rtol=RELATIVE, atol=0)

    def measure_accuracy(pruned):
        classifier.attention.pruned = pruned
        return accuracy(classifier, texts)

    pruned, steps = search_heads(variance, measure_accuracy, golden["acc_threshold"], golden["prune_step"])
    assert pruned == {int(layer): heads for layer, heads in golden["pruned_heads"].items()}
    assert steps[-1]["accuracy"] == close(golden["accuracy_after_pruning"])
    assert measure_accuracy(pruned) == steps[-1]["accuracy"]

    v = layer_variance(classifier, texts, golden["max_len"])
    assert v == close(golden["layer_variance"])
    weights = layer_weights(v)
    assert weights == close(golden["layer_weight"])

    objective = partial(
        pure_objective, attention=classifier.attention, weights=weights, coefficient=golden["penalty_coefficient"]
    )
    classifier.eval()
    assert negative_entropy(classifier, first)["negative_entropy"].item() == close(golden["first_batch"]["max_entropy_loss"])
    parts = objective(classifier, first)
    assert parts["cross_entropy"].item() == close(golden["first_batch"]["cross_entropy"])
    assert parts["attention_penalty"].item() == close(golden["first_batch"]["attention_penalty"])
    sum(parts.values()).backward()
    squares = [p.grad.square().sum() for p in classifier.parameters() if p.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == close(golden["first_batch"]["grad_norm_total"])
    assert cross_entropy(classifier, first)["cross_entropy"].item() == parts["cross_entropy"].item()
