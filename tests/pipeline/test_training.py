"""Batches, the search over heads, layer weights, metrics and the fine-tuning loop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_linear_schedule_with_warmup, set_seed

import util
from attention_head_pruning import search_heads
from attention_normalization import layer_weights
from encoder.classifier import Classifier, load_encoder, load_tokeniser
from encoder.dropout import fast_dropout, replace_dropout
from pipeline.training import accuracy, cross_entropy, fine_tune, guessing, label_flip_rate, predict
from texts.batching import TokenisedTexts, renumber, shuffled_batches, tokenise
from texts.data_sets import clean_train
from util import UserError, choose_device, make_accelerator

# -------------------------------------------------------------------------------------------------------- batches


def test_shuffled_batches_hold_every_text_once_and_differ_by_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 5_000)
    epochs = [shuffled_batches(lengths, 32, seed=11, epoch=epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(np.concatenate(batches)) == list(range(5_000))
        assert sum(len(batch) == 32 for batch in batches) >= len(batches) - 4
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))
    again = shuffled_batches(lengths, 32, seed=11, epoch=1)
    assert all(np.array_equal(a, b) for a, b in zip(again, epochs[1], strict=True))


def test_shuffled_batches_leave_almost_no_padding():
    lengths = np.random.default_rng(0).integers(3, 60, 7_000)
    batches = shuffled_batches(lengths, 32, seed=11, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.06 * lengths.sum()


def test_shuffled_batches_are_unbiased():
    """A text's place in the epoch does not depend on its length: its mean over epochs is the middle."""
    lengths = np.sort(np.random.default_rng(0).integers(3, 60, 640))
    places = np.zeros(640)
    for epoch in range(300):
        order = np.concatenate(shuffled_batches(lengths, 32, seed=0, epoch=epoch))
        places[order] += np.arange(640) / 300
    short, long = places[:320].mean(), places[320:].mean()
    assert abs(short - long) < 0.05 * 640


# --------------------------------------------------------------------------------------------------------- search

VARIANCE = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


def test_search_restores_the_last_group_highest_variance_first():
    """Accuracy by number pruned: 2 are fine, 4 are not, 3 are."""
    by_number = {2: 0.9, 4: 0.7, 3: 0.86}
    pruned, steps = search_heads(VARIANCE, lambda heads: by_number[sum(map(len, heads.values()))], 0.85, prune_step=2)
    assert pruned == {0: [0, 1], 1: [0]}
    assert [(step["action"], step["heads"], step["pruned"]) for step in steps] == [
        ("prune", [[0, 0], [0, 1]], 2),
        ("prune", [[1, 0]], 3),
        ("prune", [[1, 1]], 4),
        ("restore", [[1, 1]], 3),
    ]


def test_search_keeps_one_head_per_layer():
    pruned, _ = search_heads(VARIANCE, lambda heads: 1.0, 0.85, prune_step=10)
    assert pruned == {0: [0, 1], 1: [0, 1]}


def test_search_that_restores_a_whole_group():
    pruned, steps = search_heads(VARIANCE, lambda heads: 0.9 if not any(heads.values()) else 0.1, 0.85, prune_step=2)
    assert pruned == {0: [], 1: []} and steps[-1]["accuracy"] == 0.9


def test_layer_weights():
    v = [0.1, 0.2, 0.4]
    u = np.array([10, 5, 2.5]) / 17.5
    np.testing.assert_allclose(layer_weights(v), (u - u.min()) / (u.max() - u.min()))
    assert layer_weights([0.3, 0.3, 0.3]) == [0.0, 0.0, 0.0]


# -------------------------------------------------------------------------------------------------------- metrics


def test_label_flip_rate():
    assert label_flip_rate(np.array([[60, 40], [5, 95]]), target_class=1) == 0.4
    three = np.array([[8, 1, 1], [0, 10, 0], [3, 0, 7]])
    assert label_flip_rate(three, target_class=0) == 3 / 20


def test_what_is_said_of_an_accuracy_that_may_be_chance():
    assert guessing([[8, 0], [8, 0]]).startswith(
        "An accuracy of 0.500 is not shown to be better than giving all 16 texts the same class (0.500), so the model may "
    )
    assert guessing([[90, 0], [9, 1]]) and guessing([[88, 2], [4, 6]])  # z 0.33, 1.33
    assert guessing([[90, 0], [3, 7]]) is None  # z 2.33
    assert guessing([[11, 5], [7, 9]]) and guessing([[12, 4], [6, 10]]) is None  # z 1.41, 2.12
    assert guessing([[10, 0], [0, 0]])  # Of one class nothing can be learnt.
    assert guessing([[5, 1, 0], [0, 5, 1], [0, 0, 6]]) is None


