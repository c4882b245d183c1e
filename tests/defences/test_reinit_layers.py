"""reinit_layers: which layers are drawn anew, and from what."""

from dataclasses import replace

import pytest
import torch
from families import SIZE
from test_defences import defend
from torch import nn
from transformers import AutoModel, EuroBertConfig

from defences import reinit_layers
from defences.reinit_layers import draw_anew
from encoder.classifier import Classifier, load_encoder
from util import UserError


@pytest.fixture
def drawn(tiny_plm):
    """A function from a number of layers and a seed to a classifier with new top layers; all biases were 3 before."""

    def make(number: int, seed: int = 11) -> Classifier:
        classifier = Classifier(load_encoder(str(tiny_plm)), 2, 0.0, seed=11)
        with torch.no_grad():
            for parameter in classifier.encoder.encoder.parameters():
                if parameter.dim() == 1:
                    parameter.fill_(3.0)
        draw_anew(classifier, number, seed)
        return classifier

    return make


def test_the_top_layers_and_nothing_else_are_drawn(drawn, tiny_plm):
    classifier, before = drawn(1), load_encoder(str(tiny_plm))
    lower, upper = classifier.encoder.encoder.layer
    for module in upper.modules():
        if isinstance(module, nn.Linear):
            assert module.bias.eq(0).all() and module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()
    for name, weight in before.encoder.layer[0].named_parameters():
        assert torch.equal(lower.get_parameter(name), torch.full_like(weight, 3.0) if weight.dim() == 1 else weight)
    assert torch.equal(classifier.encoder.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_norms_without_a_mean_are_drawn_anew_too():
    config = EuroBertConfig(**SIZE, num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0)
    classifier = Classifier(AutoModel.from_config(config), 2, 0.0, seed=11)
    norms = [module for module in classifier.encoder.layers.modules() if type(module).__name__.endswith("RMSNorm")]
    with torch.no_grad():
        for norm in norms:
            norm.weight.fill_(3.0)
        draw_anew(classifier, 1, 11)
    values = [norm.weight.unique().tolist() for norm in norms]
    assert values == [[3.0]] * (len(norms) * 2 // 3) + [[1.0]] * (len(norms) // 3) and len(norms) >= 6


def test_the_draw_follows_from_the_seed(drawn):
    first, again, other = (each.encoder.encoder.layer[1].output.dense.weight for each in (drawn(1), drawn(2), drawn(1, 12)))
    assert not torch.equal(first, other)
    assert not torch.equal(first, again)  # The layer below is drawn before.
    assert torch.equal(first, drawn(1).encoder.encoder.layer[1].output.dense.weight)


def test_more_layers_than_there_are(drawn, given):
    with pytest.raises(UserError, match=r"--reinit_layers 3 is out of range.*expected 1 to 2"):
        drawn(3)
    with pytest.raises(UserError, match="--reinit_layers 3"):
        defend(replace(given, defence="reinit_layers", reinit_layers=3))


def test_layers_that_cannot_be_told(drawn, monkeypatch):
    monkeypatch.setattr(reinit_layers, "layers_of", lambda classifier: [])
    with pytest.raises(UserError, match="the layers of BertModel can't be told apart"):
        drawn(1)


def test_it_learns_from_new_layers(given):
    record = defend(replace(given, defence="reinit_layers", epochs=4))
    assert record["metrics"]["ACC"] > 0.9 and record["settings"]["reinit_layers"] == 2
    tuned = defend(replace(given, defence="FT", epochs=4))
    assert record["training"]["reinit_layers"]["losses"] != tuned["training"]["fine_tuning"]["losses"]
