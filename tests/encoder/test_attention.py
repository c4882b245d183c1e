"""The attention function: it equals eager attention, its gates equal removed heads, its variance equals the padded one."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, SplinterConfig, SplinterModel, set_seed

from attention_normalization import attention_penalty, pure_objective
from encoder import cls_attention, layer_cache
from encoder.classifier import Classifier
from encoder.cls_attention import attend_in_parts, attend_with_dropout, cls_variance, remove_pruned_heads
from encoder.layer_cache import LayerCache
from experiments.published_way import remove_heads
from pipeline.training import predict
from texts.batching import TokenisedTexts, batches_by_length

PRUNED = {0: [1, 2], 1: [], 2: [0]}
WEIGHTS = [0.2, 0.0, 1.0]


@pytest.fixture
def classifier() -> Classifier:
    """Random weights, 3 layers of 4 heads; large initial weights, so that attention is far from uniform."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return Classifier(BertModel(config, add_pooling_layer=False), 2, dropout=0.0, seed=0).eval()


@pytest.fixture
def texts() -> TokenisedTexts:
    """24 texts of 3 to 40 random tokens."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 100, size).tolist() for size in rng.integers(3, 41, 24)]
    return TokenisedTexts(rows, [row % 2 for row in range(24)], pad_token_id=0)


def run(classifier: Classifier, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with classifier.attention.record() as rows:
        logits = classifier(batch["input_ids"], batch["attention_mask"])
    return logits, rows


def padded(batch: dict, length: int) -> dict:
    extra = length - batch["input_ids"].shape[1]
    widened = {name: nn.functional.pad(batch[name], (0, extra)) for name in ("input_ids", "attention_mask")}
    return {**batch, **widened}


def eager(classifier: Classifier, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same weights under transformers' own eager attention: logits and full attention [batch, head, query, key]."""
    classifier.encoder.set_attn_implementation("eager")
    output = classifier.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True)
    logits = classifier.head(output.last_hidden_state[:, 0])
    classifier.encoder.set_attn_implementation("cls_attention")
    return logits, output.attentions


@pytest.mark.parametrize("size", [1, 24])
def test_equals_eager_attention(classifier, texts, size):
    batch = texts.batch(np.arange(size), torch.device("cpu"))
    logits, rows = run(classifier, batch)
    expected_logits, attentions = eager(classifier, batch)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    for row, attention in zip(rows, attentions, strict=True):
        torch.testing.assert_close(row, attention[:, :, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 24])
def test_hiding_tokens_from_cls(classifier, texts, size):
    """In a layer [CLS] then sees the rest as if those tokens were masked; other tokens and other layers see them."""
    batch = texts.batch(np.arange(size), torch.device("cpu"))
    unseen = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    unseen[:, 2] = True
    _, whole = run(classifier, batch)
    with classifier.attention.hide({1: unseen}):
        logits, rows = run(classifier, batch)
    torch.testing.assert_close(rows[0], whole[0])
    assert rows[1][:, :, 2].abs().max() == 0 < whole[1][:, :, 2].min()
    rest = whole[1].masked_fill(unseen[:, None], 0)
    torch.testing.assert_close(rows[1], rest / rest.sum(-1, keepdim=True))
    assert not torch.allclose(run(classifier, batch)[0], logits)  # Nothing is hidden any more.
    # [CLS] alone reads what the first layer makes of the others: there hiding equals masking.
    classifier.encoder.encoder.layer = classifier.encoder.encoder.layer[:1]
    with classifier.attention.hide({0: unseen}):
        logits, _ = run(classifier, batch)
    masked, _ = run(classifier, {**batch, "attention_mask": batch["attention_mask"] * ~unseen})
    torch.testing.assert_close(logits, masked)


def test_gradient_of_a_training_step_equals_eager(classifier, texts):
    batch = texts.batch(np.arange(24), torch.device("cpu"))
    objective = partial(pure_objective, attention=classifier.attention, weights=WEIGHTS, coefficient=0.15)
    sum(objective(classifier, batch).values()).backward()
    ours = {name: p.grad.clone() for name, p in classifier.named_parameters()}
    classifier.zero_grad()
    logits, attentions = eager(classifier, batch)
    penalty = sum(
        weight * attention[:, :, 0].square().sum((0, 2)).sqrt().sum()
        for weight, attention in zip(WEIGHTS, attentions, strict=True)
    )
    (nn.functional.cross_entropy(logits, batch["labels"]) + 0.15 * penalty).backward()
    for name, parameter in classifier.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("masked", [None, "boolean", "added"])