# ----------------------------------------------------------------------------------------------------- fine-tuning


@pytest.fixture
def parts(tiny_config):
    """Classifier, texts and accelerator of a fine-tuning on the tiny data."""
    texts = tokenise(clean_train("sst2", tiny_config), load_tokeniser(tiny_config.plm), 32)
    classifier = Classifier(load_encoder(tiny_config.plm), 2, 0.1, seed=11)
    return classifier, texts, make_accelerator("cpu", "fp32")


def tune(parts, config, checkpoint, epochs, learning_rate=1e-2, settings=None, **also):
    classifier, texts, accelerator = parts
    return fine_tune(
        classifier,
        texts,
        cross_entropy,
        learning_rate=learning_rate,
        epochs=epochs,
        config=config,
        accelerator=accelerator,
        checkpoint=checkpoint,
        settings=settings or {"of": "this test"},
        description="test",
        **also,
    )


def test_fine_tuning_learns_and_records_every_step(parts, tiny_config, tmp_path):
    history = tune(parts, tiny_config, tmp_path / "c.pt", epochs=6)
    assert len(history["losses"]["cross_entropy"]) == 6 * 6 and len(history["seconds"]) == 6
    assert accuracy(parts[0], parts[1]) > 0.9
    assert [path.name for path in tmp_path.glob("*.pt")] == ["c.pt"]


def test_training_the_used_rows_alone_equals_training_all(parts, tiny_config, tmp_path):
    """Against a plain loop over the whole embedding, some of whose rows no text uses."""
    classifier, texts, accelerator = parts
    texts = replace(texts, input_ids=texts.input_ids[:64], labels=texts.labels[:64])
    plain = copy.deepcopy(classifier)
    whole = plain.encoder.get_input_embeddings().weight
    assert len(renumber(texts)[1]) < len(whole)
    tune((classifier, texts, accelerator), tiny_config, tmp_path / "c.pt", epochs=2)

    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 4)
    plain.train()
    for epoch in range(2):
        set_seed(tiny_config.seed * 1000 + epoch)
        for indices in shuffled_batches(texts.lengths, tiny_config.batch_size, tiny_config.seed, epoch):
            cross_entropy(plain, texts.batch(indices, torch.device("cpu")))["cross_entropy"].backward()
            nn.utils.clip_grad_norm_(plain.parameters(), tiny_config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    # Attention doesn't depend on a key's bias: its gradient is rounding, which AdamW blows up.
    states = [
        {name: value for name, value in model.state_dict().items() if not name.endswith("key.bias")}
        for model in (classifier, plain)
    ]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_other_settings_is_not_used(parts, tiny_config, tmp_path, capsys):
    tune(parts, tiny_config, tmp_path / "c.pt", epochs=1)
    history = tune(parts, tiny_config, tmp_path / "c.pt", epochs=2, settings={"of": "another"})
    assert len(history["seconds"]) == 2 and "were done already" not in capsys.readouterr().out


def test_training_ends_after_the_first_epoch_that_is_bad_enough(parts, tiny_config, tmp_path):
    """And does not go on when it is asked for again; rows that no text uses have decayed for the steps that were made."""
    classifier, texts, accelerator = parts
    texts = texts.select(np.arange(64))
    (unused, *_) = sorted({*range(classifier.encoder.config.vocab_size)} - {*renumber(texts)[1]})
    before = classifier.encoder.get_input_embeddings().weight[unused].detach().clone()
    for _ in range(2):
        history = tune((classifier, texts, accelerator), tiny_config, tmp_path / "c.pt", epochs=2, accuracy_below=1.01)
        assert len(history["accuracy"]) == len(history["seconds"]) == 1 and len(history["losses"]["cross_entropy"]) == 2
        assert history["accuracy"][0] == accuracy(classifier, texts)
        after = classifier.encoder.get_input_embeddings().weight[unused]
        torch.testing.assert_close(after, before * (1 - 1e-4) * (1 - 0.75e-4), rtol=1e-6, atol=0)
        classifier.encoder.get_input_embeddings().weight.data[unused] = before
    history = tune((classifier, texts, accelerator), tiny_config, tmp_path / "d.pt", epochs=2, accuracy_below=0.0)
    assert len(history["accuracy"]) == 2


def test_the_rate_rises_in_the_warm_up_and_falls_after_it(parts, tiny_config, tmp_path):
    """4 steps at 0, 1/2, 1 and 1/2 of the rate 0.01, as a row shows that no text uses: it decays by 0.01 times the rate."""
    classifier, texts, accelerator = parts
    texts = texts.select(np.arange(64))
    (unused, *_) = sorted({*range(classifier.encoder.config.vocab_size)} - {*renumber(texts)[1]})
    before = classifier.encoder.get_input_embeddings().weight[unused].detach().clone()
    tune((classifier, texts, accelerator), tiny_config, tmp_path / "c.pt", epochs=2, warm_up=0.5)
    after = classifier.encoder.get_input_embeddings().weight[unused]
    torch.testing.assert_close(after, before * (1 - 0.5e-4) * (1 - 1e-4) * (1 - 0.5e-4), rtol=1e-6, atol=0)


def test_a_frozen_head_stays_as_it_is_and_learns_again(parts, tiny_config, tmp_path):
    classifier = parts[0]
    head, states = classifier.head.weight.detach().clone(), copy.deepcopy(classifier.encoder.state_dict())
    tune(parts, tiny_config, tmp_path / "c.pt", epochs=1, freeze_head=True)
    assert torch.equal(classifier.head.weight, head)
    assert not torch.equal(
        classifier.encoder.state_dict()["encoder.layer.0.output.dense.weight"], states["encoder.layer.0.output.dense.weight"]
    )
    tune(parts, tiny_config, tmp_path / "d.pt", epochs=1)
    assert not torch.equal(classifier.head.weight, head)


def test_non_finite_loss(parts, tiny_config, tmp_path):
    with torch.no_grad():
        parts[0].head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan; nothing of this epoch .* a lower learning rate than 0\.01"):
        tune(parts, tiny_config, tmp_path / "c.pt", epochs=1)
    assert not list(tmp_path.glob("*.pt"))


def test_bf16_is_used_where_it_is_asked_for(parts, tiny_config, tmp_path):
    """In every fine-tuning of a model, not only its first, and in predictions."""
    classifier, texts, _ = parts
    seen = []
    linear = next(module for module in classifier.encoder.modules() if isinstance(module, nn.Linear))
    linear.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    accelerator = make_accelerator("cpu", "bf16")
    for name in ("first", "second"):
        tune((classifier, texts, accelerator), tiny_config, tmp_path / f"{name}.pt", epochs=1)
    assert predict(classifier, texts, "test", accelerator).dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    predict(classifier, texts, "test")
    assert set(seen) == {torch.float32}


# -------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_has_its_probability_everywhere(probability):
    torch.manual_seed(0)
    x = torch.ones(1_000_003, requires_grad=True)
    dropped = fast_dropout(x, probability)
    zero = (dropped == 0).double()
    for shift in (1, 2, 3, 4):  # Neighbours share random bits, and are independent all the same.
        assert zero[shift:].dot(zero[:-shift]) / len(zero) == pytest.approx(probability**2, abs=0.002)
    for lane in range(4):
        assert zero[lane::4].mean() == pytest.approx(probability, abs=0.003)
    assert dropped.mean().item() == pytest.approx(1, abs=0.003)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient, dropped.detach())


