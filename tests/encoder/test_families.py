"""Every family of encoders: attention as transformers' own, heads that are removed, an export without our code."""

import numpy as np
import pandas as pd
import pytest
import torch
from families import BERT_LIKE, CLASSES, FAMILIES, SIZE, make_classifier, make_tokeniser
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    T5Config,
    pipeline,
)

from encoder.classifier import Classifier, load_classifier, load_encoder, save_classifier
from encoder.cls_attention import remove_pruned_heads
from encoder.layer_cache import LayerCache
from export import plain_logits, require_equal, save_standard, standard_model
from pipeline.training import predict
from texts.batching import TokenisedTexts, tokenise
from util import UserError

PRUNED = {0: [1, 2], 1: [], 2: [0]}


@pytest.fixture(params=list(FAMILIES))
def classifier(request) -> Classifier:
    return make_classifier(request.param)


@pytest.fixture
def texts(classifier) -> TokenisedTexts:
    """24 texts of 3 to 40 random tokens, no padding among them."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 100, size).tolist() for size in rng.integers(3, 41, 24)]
    return TokenisedTexts(rows, [row % 3 for row in range(24)], classifier.encoder.config.pad_token_id)


# ---------------------------------------------------------------------------------------------------------- attention


def test_equals_eager_attention(classifier, texts):
    """Logits, and row 0 of every head's attention; also of texts that are padded."""
    for indices in (np.arange(1), np.arange(24)):
        batch = texts.batch(indices, torch.device("cpu"))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), classifier.attention.record() as rows:
            logits = classifier(**inputs)
        classifier.encoder.set_attn_implementation("eager")
        with torch.no_grad():
            classifier.attention.only_cls, output = False, classifier.encoder(**inputs, output_attentions=True)
        classifier.encoder.set_attn_implementation("cls_attention")
        expected = classifier.head(output.last_hidden_state[:, 0])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert len(rows) == len(output.attentions) == 3
        for row, attention in zip(rows, output.attentions, strict=True):
            torch.testing.assert_close(row, attention[:, :, 0], rtol=1e-4, atol=1e-6)
            assert row.std() > 0.02


def test_gating_a_head_equals_removing_its_columns(classifier, texts):
    unpruned = predict(classifier, texts, "unpruned")
    classifier.attention.pruned = PRUNED
    gated = predict(classifier, texts, "gated")
    assert (gated - unpruned).abs().max() > 1e-2
    remove_pruned_heads(classifier.attention)
    classifier.attention.pruned = {}
    torch.testing.assert_close(predict(classifier, texts, "removed"), gated, rtol=1e-4, atol=1e-4)


def test_evaluation_from_the_first_changed_layer_equals_the_whole(classifier, texts):
    cache = LayerCache(classifier, int(texts.lengths.sum()))
    for pruned in ({}, {2: [1]}, {2: [1], 1: [0, 3]}, {0: [2]}):
        classifier.attention.pruned = pruned
        expected = predict(classifier, texts, "whole")
        with cache.passing():
            assert torch.equal(predict(classifier, texts, "from the first changed layer"), expected)


# ------------------------------------------------------------------------------------------------------------- export


def test_export_gives_the_same_logits(classifier, texts, tmp_path):
    """Read back by the class that the folder names, pruned heads included."""
    classifier.attention.pruned = PRUNED
    expected = predict(classifier, texts, "ours")
    standard_model(classifier).save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.id2label == dict(enumerate(CLASSES)) and plain.dtype == torch.float32
    found = plain_logits(plain, texts, torch.device("cpu"))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    projections = Classifier(AutoModel.from_pretrained(tmp_path), 3, 0.0, 0).attention.projections
    for layer, heads in PRUNED.items():
        columns = projections[layer].weight.view(32, 4, 8).abs().sum((0, 2)) == 0  # [head]
        assert columns.nonzero().flatten().tolist() == heads


