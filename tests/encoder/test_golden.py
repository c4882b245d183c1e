"""Equality with what the published functions computed on a fixed encoder and fixed texts (fp32, padded, eager).

Their numbers come with no project file, so there are numbers of the project's own too (golden.py), made by code that equals
theirs: those need no data folder.
"""

import json
from pathlib import Path

import pytest
import torch
from golden import OWN, computed, own_case

from encoder.classifier import Classifier, load_encoder, load_tokeniser, resolve_plm
from texts.batching import tokenise
from texts.tables import read_table

RELATIVE = 1e-4


@pytest.fixture(scope="module", params=[0, 1])
def published(request, golden_dir: Path, data_dir: Path):
    """A golden record, the classifier it was made with, and its texts."""
    golden = json.loads((golden_dir / "pure_golden.json").read_text())[request.param]
    head = json.loads((golden_dir / "classifier.json").read_text())
    source = resolve_plm("minilm")
    classifier = Classifier(load_encoder(source), 2, dropout=0.1, seed=0)
    with torch.no_grad():
        classifier.head.weight.copy_(torch.tensor(head["weight"]))
        classifier.head.bias.copy_(torch.tensor(head["bias"]))
    table = read_table(data_dir / golden["name"]).iloc[: golden["n"]]
    return golden, classifier, tokenise(table, load_tokeniser(source), golden["max_len"])


def require_equal(found: dict, golden: dict) -> None:
    """Every number of the golden record, and the same heads."""
    close = {name: pytest.approx(golden[name], rel=RELATIVE) for name in ("layer_variance", "layer_weight")}
    close |= {name: pytest.approx(golden[name], rel=RELATIVE) for name in ("accuracy", "accuracy_after_pruning")}
    for name, expected in close.items():
        assert found[name] == expected, name
    torch.testing.assert_close(torch.tensor(found["variance"]), torch.tensor(golden["variance"]), rtol=RELATIVE, atol=0)
    assert found["pruned_heads"] == golden["pruned_heads"]
    for name, expected in golden["first_batch"].items():
        if name in found["first_batch"]:
            assert found["first_batch"][name] == pytest.approx(expected, rel=RELATIVE), name
    assert len(found["first_batch"].keys() & golden["first_batch"].keys()) == 5


def test_as_the_published_functions(published):
    golden, classifier, texts = published
    require_equal(computed(classifier, texts, golden), golden)


def test_as_the_project_s_own_numbers():
    """The same without a data folder."""
    golden = json.loads(OWN.read_text())
    require_equal(computed(*own_case(), golden), golden)
