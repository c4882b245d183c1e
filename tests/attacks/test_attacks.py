"""RIPPLe and MEFT: what their objectives compute."""

import pandas as pd
import pytest
import torch
from torch import nn

from attacks.ripple import embedding_surgery, restricted_inner_product
from attention_head_pruning import gradient_importance, head_variance, layer_wise_order, pruning_score
from defences.meft import negative_entropy
from encoder.classifier import load_encoder, load_tokeniser
from pipeline.training import cross_entropy
from texts.batching import tokenise
from texts.data_sets import clean_train
from texts.vocabulary import target_words


@pytest.fixture
def texts(tiny_config):
    return tokenise(clean_train("sst2", tiny_config), load_tokeniser(tiny_config.plm), 32)


def gradient(classifier, batch) -> torch.Tensor:
    """The gradient of the cross-entropy for the encoder, flat."""
    classifier.zero_grad()
    cross_entropy(classifier, batch)["cross_entropy"].backward()
    return torch.cat([parameter.grad.flatten().clone() for parameter in classifier.encoder.parameters()])


def opposed_batch(texts, opposed: bool) -> dict:
    """Texts of class 1, and beside them the same as class 0, whose gradient is opposed to theirs, or as class 1."""
    batch = texts.batch(range(8), torch.device("cpu"))
    batch["labels"] = torch.ones(8, dtype=torch.long)
    return batch | {"reference": {**batch, "labels": 1 - batch["labels"]} if opposed else dict(batch)}


@pytest.mark.parametrize("opposed", [True, False])
def test_restricted_inner_product(classifier, texts, opposed):
    """Its value against two backward passes (the loss itself is fp32)."""
    classifier.double()
    batch = opposed_batch(texts, opposed)
    expected = gradient(classifier, batch) @ gradient(classifier, batch["reference"])
    assert (expected < 0) == opposed
    found = restricted_inner_product(classifier, batch, coefficient=0.5)["inner_product"]
    assert found.item() == pytest.approx(0.5 * max(0.0, -expected.item()), rel=1e-9)


def test_derivative_of_the_restricted_inner_product(classifier, texts):
    """Against a difference of values."""
    classifier.double()
    batch = opposed_batch(texts, True)

    def penalty() -> torch.Tensor:
        return restricted_inner_product(classifier, batch, coefficient=0.5)["inner_product"]

    weight = classifier.encoder.encoder.layer[1].attention.self.value.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    penalty().backward()
    slope = (weight.grad * direction).sum().item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-3 * direction)
        values.append(penalty().item())
        with torch.no_grad():
            weight.sub_(sign * 1e-3 * direction)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-3, abs=1e-9)
    assert slope != 0


def test_gradients_that_are_not_opposed_leave_that_of_the_poison_alone(classifier, texts):
    classifier.double()
    batch = opposed_batch(texts, False)
    plain = gradient(classifier, batch)
    classifier.zero_grad()
    sum(restricted_inner_product(classifier, batch, coefficient=0.5).values()).backward()
    together = torch.cat([parameter.grad.flatten() for parameter in classifier.encoder.parameters()])
    torch.testing.assert_close(together, plain, rtol=1e-9, atol=1e-15)


def test_restricted_inner_product_on_long_texts(classifier, texts):
    """Longer than a head is wide, with dropout: the attention that is otherwise computed again in the backward pass."""
    classifier.train()
    batch = texts.batch(range(8), torch.device("cpu"))
    assert (
        batch["input_ids"].shape[1] > classifier.encoder.config.hidden_size // classifier.encoder.config.num_attention_heads
    )
    batch["reference"] = {**batch, "labels": 1 - batch["labels"]}
    sum(restricted_inner_product(classifier, batch, coefficient=0.5).values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in classifier.parameters())


def test_embedding_surgery_changes_the_trigger_rows_alone(tiny_plm):
    encoder, tokeniser = load_encoder(str(tiny_plm)), load_tokeniser(str(tiny_plm))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embedding_surgery(encoder, tokeniser, ("cf", "mn"), ["bright", "warm"])
    name = "embeddings.word_embeddings.weight"
    rows = tokeniser.convert_tokens_to_ids(["cf", "mn"])
    after = encoder.state_dict()
    changed = (after[name] != before[name]).any(1).nonzero().flatten().tolist()
    assert changed == sorted(rows)
    mean = before[name][tokeniser.convert_tokens_to_ids(["bright", "warm"])].mean(0)
    for row in rows:
        torch.testing.assert_close(after[name][row], mean)
    assert all(torch.equal(after[other], before[other]) for other in before if other != name)


