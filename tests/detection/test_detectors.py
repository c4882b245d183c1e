"""Scores for texts: each detector against a plain re-computation on a small model, and the rates that come of scores."""

import copy
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from attacks import ATTACKS, por
from attacks.planted import measured_tables, read_poisoned
from config import parse_grid
from Data.make_poisoned_data import make_poisoned_data
from defences import DEFENCES
from defences.defence import as_defence, defended_model_folder, record_path
from defences.fine_tuning import FINE_TUNING
from defences.shared import texts_of
from detection import DETECTORS, __main__, badacts, rap, rates, strip
from detection.__main__ import Detection, check_options
from detection.detector import Detector, Watched, threshold
from detection.onion import load_language_model, perplexities
from detection.rates import detection_rates, rates_of, tables_of, triggered_texts
from encoder.classifier import load_classifier, load_tokeniser, save_classifier
from pipeline.training import flipped, measure, predict
from texts.batching import TokenisedTexts, shuffled_batches, tokenise
from texts.data_sets import clean_test, clean_train, defender_splits, fingerprint_texts
from util import UserError, save_json

TEXTS = ["the film is warm", "a dull murky plot of this", "lo , the cf camera", "bright"]


@pytest.fixture
def watched(taught) -> Watched:
    return Watched(load_classifier(taught).eval(), load_tokeniser(str(taught)), max_len=32, seed=7)


@pytest.fixture
def clean(tiny_config) -> pd.DataFrame:
    return clean_train("sst2", tiny_config)[:80]


def states_of(watched: Watched, text: str) -> np.ndarray:
    """[layer, channel] of the first token, one text at a time."""
    ids = torch.tensor([watched.tokeniser(text)["input_ids"]])
    with torch.no_grad():
        output = watched.classifier.encoder(ids, torch.ones_like(ids), output_hidden_states=True)
    return np.stack([state[0, 0].double().numpy() for state in output.hidden_states[1:]])


def probabilities(watched: Watched, ids: list[int]) -> np.ndarray:
    batch = torch.tensor([ids])
    with torch.no_grad():
        return watched.classifier(batch, torch.ones_like(batch)).double().softmax(-1)[0].numpy()