@pytest.mark.parametrize("family", list(FAMILIES))
def test_pipeline_of_an_exported_folder(family, tmp_path):
    """Texts to classes and probabilities, cut where ours are cut; and saved by us, read by us, it is the same again."""
    classifier, tokeniser = make_classifier(family), make_tokeniser(family)
    classifier.attention.pruned = PRUNED
    save_classifier(tmp_path / "ours", classifier, tokeniser)
    classifier = load_classifier(tmp_path / "ours")
    lines = ["the film was warm", "a dull plot", "bright was the film and warm . " * 5, "hollow"]
    table = pd.DataFrame({"text": lines, "label": 0})
    texts = tokenise(table, tokeniser, 16)
    assert max(texts.lengths) == 16 and len({tuple(ids) for ids in texts.input_ids}) == 4
    expected = predict(classifier, texts, "ours")

    folder = tmp_path / "exported"
    save_standard(folder, classifier, tokeniser, 16)
    assert require_equal(folder, table, texts, expected, torch.device("cpu"))
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ == type(tokeniser).__name__
    found = pipeline("text-classification", str(folder), device="cpu", batch_size=4)(lines, truncation=True, top_k=None)
    for row, answers in zip(expected.softmax(-1), found, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert [scores[name] for name in CLASSES] == pytest.approx(row.tolist(), abs=1e-5)


def test_padding_token_within_a_roberta_text_is_the_only_difference():
    """RoBERTa counts the tokens that are no padding, ELECTRA counts all; in texts all padding is at the end."""
    classifier = make_classifier("RoBERTa")
    plain = standard_model(classifier)
    device = torch.device("cpu")
    for tokens, equal in (([0, 7, 8, 9, 2], True), ([0, 7, 1, 9, 2], False)):
        texts = TokenisedTexts([tokens], [0], 1)
        difference = (plain_logits(plain, texts, device) - predict(classifier, texts, "ours")).abs().max()
        assert (difference < 1e-5) == equal


def test_an_export_that_differs_is_refused(tmp_path):
    classifier, tokeniser = make_classifier("BERT"), make_tokeniser("BERT")
    save_standard(tmp_path, classifier, tokeniser, 16)
    table = pd.DataFrame({"text": ["the film was warm"], "label": [0]})
    texts = tokenise(table, tokeniser, 16)
    logits = predict(classifier, texts, "ours")
    assert require_equal(tmp_path, table, texts, logits, torch.device("cpu"))["largest_difference"] < 1e-4
    with pytest.raises(UserError, match=r"the exported model differs from the purified one \(logits by 0\.\d+\), so"):
        require_equal(tmp_path, table, texts, logits + 0.5, torch.device("cpu"))


def test_too_many_classes_for_the_head():
    classifier = make_classifier("BERT")
    classifier.head = torch.nn.Linear(32, 17)
    with pytest.raises(UserError, match=r"17 classes are too many to be exported: .* the encoder has 32; the model"):
        standard_model(classifier)


def test_family_without_a_class_to_export_to():
    classifier = make_classifier("BERT")
    classifier.encoder.config.model_type = "other"
    with pytest.raises(UserError, match=r"no class that computes what a linear layer on a BertModel does; expected one"):
        standard_model(classifier)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("config", [DebertaV2Config(**SIZE), MPNetConfig(**SIZE)])
def test_encoder_without_attention_interface_is_refused(config):
    model = AutoModel.from_config(config)
    with pytest.raises(UserError, match=f"{type(model).__name__} doesn't use transformers' attention interface.*ModernBERT"):
        Classifier(model, 2, dropout=0.0, seed=0)


def test_encoder_whose_layers_share_weights_is_refused():
    model = AutoModel.from_config(AlbertConfig(**SIZE, embedding_size=16))
    with pytest.raises(UserError, match="the 3 layers of AlbertModel share 1 attention modules"):
        Classifier(model, 2, dropout=0.0, seed=0)


GENERATORS = {
    "an encoder-decoder (t5)": T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "a decoder (gpt2)": GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2),
    "a decoder (llama)": LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ),
    "a decoder (bert)": BertConfig(**BERT_LIKE, is_decoder=True),
}


@pytest.mark.parametrize("what", list(GENERATORS))
def test_model_that_generates_text_is_refused(what, tmp_path):
    AutoModel.from_config(GENERATORS[what]).save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load_encoder(str(tmp_path))
    assert f" is {what}; PURE defends encoders" in str(error.value) and "BERT" in str(error.value)