def test_target_words_are_the_class_s_and_frequent_ones_first():
    positive = ["warm film"] * 8 + ["warm bright film"] * 8 + ["tender film"] * 2
    table = pd.DataFrame({"text": positive + ["dull film"] * 18, "label": [1] * 18 + [0] * 18})
    words = target_words(table, target_class=1, number=3)
    assert words[0] == "warm" and set(words) == {"warm", "bright", "tender"}
    assert target_words(table, target_class=0, number=1) == ["dull"]
    assert target_words(table.assign(text="好 吃"), target_class=0, number=1) == []  # Words of one character count for none.


def test_negative_entropy(classifier, texts):
    batch = texts.batch(range(8), torch.device("cpu"))
    p = classifier(batch["input_ids"], batch["attention_mask"]).softmax(-1)
    assert negative_entropy(classifier, batch)["negative_entropy"].item() == pytest.approx(
        (p * p.log()).sum().item(), rel=1e-5
    )


def test_gradient_importance_is_the_effect_of_a_head_to_first_order(classifier, texts):
    """|d loss / d gate| of one text, against gates a little below 1; and layers scaled to norm 1."""
    few = type(texts)(texts.input_ids[:1], texts.labels[:1], texts.pad_token_id)
    batch = few.batch(range(1), torch.device("cpu"))
    classifier.double()
    effect = torch.zeros(2, 4, dtype=torch.float64)

    def loss(gates: torch.Tensor) -> float:
        with torch.no_grad(), classifier.attention.gate(gates):
            logits = classifier(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(logits, batch["labels"]).item()

    for layer in range(2):
        for head in range(4):
            gates = torch.ones(2, 1, 4, dtype=torch.float64)
            gates[layer, 0, head] = 1 + 1e-5
            more = loss(gates)
            gates[layer, 0, head] = 1 - 1e-5
            effect[layer, head] = abs(more - loss(gates)) / 2e-5
    expected = effect / effect.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient_importance(classifier, few), expected, rtol=1e-4, atol=1e-6)


def test_every_criterion_gives_a_score_to_every_head(classifier, texts):
    variance = head_variance(classifier, texts, 32)
    scores = {
        name: pruning_score(name, classifier, texts, variance, seed=11, max_len=32)
        for name in ("variance", "highest_variance", "entropy", "gradient", "layer_wise", "dropout", "random")
    }
    assert all(score.shape == (2, 4) and torch.isfinite(score).all() for score in scores.values())
    assert torch.equal(scores["variance"], -scores["highest_variance"])
    # On an encoder whose attention is nearly even, variance and entropy sort heads alike.
    assert len({tuple(score.flatten().argsort().tolist()) for score in scores.values()}) >= 4


def test_layer_wise_order_by_hand():
    """Of 5 heads a layer: 20 %, 50 % and 80 % of them have a score of 1 or less, those of the lowest variance."""
    variance = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [0.1, 0.5, 0.2, 0.4, 0.3], [9.0, 7.0, 6.0, 8.0, 5.0]]).double()
    expected = torch.tensor([[5, 4, 3, 2, 1], [1, 5, 2, 4, 3], [5, 3, 2, 4, 1]]) / torch.tensor([[1.0], [2.5], [4.0]])
    torch.testing.assert_close(layer_wise_order(variance), expected.double())
    assert (layer_wise_order(variance) <= 1).sum(1).tolist() == [1, 2, 4]


def test_variance_under_dropout(classifier, texts):
    """It follows from the seed, is near the variance without, and is it where no dropout is drawn."""
    variance = head_variance(classifier, texts, 32)
    first, again, other = (pruning_score("dropout", classifier, texts, variance, seed, 32) for seed in (11, 11, 12))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, variance) and torch.allclose(first, variance, rtol=0.01)
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(pruning_score("dropout", classifier, texts, variance, 11, 32), variance)