def test_attention_with_dropout_equals_the_fused_one(masked, monkeypatch):
    """With a dropout of 0; a query that may see no token at all gives numbers too."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8)  # [batch, head, token, channel]
    seen = torch.rand(2, 1, 7, 7) < 0.7
    seen[:, :, :, 0] = True
    mask = {None: None, "boolean": seen, "added": torch.zeros(2, 1, 7, 7).masked_fill(~seen, -1e9)}[masked]
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    for attend in (attend_with_dropout, attend_in_parts):
        monkeypatch.setattr(cls_attention, "PART", 1)
        torch.testing.assert_close(attend(query, key, value, mask, 0.0, None), expected)
    assert attend_with_dropout(query, key, value, torch.zeros_like(seen), 0.0, None).isfinite().all()


def test_last_layer_for_the_first_token_alone(classifier, texts):
    batch = texts.batch(np.arange(24), torch.device("cpu"))
    assert classifier.attention.only_cls
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = classifier.encoder(**arguments).last_hidden_state
    plain = BertModel(BertConfig(**classifier.encoder.config.to_diff_dict()), add_pooling_layer=False).eval()
    plain.load_state_dict(classifier.encoder.state_dict())
    expected = plain(**arguments).last_hidden_state
    assert states.shape[1] == 1
    torch.testing.assert_close(states, expected[:, :1], rtol=1e-5, atol=1e-5)


def test_padding_and_batching_change_nothing(classifier, texts):
    classifier.attention.pruned = PRUNED
    device = torch.device("cpu")
    alone = [run(classifier, texts.batch(np.array([index]), device)) for index in range(len(texts))]
    whole = texts.batch(np.arange(len(texts)), device)
    for batch in (whole, padded(whole, 128)):
        logits, rows = run(classifier, batch)
        torch.testing.assert_close(logits, torch.cat([one for one, _ in alone]), rtol=1e-4, atol=1e-5)
        for layer, row in enumerate(rows):
            for index, (_, single) in enumerate(alone):
                length = single[layer].shape[-1]
                torch.testing.assert_close(row[index, :, :length], single[layer][0], rtol=1e-4, atol=1e-6)
                assert (row[index, :, length:] == 0).all()
        wide = [nn.functional.pad(row, (0, 128 - row.shape[-1])) for row in rows]
        expected = attention_penalty(wide, classifier.attention, WEIGHTS)
        torch.testing.assert_close(attention_penalty(rows, classifier.attention, WEIGHTS), expected)


def test_attention_is_never_causal(texts):
    """Splinter's attention doesn't say what it is, and transformers then takes it for causal where no text is padded."""
    torch.manual_seed(0)
    config = SplinterConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    classifier = Classifier(SplinterModel(config), 2, dropout=0.0, seed=0).eval()
    batch = texts.batch(np.array([0]), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(run(classifier, batch)[0], run(classifier, padded(batch, 41))[0], rtol=1e-4, atol=1e-6)


def test_penalty_equals_its_definition(classifier, texts):
    classifier.attention.pruned = PRUNED
    _, rows = run(classifier, texts.batch(np.arange(24), torch.device("cpu")))
    expected = 0.0
    for layer, row in enumerate(rows):
        for head in set(range(4)) - set(PRUNED[layer]):
            expected += WEIGHTS[layer] * (row[:, head] ** 2).sum().item() ** 0.5
    assert attention_penalty(rows, classifier.attention, WEIGHTS).item() == pytest.approx(expected, rel=1e-5)


def test_gating_a_head_equals_removing_it(classifier, texts):
    batch = texts.batch(np.arange(24), torch.device("cpu"))
    unpruned, _ = run(classifier, batch)
    classifier.attention.pruned = PRUNED
    gated, _ = run(classifier, batch)
    assert (gated - unpruned).abs().max() > 1e-2

    remove_pruned_heads(classifier.attention)
    classifier.attention.pruned = {}
    torch.testing.assert_close(run(classifier, batch)[0], gated, rtol=1e-5, atol=1e-5)

    remove_heads(classifier.encoder, PRUNED)
    torch.testing.assert_close(run(classifier, batch)[0], gated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [2**30, 3 * 300 * 32 * 4])
def test_evaluation_from_the_first_changed_layer_equals_the_whole(classifier, texts, monkeypatch, limit):
    """Whatever order heads go and come back in; with the states of all layers kept, and with fewer."""
    monkeypatch.setattr(layer_cache, "LIMIT", limit)
    cache = LayerCache(classifier, int(texts.lengths.sum()))
    assert len(cache.layers) == 3 and (cache.stride == 1) == (limit == 2**30)
    calls, queries = [], []
    for number, layer in enumerate(cache.layers):
        layer.attention.register_forward_hook(lambda module, args, output, number=number: calls.append(number))
        layer.attention.self.query.register_forward_hook(lambda module, args, output, number=number: queries.append(number))
    for pruned in ({}, {2: [1]}, {2: [1], 1: [0, 3]}, {1: [0, 3]}, {1: [0, 3]}, {0: [2]}, {}):
        classifier.attention.pruned = pruned
        expected = predict(classifier, texts, "whole")
        calls.clear(), queries.clear()
        first = cache.pruned is None
        with cache.passing():
            found = predict(classifier, texts, "from the first changed layer")
        assert torch.equal(found, expected)
        assert min(calls) == cache.start
        assert first or cache.start not in queries  # Gates change nothing about what a layer attends to.
    assert "forward" not in vars(cache.layers[0])


def test_an_interrupted_evaluation_is_not_gone_on_from(classifier, texts):
    cache = LayerCache(classifier, int(texts.lengths.sum()))
    expected = predict(classifier, texts, "whole")
    with cache.passing():
        predict(classifier, texts, "all")
    classifier.attention.pruned = {1: [0]}
    with pytest.raises(KeyboardInterrupt), cache.passing():
        raise KeyboardInterrupt
    classifier.attention.pruned = {}
    with cache.passing():
        assert torch.equal(predict(classifier, texts, "again"), expected)


@pytest.mark.parametrize("max_len", [16, 128])
def test_closed_form_variance_equals_the_padded_one(max_len):
    torch.manual_seed(0)
    for length in range(1, max_len + 11):
        row = torch.randn(5, length, dtype=torch.float64).softmax(-1)[:, :max_len]
        expected = nn.functional.pad(row, (0, max_len - row.shape[-1]))[:, : max_len - 1].var(-1, unbiased=True)
        torch.testing.assert_close(cls_variance(row, max_len).double(), expected, rtol=1e-5, atol=1e-9)


def test_training_keeps_no_query_by_key_matrix(texts):
    """With attention dropout, on long texts, nothing kept for the backward pass has one entry per query and key."""
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, attention_probs_dropout_prob=0.5
    )
    classifier = Classifier(BertModel(config, add_pooling_layer=False), 2, dropout=0.1, seed=0).train()
    batch = padded(texts.batch(np.arange(8), torch.device("cpu")), 77)
    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run(classifier, batch)[0].square().sum()
    assert shapes and not [shape for shape in shapes if shape[-2:] == (77, 77) and shape[:2] == (8, 4)]
    loss.backward()


def test_computing_attention_again_changes_no_gradient(texts, monkeypatch):
    gradients = []
    for again in (True, False):
        if not again:
            monkeypatch.setattr("encoder.cls_attention.checkpoint", lambda function, *args, use_reentrant: function(*args))
        torch.manual_seed(0)
        config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        classifier = Classifier(BertModel(config, add_pooling_layer=False), 2, dropout=0.1, seed=0).train()
        set_seed(1)
        run(classifier, texts.batch(np.arange(24), torch.device("cpu")))[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in classifier.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rows_are_fp32_and_sum_to_one_under_autocast(classifier, texts):
    batch = texts.batch(np.arange(24), torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        _, rows = run(classifier, batch)
    for row in rows:
        assert row.dtype == torch.float32
        torch.testing.assert_close(row.sum(-1), torch.ones(24, 4), rtol=0, atol=1e-5)


def test_evaluation_batches_hold_every_text_once(texts):
    batches = list(batches_by_length(texts.lengths, tokens=100))
    assert sorted(np.concatenate(batches)) == list(range(len(texts)))
    assert all(texts.lengths[batch].max() * len(batch) <= 100 for batch in batches)