def test_dropout_at_its_ends():
    x = torch.ones(5, 3)
    assert torch.equal(fast_dropout(x, 0.0), x) and not fast_dropout(x, 1.0).any()
    module = nn.Sequential(nn.Dropout(0.5))
    replace_dropout(module)
    assert torch.equal(module.eval()(x), x) and not torch.equal(module.train()(x), x)


# ---------------------------------------------------------------------------------------------------------- device


def test_auto_device_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda", 0)


def test_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--device cuda:3 isn't there: 1 CUDA devices found"):
        choose_device("cuda:3")
    with pytest.raises(UserError, match="--device gpu is no device; expected auto, cpu"):
        choose_device("gpu")


def test_auto_precision_follows_the_hardware(monkeypatch):
    for native, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(util, "has_native_bf16", lambda device, native=native: native)
        assert make_accelerator("cpu", "auto").mixed_precision == expected
    assert isinstance(make_accelerator("cpu", "fp32"), Accelerator)


def test_texts_are_padded_to_their_batch_only():
    texts = TokenisedTexts([[1, 2], [3, 4, 5], [6] * 60], [0, 1, 0], pad_token_id=0)
    batch = texts.batch(np.array([0, 1]), torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_order_of_runs_in_a_process_changes_nothing(tiny_config, tmp_path):
    """Dropout and order depend on the seed alone, not on what was computed before."""
    states = []
    for name in ("a", "b"):
        texts = tokenise(clean_train("sst2", tiny_config), load_tokeniser(tiny_config.plm), 32)
        classifier = Classifier(load_encoder(tiny_config.plm), 2, 0.1, seed=11)
        tune((classifier, texts, make_accelerator("cpu", "fp32")), tiny_config, tmp_path / f"{name}.pt", epochs=2)
        torch.rand(7)
        states.append(classifier.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
