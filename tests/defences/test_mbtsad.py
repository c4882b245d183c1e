"""MBTSAD: words are cut in two, and the student comes to attend as the teacher does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_defences import defend
from transformers import BertTokenizer, RobertaTokenizer

from defences import mbtsad
from defences.mbtsad import distillation, pieces, seen, split_tokens
from defences.shared import load_defender_inputs
from encoder.classifier import Classifier, load_encoder
from pipeline import defender
from texts.batching import TokenisedTexts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "and", "a", "nd", "an", "d", ",", "##d"]


@pytest.fixture
def words():
    return BertTokenizer(vocab={token: at for at, token in enumerate(WORDS)})


def test_all_places_of_the_blank(words):
    assert pieces("and", words) == [(6, 7), (8, 9)]  # a nd, an d
    assert pieces("an", words) == [(6, 1)]  # a n, and n is unknown.
    assert pieces("a", words) == []


def test_marks_and_parts_of_words_stay_whole(words):
    texts = TokenisedTexts([[2, 6, 10, 11, 1, 3]] * 20, [0, 1] * 10, 0)
    assert split_tokens(texts, words, 9, np.random.default_rng(0)).input_ids == texts.input_ids


def test_byte_level_words_have_a_blank_before_both_halves():
    """And a piece inside of a word, which no blank stands before, is none."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"Ġathe", "th", "the", "Ġthe"]
    tokeniser = RobertaTokenizer(
        vocab={token: at for at, token in enumerate(tokens)}, merges=[("t", "h"), ("th", "e"), ("Ġ", "the")]
    )
    number = {token: at for at, token in enumerate(tokens)}
    halves = [["Ġ", "t", "Ġ", "h", "e"], ["Ġ", "th", "Ġ", "e"]]
    assert pieces("the", tokeniser) == [tuple(number[token] for token in half) for half in halves]
    texts = TokenisedTexts([[0, number["Ġthe"], number["the"], 2]] * 60, [0, 1] * 30, 1)
    split = split_tokens(texts, tokeniser, 12, np.random.default_rng(0)).input_ids
    assert {tuple(tokens[token] for token in ids[1:-1]) for ids in split} == {(*each, "the") for each in (["Ġthe"], *halves)}


def test_the_teacher_learns_from_split_words(given, monkeypatch):
    """Through the stage; the student from texts as they are."""
    learnt, split, tune = [], [], defender.fine_tune

    def look(model, texts, *args, **also):
        learnt.append(texts)
        return tune(model, texts, *args, **also)

    monkeypatch.setattr(defender, "fine_tune", look)
    monkeypatch.setattr(mbtsad, "split_tokens", lambda *of: split.append(split_tokens(*of)) or split[-1])
    config = replace(given, defence="MBTSAD", epochs=1)
    defend(config)
    assert len(split) == 1 and learnt[-2] is split[0] and learnt[-1].input_ids != split[0].input_ids
    defend(config)
    assert len(split) == 1  # A finished stage splits nothing.


def test_a_share_of_the_words_is_cut(words):
    texts = TokenisedTexts([[2, 5, 10, 5, 3]] * 500, [0, 1] * 250, 0)
    split = split_tokens(texts, words, 6, np.random.default_rng(0))
    assert split.labels == texts.labels and split.pad_token_id == 0
    ways = {tuple(ids) for ids in split.input_ids}
    first = {(5,), (6, 7), (8, 9)}
    expected = {(2, *(*one, 10, *other)[:4], 3) for one in first for other in first}
    assert ways == expected  # Two cuts make six tokens of four: the last is left out.
    assert np.mean([ids[1] == 5 for ids in split.input_ids]) == pytest.approx(0.7, abs=0.06)


def test_the_teacher_s_attention_is_what_the_student_comes_to_have(tiny_plm, texts):
    student, teacher = (Classifier(load_encoder(str(tiny_plm)), 2, 0.0, seed=11).eval() for _ in range(2))
    batch = texts.batch(np.arange(8), torch.device("cpu"))
    parts = distillation(teacher)(student, batch)
    assert parts["attention"] == parts["hidden_state"] == 0
    with torch.no_grad():
        teacher.encoder.encoder.layer[1].attention.self.query.weight.mul_(30.0)
    parts = distillation(teacher)(student, batch)
    with torch.no_grad():
        (_, state, rows), (_, its_state, its_rows) = seen(student, batch), seen(teacher, batch)
    expected = sum(float(((row - its) ** 2).sum()) for row, its in zip(rows, its_rows, strict=True)) / (8 * 4)
    assert parts["attention"].item() == pytest.approx(expected, rel=1e-4) and expected > 1e-4
    assert parts["hidden_state"].item() == pytest.approx(float(((state - its_state) ** 2).mean()), rel=1e-4)
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
    sum(parts.values()).backward()
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


def test_teacher_and_student_read_the_same_texts_as_they_are(given, monkeypatch):
    """A training may number the tokens that are used anew; the teacher's embedding knows nothing of that."""
    read, look = [], mbtsad.seen
    monkeypatch.setattr(mbtsad, "seen", lambda model, batch: read.append(batch["input_ids"]) or look(model, batch))
    defend(replace(given, defence="MBTSAD", epochs=1))
    inputs = load_defender_inputs(given)
    texts = {tuple(ids) for ids in inputs.train.input_ids}
    rows = [tuple(row[row != inputs.train.pad_token_id].tolist()) for batch in read for row in batch]
    assert len(rows) == 2 * len(inputs.train) and set(rows) == texts


def test_the_student_starts_as_the_fine_tuned_model_and_not_as_its_teacher(given, monkeypatch):
    loaded = []
    load = mbtsad.load_classifier
    monkeypatch.setattr(
        mbtsad, "load_classifier", lambda folder, dropout: loaded.append(folder.name) or load(folder, dropout)
    )
    record = defend(replace(given, defence="MBTSAD", epochs=2))
    assert loaded == ["fine_tuned_model"]
    losses = record["training"]["distilling"]["losses"]
    assert set(losses) == {"cross_entropy", "attention", "hidden_state"} and min(losses["attention"]) > 0
    assert np.mean(losses["attention"][6:]) < np.mean(losses["attention"][:6])
