"""The benchmark compares like with like; how fast either way is, no test says."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

import benchmark
from benchmark import (
    Benchmark,
    dataset_markdown,
    evaluation_flops,
    heading,
    memory_markdown,
    require_agreement,
    require_trainer_agrees,
    training_flops,
)
from encoder.classifier import Classifier, load_encoder, load_tokeniser
from experiments.published_way import Published
from experiments.trainer_way import TrainerModel, mask_heads, trainer_epochs, trainer_logits, trainer_search
from pipeline.environment import in_own_process
from pipeline.training import predict
from texts.batching import tokenise
from texts.data_sets import defender_splits
from util import UserError


@pytest.fixture
def parts(tiny_config):
    """Classifier, validation texts, and a configuration whose search prunes something."""
    torch.manual_seed(0)
    classifier = Classifier(load_encoder(tiny_config.plm), 2, 0.1, seed=11)
    texts = tokenise(defender_splits(tiny_config)[1], load_tokeniser(tiny_config.plm), tiny_config.max_len)
    return classifier, texts, replace(tiny_config, acc_threshold=0.0, prune_step=2)


def test_the_two_ways_agree(parts, tiny_config):
    classifier, texts, config = parts
    found = require_agreement(Published(tiny_config.plm, classifier), classifier, texts, config)
    assert found["heads pruned"] > 0 and found["Var"] < 1e-4


def test_other_weights_are_noticed(parts, tiny_config):
    classifier, texts, config = parts
    published = Published(tiny_config.plm, classifier)
    with torch.no_grad():
        published.encoder.encoder.layer[0].attention.self.value.weight.mul_(1.5)
    with pytest.raises(UserError, match=r"the published way and ours disagree: .* differs by .* expected 1e-05 or less"):
        require_agreement(published, classifier, texts, config)


def test_the_trainer_agrees(parts, tiny_config, tokeniser):
    classifier, texts, config = parts
    found = require_trainer_agrees(tiny_config.plm, classifier, texts, tokeniser, config)
    assert set(found) == {"cross-entropy", "PURE loss", "logits"} and max(found.values()) < 1e-5


def test_a_trainer_without_penalty_or_masks_is_noticed(parts, tiny_config, tokeniser, monkeypatch):
    classifier, texts, config = parts
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="Trainer's way and ours disagree: PURE loss differs"),
    ):
        patch.setattr("experiments.trainer_way.COEFFICIENT", 0.0)
        require_trainer_agrees(tiny_config.plm, classifier, texts, tokeniser, config)
    variance = torch.arange(8.0).reshape(2, 4)
    logits = trainer_logits(model := TrainerModel(tiny_config.plm, classifier, "sdpa"), texts, tokeniser, config, "fp32")
    hooks = mask_heads(model.encoder, {1: [0, 2]})
    masked = trainer_logits(model, texts, tokeniser, config, "fp32")
    assert len(hooks) == 1 and (masked - logits).abs().max() > 1e-3
    classifier.attention.pruned = {0: [], 1: [0, 2]}
    torch.testing.assert_close(masked, predict(classifier, texts, "pruned"), rtol=1e-4, atol=1e-5)
    for hook in hooks:
        hook.remove()
    assert len(trainer_search(model, texts, tokeniser, config, "fp32", variance)[1]) > 0


def test_a_trainer_s_epochs_train(parts, tiny_config, tokeniser):
    classifier, texts, config = parts
    for kind, attention in (("sdpa", None), ("eager", classifier.attention)):
        model = TrainerModel(tiny_config.plm, classifier, kind)
        before = model.head.weight.detach().clone()
        assert trainer_epochs(model, texts, tokeniser, config, "fp32", 2, attention) > 0
        assert not torch.equal(model.head.weight, before)


def test_floating_point_operations(parts):
    """Against a count by hand of the linear layers, the last of which see the first token alone."""
    classifier, texts, config = parts
    layers = []
    for module in classifier.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, output: layers.append((module, args[0][..., 0].numel())))
    texts = replace(texts, input_ids=[ids[:4] for ids in texts.input_ids])  # No padding.
    assert set(texts.lengths) == {4}
    classifier.dropout.p = 0
    forward = evaluation_flops(classifier, texts)
    expected = sum(2 * module.in_features * module.out_features * rows for module, rows in layers) / len(texts)
    # Attention's own products come on top.
    assert expected < forward < 1.2 * expected
    assert 3 * expected < training_flops(classifier, texts, False, config) < 1.2 * 3 * expected


def test_script(tiny_config, monkeypatch, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    arguments = ["--clean_dataset", "sst2", "--data_dir", tiny_config.data_dir, "--plm", tiny_config.plm, "--texts", "32"]
    monkeypatch.setattr(
        "sys.argv",
        ["benchmark.py", *arguments, "--repeats", "1", "--max_len", "32", "--memory_len", "16", "--output", str(output)],
    )
    benchmark.main()
    result = json.loads(output.read_text())
    table = dataset_markdown("sst2", result["datasets"]["sst2"])
    assert f"{heading(result)}\n\n{table}\n\n{memory_markdown(result)}\n" in capsys.readouterr().out
    tasks = result["datasets"]["sst2"]["tasks"]
    assert set(tasks) == {"fine-tuning, CE", "fine-tuning, PURE loss", "evaluation", "pruning search"}
    for found in tasks.values():
        if "seconds" in found:
            ratio = found["seconds"]["published"] / found["seconds"]["fp32"]
        else:
            ratio = found["texts_per_second"]["fp32"] / found["texts_per_second"]["published"]
        assert found["ratio"]["fp32"] == pytest.approx(ratio)
        rates = found.get("texts_per_second") or {way: 1 / value for way, value in found["seconds"].items()}
        assert found["ratio_to_trainer"]["fp32"] == pytest.approx(rates["fp32"] / rates["Trainer, fp32"])
    assert set(result["memory"]) == {"published", "ours"}
    assert Benchmark().repeats >= 3


def test_each_trainer_computes_in_the_arithmetic_it_is_timed_in(tiny_config, monkeypatch, tmp_path):
    """Whatever the others have made of the model before."""
    seen = set()

    def watched(way, what):
        def run(model, *arguments):
            precision = next(each for each in arguments if each in ("fp32", "bf16"))
            dtypes = []
            hook = model.head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
            result = way(model, *arguments)
            hook.remove()
            seen.update((what, precision, dtype) for dtype in dtypes)
            return result

        return run

    monkeypatch.setattr("benchmark.has_native_bf16", lambda device: True)
    for name in ("trainer_logits", "trainer_search", "trainer_epochs"):
        monkeypatch.setattr(benchmark, name, watched(getattr(benchmark, name), name))
    config = Benchmark(("sst2",), texts=32, published_texts=32, repeats=2, data_dir=tiny_config.data_dir, max_len=32)
    benchmark.run_dataset("sst2", tiny_config.plm, config)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert {(precision, dtype) for _, precision, dtype in seen} == set(expected.items())
    assert {what for what, *_ in seen} == {"trainer_logits", "trainer_search", "trainer_epochs"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "--repeats 0 is out of range; expected 1 or more"),
        (["--max_len", "32", "--memory_len", "600"], "cut them with --memory_len "),
    ],
)
def test_what_cannot_be_measured(tiny_config, monkeypatch, flags, message):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--plm", tiny_config.plm, *flags])
    with pytest.raises(UserError, match=message):
        benchmark.main()


def test_a_process_that_is_killed_is_told(monkeypatch):
    with pytest.raises(UserError, match=r"the process that measured 9 was killed, out of memory perhaps"):
        in_own_process(signal.raise_signal, signal.SIGKILL.value)


def test_too_few_texts(tiny_config, monkeypatch):
    arguments = ["--clean_dataset", "sst2", "--data_dir", tiny_config.data_dir, "--plm", tiny_config.plm, "--max_len", "32"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments, "--published_texts", "8", "--memory_len", "0"])
    with pytest.raises(UserError, match="--published_texts: 8 texts; expected 32, a batch, or more"):
        benchmark.main()