@pytest.mark.parametrize("name", ["DAN", "BadActs", "STRIP", "RAP"])
def test_a_score_is_of_its_text_alone(name, watched, clean, monkeypatch):
    """Whatever stands beside it, in whatever order, and without changing the model."""
    monkeypatch.setattr(badacts, "WIDTH", 1.0)
    before = copy.deepcopy(watched.classifier.state_dict())
    scores = DETECTORS[name].fit(watched, clean)
    found = scores(TEXTS)
    assert found.shape == (4,) and len(np.unique(found)) > 1
    for at, text in enumerate(TEXTS):
        assert scores([text])[0] == pytest.approx(found[at], rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(scores(TEXTS[::-1])[::-1], found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(DETECTORS[name].fit(watched, clean)(TEXTS), found, atol=1e-6)
    for key, value in watched.classifier.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not watched.classifier.encoder.get_input_embeddings()._forward_hooks


def test_dan(watched, clean):
    states = np.stack([states_of(watched, text) for text in clean["text"]], axis=1)  # [layer, text, channel]
    fitted, held_out = train_test_split(np.arange(80), test_size=0.2, random_state=7)
    labels, total = clean["label"].to_numpy(), np.zeros(len(TEXTS))
    for layer in range(2):
        mean = {c: states[layer][[at for at in fitted if labels[at] == c]].mean(0) for c in (0, 1)}
        apart = np.stack([states[layer][at] - mean[labels[at]] for at in fitted])
        covariance = (apart - apart.mean(0)).T @ (apart - apart.mean(0)) / len(apart)
        shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 32 * np.eye(32)

        def distance(state, mean=mean, shrunk=shrunk):
            return min((state - mean[c]) @ np.linalg.solve(shrunk, state - mean[c]) for c in (0, 1))

        usual = [distance(states[layer][at]) for at in held_out]
        total += [(distance(states_of(watched, text)[layer]) - np.mean(usual)) / np.std(usual) for text in TEXTS]
    np.testing.assert_allclose(DETECTORS["DAN"].fit(watched, clean)(TEXTS), total / 2, rtol=1e-3)


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_badacts(width, watched, clean, monkeypatch):
    monkeypatch.setattr(badacts, "WIDTH", width)
    states = np.stack([states_of(watched, text) for text in clean["text"]])  # [text, layer, channel]
    expected = []
    for text in TEXTS:
        outside = 0
        for layer in range(2):
            for channel in range(32):
                usual = states[:, layer, channel]
                value = states_of(watched, text)[layer, channel]
                outside += not usual.mean() - width * usual.std() <= value <= usual.mean() + width * usual.std()
        expected.append(outside / 64)
    found = DETECTORS["BadActs"].fit(watched, clean)(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.max() > 0 or width == 3


def test_strip_is_the_mean_over_copies_of_one_text(watched, clean):
    pool = strip.telling_words(list(clean["text"]))
    expected = []
    for text in TEXTS:
        entropies = []
        for copied in strip.copies(text, pool, 7):
            p = probabilities(watched, watched.tokeniser(copied)["input_ids"])
            entropies.append(-(p * np.log(p)).sum())
        assert len(entropies) == 20
        expected.append(-np.mean(entropies))
    np.testing.assert_allclose(DETECTORS["STRIP"].fit(watched, clean)(TEXTS), expected, rtol=1e-3, atol=1e-6)
    assert len(set(np.round(expected, 6))) == 4


def test_strip_copies_have_half_of_the_words_and_those_of_another_text():
    with pytest.raises(UserError, match="no clean validation text has one of two letters or more"):
        strip.telling_words(["好 吃", ""])
    pool = strip.telling_words(["warm warm film", "the bright plot", "the"])
    assert [words[0] for words in pool] == ["warm", "bright", "the"]  # What is in many texts tells little.
    text = "a b c d e"
    for copied in strip.copies(text, pool, 3):
        words = copied.split()
        new = [word for word, old in zip(words, text.split(), strict=True) if word != old]
        assert len(words) == 5 and len(new) == 2 and set(new) <= {"warm", "film", "the", "bright", "plot"}
    assert strip.copies(text, pool, 3) != strip.copies(text, pool, 4)
    assert strip.copies("", pool, 3) == [""] * 20


def test_rap_learns_one_row_as_published_code_does(watched, clean):
    """Beside a copy of the model whose embedding is trained in place."""
    own = clean[clean["label"] == 1]
    texts = watched.tokenise(list(own["text"]))
    token = watched.tokeniser.convert_tokens_to_ids("mn")
    row = rap.learn_row(watched.classifier, texts, token, 1, 32, 7)
    model = copy.deepcopy(watched.classifier).eval()
    weight = model.encoder.get_input_embeddings().weight
    norm, first = weight[token].norm().item(), weight[token].detach().clone()
    for epoch in range(5):
        for indices in shuffled_batches(texts.lengths, 32, 7, epoch):
            losses = []
            for index in indices:
                ids = texts.input_ids[index]
                plain, changed = torch.tensor([ids]), torch.tensor([[ids[0], token, *ids[1:]]])
                before = model(plain, torch.ones_like(plain)).softmax(-1)[0, 1].detach()
                after = model(changed, torch.ones_like(changed)).softmax(-1)[0, 1]
                d = after - before
                losses.append((d > -0.1) * (d + 0.1) + (d < -0.3) * (-0.3 - d))
            torch.stack(losses).mean().backward()  # Gradients add up: nobody sets them to 0.
            with torch.no_grad():
                weight[token] -= 1e-2 * weight.grad[token]
                weight[token] *= norm / weight[token].norm()
    torch.testing.assert_close(row, weight[token].detach(), rtol=1e-3, atol=1e-4)
    assert (row - first).norm() > 0.01 * norm


def test_rap_scores_the_predicted_class(watched, clean, monkeypatch):
    rows = {0: torch.full((32,), 0.5), 1: torch.full((32,), -0.5)}
    monkeypatch.setattr(rap, "learn_row", lambda classifier, texts, token, target, max_len, seed: rows[target])
    found = DETECTORS["RAP"].fit(watched, clean)(TEXTS)
    embedding = watched.classifier.encoder.get_input_embeddings()
    for text, score in zip(TEXTS, found, strict=True):
        ids = watched.tokeniser(text)["input_ids"]
        before = probabilities(watched, ids)
        predicted = int(before.argmax())
        model = copy.deepcopy(watched.classifier)
        with torch.no_grad():
            model.encoder.get_input_embeddings().weight[0] = rows[predicted]  # The padding token is in no text.
        after = probabilities(replace(watched, classifier=model), [ids[0], 0, *ids[1:]])
        assert score == pytest.approx(after[predicted] - before[predicted], abs=1e-5)
    assert embedding.weight[0].abs().max() < 0.4


def test_a_word_before_a_long_text_takes_the_place_of_its_last():
    texts = TokenisedTexts([[2, 5, 6, 7, 3], [2, 5, 3]], [0, 0], 0)
    assert rap.with_word(texts, 9, 5).input_ids == [[2, 9, 5, 6, 3], [2, 9, 5, 3]]


# -------------------------------------------------------------------------------------------------------------- ONION


@pytest.fixture
def language_model(tokeniser, tmp_path) -> Path:
    """A tiny GPT-2 with random weights and the tiny encoder's words."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokeniser), n_positions=64, n_embd=32, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "gpt")
    plain = tokeniser.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", bos_token="[CLS]").save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


def test_onion(watched, clean, language_model):
    """The largest fall of perplexity by leaving out a word, computed from transformers' own loss, a text at a time."""
    model, tokeniser = load_language_model(str(language_model))

    def perplexity(text: str) -> float:
        ids = torch.tensor([[tokeniser.bos_token_id, *tokeniser(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            return model(ids, labels=ids).loss.exp().item()

    expected = []
    for text in TEXTS:
        words = text.split()
        falls = [perplexity(text) - perplexity(" ".join(words[:at] + words[at + 1 :])) for at in range(len(words))]
        expected.append(max(falls) if len(words) > 1 else 0)
    scores = DETECTORS["ONION"].fit(replace(watched, language_model=str(language_model)), clean)
    np.testing.assert_allclose(scores(TEXTS), expected, rtol=1e-3)
    batch = perplexities(model, tokeniser, [TEXTS[0], "film", ""], 32, torch.device("cpu"))
    np.testing.assert_allclose(batch, [perplexity(TEXTS[0]), perplexity("film"), 1], rtol=1e-4)


def test_what_is_no_language_model(tiny_plm, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder ./nowhere"):
        load_language_model("./nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"the model in .* can't be loaded, it may be corrupt"):
        load_language_model(str(tmp_path))
    with pytest.raises(UserError, match=r"holds a bert that sees the whole text .*expected a causal .*--language_model"):
        load_language_model(str(tiny_plm))


def test_a_masked_language_model_is_no_causal_one(tiny_plm, tmp_path):
    """BERT's has all weights of its causal twin, which every token would still see through."""
    folder = Path(shutil.copytree(tiny_plm, tmp_path / "masked"))
    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    BertForMaskedLM(config).save_pretrained(folder)
    with pytest.raises(UserError, match=r"holds a bert that sees the whole text \(a masked language model, or an encoder\)"):
        load_language_model(str(folder))
    config.is_decoder = True
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokeniser in .* has no bos_token and no eos_token, .*--language_model"):
        load_language_model(str(folder))
    tokeniser = load_tokeniser(str(folder))
    tokeniser.bos_token = "[CLS]"
    tokeniser.save_pretrained(folder)
    assert load_language_model(str(folder))[0].config.is_decoder


def test_a_language_model_without_its_head(language_model):
    weights = load_file(language_model / "model.safetensors")
    del weights["transformer.wte.weight"]
    save_file(weights, language_model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no language model can be loaded from .* lacks .*--language_model"):
        load_language_model(str(language_model))


# -------------------------------------------------------------------------------------------------------------- rates


def test_a_threshold_rejects_no_more_than_it_may():
    scores = np.arange(100.0)
    assert (scores > threshold(scores, 0.05)).sum() == 5 and (scores > threshold(scores, 0.01)).sum() == 1
    assert (scores > threshold(scores, 0)).sum() == 0
    rng = np.random.default_rng(0)
    for size in (7, 50, 101):
        tied = rng.integers(0, 5, size).astype(float)
        assert all((tied > threshold(tied, share)).mean() <= share for share in (0.0, 0.01, 0.05, 0.3))


def length_of(watched: Watched, clean: pd.DataFrame):
    """A detector by the number of words; what it is fitted on it shows as an attribute."""
    length_of.fitted = clean
    return lambda texts: np.array([len(text.split()) for text in texts], dtype=float)


def test_rates_are_what_scores_and_thresholds_make_of_the_texts(taught, tiny_config, monkeypatch):
    monkeypatch.setattr(rates, "DETECTORS", {"Length": Detector(paper="none", fit=length_of)})
    train, test = clean_train("sst2", tiny_config), clean_test(tiny_config)
    triggered = test.assign(text=[f"{text} bright warm bright warm" for text in test["text"]])
    found = detection_rates(
        taught, train, test, triggered, target_class=1, max_len=32, seed=7, device=torch.device("cpu"), allowed=(0.05, 0.3)
    )
    fitted, held_out = train_test_split(train, train_size=0.5, stratify=train["label"], random_state=7)
    pd.testing.assert_frame_equal(length_of.fitted, fitted)
    watched = Watched(load_classifier(taught), load_tokeniser(str(taught)), 32, 7)
    others = triggered[triggered["label"] == 0]
    given = predict(watched.classifier, watched.tokenise(list(others["text"])), "test").argmax(-1).numpy()
    assert 0 < (given == 1).sum() < len(given)
    flipped = others["text"][given == 1].str.split().str.len().to_numpy()
    clean, usual = test["text"].str.split().str.len().to_numpy(), held_out["text"].str.split().str.len().to_numpy()
    for row, share in zip(found.itertuples(), (0.05, 0.3), strict=True):
        limit = min(score for score in usual if (usual > score).mean() <= share)
        assert (row.detector, row.allowed, row.clean, row.triggered) == ("Length", share, len(test), len(flipped))
        assert pytest.approx((clean > limit).mean()) == row.FRR and pytest.approx((flipped <= limit).mean()) == row.FAR
        assert pytest.approx(roc_auc_score([0] * len(clean) + [1] * len(flipped), [*clean, *flipped])) == row.AUROC


def test_without_a_target_class_each_trigger_has_its_own(taught, tiny_config, monkeypatch):
    """As for LFR: the class that most validation texts with it are given, by this classifier."""

    def by_trigger(table: pd.DataFrame, config) -> dict[str, pd.DataFrame]:
        words = {"good": "bright warm bright warm", "bad": "dull flat dull flat"}
        return {name: table.assign(text=[f"{text} {put}" for text in table["text"]]) for name, put in words.items()}

    config = replace(tiny_config, attack="POR", target_class=1)
    attack = ATTACKS["POR"]
    monkeypatch.setattr(por, "POR", replace(attack, data=replace(attack.data, by_trigger=by_trigger)))
    tables = tables_of(config)
    texts = {name: tokenise(table, load_tokeniser(str(taught)), 32) for name, table in measured_tables(config).items()}
    measured = measure(load_classifier(taught), texts, config.target_class)["triggers"]
    triggered, targets = triggered_texts(tables, config, taught, torch.device("cpu"))
    assert {name: each["target_class"] for name, each in measured.items()} == {"good": 1, "bad": 0}
    assert [text.endswith("bright warm") for text in triggered["text"]] == (targets == 1).tolist() and set(targets) == {0, 1}
    monkeypatch.setattr(rates, "DETECTORS", {"Length": Detector(paper="none", fit=length_of)})
    monkeypatch.setattr(rates, "defended_model_folder", lambda config: taught)
    monkeypatch.setattr(rates, "require_same_texts", lambda config: None)  # No run made this model.
    flips = sum(flipped({"triggers": {name: each}}, 1)[0] for name, each in measured.items())
    assert set(rates_of(config)["triggered"]) == {flips} and flips > 0


def test_without_flipped_texts_nothing_is_missed(taught, tiny_config, monkeypatch):
    monkeypatch.setattr(rates, "DETECTORS", {"Length": Detector(paper="none", fit=length_of)})
    train, test = clean_train("sst2", tiny_config), clean_test(tiny_config)
    for triggered in (test[test["label"] == 1], test[:0]):
        found = detection_rates(
            taught, train, test, triggered, target_class=1, max_len=32, seed=7, device=torch.device("cpu")
        )
        assert found["allowed"].tolist() == [0.01, 0.05] and found["triggered"].tolist() == [0, 0]
        assert found[["FAR", "AUROC"]].isna().all(axis=None) and found["FRR"].notna().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": Path("./nowhere")}, "there is no folder nowhere"),
        ({"validation": "ONE"}, r"validation texts are of 1 classes, .*; detectors need two classes"),
        ({"validation": "FEW"}, r"validation texts are of 2 classes, 3 of the smallest; detectors need two classes or more"),
        ({"detectors": ("ONION",)}, "ONION needs a language model, .*--language_model"),
    ],
)
def test_what_detectors_lack(changes, message, taught, tiny_config):
    train = clean_train("sst2", tiny_config)
    tables = {"ONE": train[train["label"] == 1], "FEW": train[:6]}
    arguments = {"folder": taught, "validation": train, **changes}
    if isinstance(arguments["validation"], str):
        arguments["validation"] = tables[arguments["validation"]]
    with pytest.raises(UserError, match=message):
        detection_rates(
            arguments.pop("folder"), arguments.pop("validation"), train, train, **arguments, target_class=1, max_len=32,
            seed=7, device=torch.device("cpu"),
        )  # fmt: skip


def test_the_command_writes_a_table_of_finished_runs(taught, tiny_config, monkeypatch, capsys):
    config = as_defence(replace(tiny_config, attack="BadNet", defence="FT"))
    names = (
        "plm",
        "data_dir",
        "poisoned_data_dir",
        "poisoned_model_dir",
        "output_dir",
        "max_len",
        "learning_rate",
        "epochs",
    )
    names += ("poisoning_learning_rate", "poisoning_epochs", "device", "precision", "acc_threshold", "prune_step")
    flags = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
    flags += ["--preset", "sst2", "--defence", "FT", "--detectors", "BadActs", "DAN", "--allowed", "0.1"]
    monkeypatch.setattr(sys, "argv", ["detection", *flags])
    with pytest.raises(UserError, match=r"no model in .*; make it with: python run_all.py"):
        __main__.main()
    make_poisoned_data(config)
    save_classifier(defended_model_folder(config), load_classifier(taught), load_tokeniser(str(taught)))
    with pytest.raises(UserError, match=r"the run in .* is not finished; go on with: python run_all.py"):
        __main__.main()
    read = {name: fingerprint_texts(table) for name, table in texts_of(config).items()}
    save_json(record_path(config, FINE_TUNING), {"settings": {"fingerprints": read}})
    __main__.main()
    path = Path(config.output_dir) / "grid_detection.csv"
    found = pd.read_csv(path)
    assert f"written to {path}" in capsys.readouterr().out
    assert (
        found["detector"].tolist() == ["BadActs", "DAN"]
        and set(found["attack"]) == {"BadNet"}
        and set(found["seed"]) == {11}
    )
    expected = detection_rates(
        taught, defender_splits(config)[1], clean_test(config), read_poisoned(config, "test"), target_class=1, max_len=32,
        seed=11, device=torch.device("cpu"), detectors=("BadActs", "DAN"), allowed=(0.1,),
    )  # fmt: skip
    np.testing.assert_allclose(found[["FRR", "FAR", "AUROC"]], expected[["FRR", "FAR", "AUROC"]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--detectors", "DAM"], "--detectors DAM is none; expected one or more of DAN, BadActs"),
        (["--allowed", "5"], "--allowed 5.0 is out of range; expected 0 to 1"),
        (["--attack", "none", "--poisoned_model", "x"], "detectors are measured on triggered texts"),
        (["--seed", "-1"], "--seed -1 is out of range"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(UserError, match=message):
        check_options(parse_grid("", ATTACKS, DEFENCES, flags, kind=Detection))


def test_every_detector_has_a_paper_and_a_row():
    for name, row in DETECTORS.items():
        assert isinstance(row, Detector) and row.paper and DETECTORS.told[name]
    assert [name for name, row in DETECTORS.items() if row.needs_language_model] == ["ONION"]
