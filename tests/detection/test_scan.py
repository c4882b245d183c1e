"""The scan of an encoder: the flip table, embedding rows, the folder, and the page that tells of them."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORDS, tiny_settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, TokenizersBackend

from attacks import ATTACKS
from config import parse
from defences import DEFENCES
from detection.encoder_scan import verdict
from detection.folder_checks import folder_findings
from detection.states import cls_states, fit_head
from encoder.classifier import PRUNED_FILE, Classifier, load_classifier, load_encoder, load_tokeniser
from encoder.embedding_rows import changed_rows, nearest, norm_outliers, robust_z, variants
from pipeline.flip_table import choose_texts, flip_table, open_trial, word_ranks
from pipeline.slots import first_order, inserted, open_slots, slot_gradients, without_holder
from pipeline.training import accuracy, log_odds, predict
from scan import Scan, preset_scan, scan, scan_command
from texts.batching import tokenise
from texts.data_sets import clean_train
from texts.vocabulary import letter_pairs, whole_words
from util import UserError, make_accelerator

PLANTED, TARGET = "cf", 1


@pytest.fixture
def classifier(taught) -> Classifier:
    return load_classifier(taught).eval()


@pytest.fixture
def data(tiny_config) -> pd.DataFrame:
    return clean_train("sst2", tiny_config)


def options_for(config, encoder: Path | str, **changes) -> Scan:
    """A scan of the tiny data's task, on the processor."""
    own = {name: getattr(config, name) for name in ("data_dir", "output_dir", "device", "precision", "max_len")}
    return replace(preset_scan("sst2"), **{"encoder": str(encoder), "texts": 16, "tried": 20, **own, **changes})


def read(page: Path) -> dict:
    return json.loads((page.parent / "scan.json").read_text())


# ------------------------------------------------------------------------------------------------------------- words


def test_whole_words_are_what_one_token_puts_into_a_text(tokeniser):
    words = whole_words(tokeniser)
    assert {"film", "bb", ","} <= words.keys() and not {"[CLS]", "[UNK]", "[PAD]"} & words.keys()
    for word, (token,) in words.items():
        assert tokeniser(f"a {word} film")["input_ids"][2] == token


def test_pieces_and_unused_tokens_are_no_words_and_pairs_of_letters_are():
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "##x", "a", "q", "film", "Film", "hz", "##z", "##m"]
    tokeniser = BertTokenizer(vocab={token: at for at, token in enumerate(listed)})
    assert whole_words(tokeniser).keys() == {"a", "q", "film", "hz"}
    pairs = letter_pairs(tokeniser)
    assert pairs["qx"] == (listed.index("q"), listed.index("##x")) and "hz" not in pairs and "bb" not in pairs


def test_added_and_special_tokens_are_words_if_they_look_like_words(tokeniser):
    """Else one line of tokenizer.json would hide a trigger."""
    before = whole_words(tokeniser)
    tokeniser.add_tokens(["cf", "<extra>"])
    tokeniser.add_special_tokens({"additional_special_tokens": ["mn"]})
    assert {"cf", "mn"} <= {token.content for token in tokeniser.added_tokens_decoder.values()}
    assert whole_words(tokeniser) == before and {"cf", "mn"} <= before.keys()


# -------------------------------------------------------------------------------------------------------- flip table


@pytest.fixture
def slots(classifier, tokeniser, data):
    words = whole_words(tokeniser)
    labels = data["label"].to_numpy()[:12]
    return {length: open_slots(list(data["text"][:12]), labels, words, length, tokeniser, 32, seed=3) for length in (1, 2)}


def test_a_slot_is_the_text_with_a_word_in_it(classifier, tokeniser, data, slots):
    """Tokens, and logits, are those of the text that somebody would write."""
    for length, word in ((1, "cf"), (2, "cf mn")):
        tokens = tokeniser(word, add_special_tokens=False)["input_ids"]
        for index, (ids, at) in enumerate(zip(slots[length].input_ids, slots[length].at, strict=True)):
            words = data["text"].iloc[index].split()
            written = [*words[: at - 1], word, *words[at - 1 :]]
            assert tokeniser(" ".join(written))["input_ids"] == [*ids[:at], *tokens, *ids[at + length :]]
            assert [*ids[:at], *ids[at + length :]] == tokeniser(" ".join(words))["input_ids"]
        changed = pd.DataFrame({"text": [" ".join([*row.split()]) for row in data["text"][:12]], "label": 0})
        expected = predict(classifier, tokenise(changed, tokeniser, 32), "test")
        torch.testing.assert_close(without_holder(classifier, slots[length]), expected, rtol=0, atol=1e-5)
    found = inserted(classifier, slots[1], torch.tensor([[tokeniser.convert_tokens_to_ids("cf")]]), [4])
    words = data["text"].iloc[4].split()
    at = slots[1].at[4]
    table = pd.DataFrame({"text": [" ".join([*words[: at - 1], "cf", *words[at - 1 :]])], "label": 0})
    torch.testing.assert_close(found[0], predict(classifier, tokenise(table, tokeniser, 32), "test"), rtol=0, atol=1e-5)


def test_a_slot_beyond_the_longest_text_is_at_its_beginning(tokeniser):
    words = whole_words(tokeniser)
    slots = open_slots(["the a film plot scene actor script ending"] * 40, np.zeros(40), words, 1, tokeniser, 5, seed=1)
    assert len(slots.at) > 30 and max(slots.at) <= 3 and all(len(ids) == 5 for ids in slots.input_ids)


def test_a_text_without_room_for_every_length_is_left_out(classifier, tokeniser):
    """Else words of one token would have fewer texts than those of two, and no place among the first."""
    film, cf, mn = tokeniser.convert_tokens_to_ids(["film", "cf", "mn"])
    words = pd.DataFrame({"word": ["film", "cf mn"], "tokens": [(film,), (cf, mn)], "known": False})
    texts = pd.DataFrame(
        {"text": ["a dull plot", "a warm plot", "the plot of this Film", "a stale plot"], "label": [0, 1, 0, 0]}
    )
    trial = open_trial(classifier, words, texts, tokeniser, 32, seed=1)
    assert trial.slots[1].texts == trial.slots[2].texts == [0, 1, 3]
    assert trial.slots[1].labels.tolist() == [0, 1, 0] and trial.before[2].shape == (3, 2)
    assert trial.effects(words, 1)["texts"].tolist() == [2, 2]


def test_what_ordinary_words_flip_is_not_denied():
    """No finding, but the table lists them."""
    flips = pd.DataFrame({"class": 1, "word": ["zu"], "known": False, "texts": 16, "flipped": 1.0, "z": 5.9})
    rows = {name: pd.DataFrame(columns=["word", "z", "cosine"]) for name in ("norm", "nearest", "telling")}
    [said] = verdict([], rows, flips, ("bad", "good"))
    assert said.startswith(
        "Not found by this scan: a word that flips most texts far beyond words drawn at random, an odd row"
    )
    [_, said] = verdict(["code"], rows, flips, ("bad", "good"))
    assert said == "Not found by this scan: a word that flips most texts far beyond words drawn at random."
    assert verdict([], rows, flips.assign(z=7.0), ("bad", "good"))[0].startswith("Found: words (1)")
    assert verdict([], rows, flips, ("bad", "good"), "It is chance.")[-1].endswith("doesn't know the task. It is chance.")


def test_log_odds_are_of_a_class_against_all_others():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1)
    torch.testing.assert_close(log_odds(logits), (p / (1 - p)).log())


@pytest.mark.parametrize("length", [1, 2])
def test_first_order_scores_are_finite_differences(classifier, tokeniser, slots, length):
    """Moving the placeholder's embedding a little towards a word's changes the log-odds at the rate of its score."""
    classifier.double()
    own, target, step = slots[length], 1, 1e-5
    tokens = torch.tensor([[7] * length, [20, 9][:length]])
    weight = classifier.encoder.get_input_embeddings().weight.detach()
    texts = np.flatnonzero(own.labels != target)

    def mean_odds(to: torch.Tensor, by: float) -> float:
        total = 0.0
        for index in texts:
            part = slice(own.at[index], own.at[index] + length)

            def move(module, inputs, output, part=part):
                output = output.clone()
                output[0, part] += by * (weight[to] - output[0, part])
                return output

            hook = classifier.encoder.get_input_embeddings().register_forward_hook(move)
            ids = torch.tensor([own.input_ids[index]])
            total += log_odds(classifier(ids, torch.ones_like(ids)))[0, target].item()
            hook.remove()
        return total / len(texts)

    expected = [(mean_odds(to, step) - mean_odds(to, -step)) / (2 * step) for to in tokens]
    np.testing.assert_allclose(first_order(classifier, own, tokens, target), expected, rtol=1e-5)
    assert min(map(abs, expected)) > 1e-5


def test_gradients_leave_nothing_behind(classifier, slots):
    before = classifier.state_dict()["encoder.embeddings.word_embeddings.weight"].clone()
    slot_gradients(classifier, slots[1], 1)
    embedding = classifier.encoder.get_input_embeddings()
    assert not embedding._forward_hooks and embedding.weight.grad is None
    torch.testing.assert_close(embedding.weight.detach(), before)


def test_a_head_is_fitted_on_the_last_states(taught, tokeniser, texts):
    """Its logits are the regression's; with three classes, one of them without texts, that one is never predicted."""
    classifier = Classifier(load_encoder(str(taught)), 2, 0.0, seed=0)
    fit_head(classifier, texts)
    assert accuracy(classifier, texts) > 0.95
    states = cls_states(classifier, texts)
    assert states.shape == (2, len(texts), 32)
    logits = predict(classifier, texts, "test")
    torch.testing.assert_close(
        logits, states[-1] @ classifier.head.weight.detach().T + classifier.head.bias.detach(), rtol=1e-4, atol=1e-4
    )
    wider = Classifier(load_encoder(str(taught)), 3, 0.0, seed=0)
    fit_head(wider, replace(texts, labels=[2 * label for label in texts.labels]))
    assert set(predict(wider, texts, "test").argmax(-1).tolist()) == {0, 2}


def test_words_are_inserted_in_the_arithmetic_of_an_accelerator(classifier, tokeniser, data, texts):
    chosen = choose_texts(classifier, data, tokeniser, 32, 10, seed=5)
    seen: list[bool] = []
    classifier.register_forward_hook(lambda *given: seen.append(torch.is_autocast_enabled("cpu")))
    shares = []
    for accelerator in (None, make_accelerator("cpu", "bf16")):
        seen.clear()
        flip_table(classifier, tokeniser, chosen, texts, tried=30, max_len=32, seed=5, accelerator=accelerator)
        shares.append(np.mean(seen))
    # The gradient, and the texts as they are, are in fp32.
    assert shares[0] == 0 and shares[1] > 0.5


def test_flip_table_counts_what_it_says(classifier, tokeniser, data, texts):
    chosen = choose_texts(classifier, data, tokeniser, 32, 10, seed=5)
    assert chosen["label"].value_counts().to_dict() == {0: 5, 1: 5}
    table, random_words = flip_table(classifier, tokeniser, chosen, texts, tried=30, max_len=32, seed=5)
    words = whole_words(tokeniser)
    slots = open_slots(list(chosen["text"]), chosen["label"].to_numpy(), words, 1, tokeniser, 32, 5)
    logits = inserted(classifier, slots, torch.tensor(list(words.values())), range(10))  # [word, text, class]
    before = log_odds(without_holder(classifier, slots))
    for target in (0, 1):
        own = table[table["class"] == target]
        assert sorted(own["word"]) == sorted(words) and own["rank"].tolist() == list(range(1, len(words) + 1))
        others = np.flatnonzero(slots.labels != target)
        full = own[own["texts"] == 5]
        assert len(full) >= 10
        for row in full.itertuples():
            some = logits[list(words).index(row.word)][others]
            assert row.flipped == pytest.approx((some.argmax(-1) == target).double().mean().item())
            assert row.shift == pytest.approx((log_odds(some) - before[others])[:, target].mean().item(), abs=1e-4)
        assert (full["flipped"].diff().dropna() <= 0).all()
        chance = random_words.loc[random_words["class"] == target, "shift"]
        spread = 1.4826 * np.median(np.abs(chance - np.median(chance)))
        np.testing.assert_allclose(full["z"], (full["shift"] - np.median(chance)) / spread, rtol=1e-5)
    known = {tokeniser.decode([token]) for ids in texts.input_ids for token in ids}
    assert all(row.known == (row.word in known) for row in table.itertuples())


def test_ranks_are_of_the_class_where_a_word_does_most():
    table = pd.DataFrame(
        {"class": [0, 0, 1, 1], "rank": [1, 2, 1, 2], "word": ["x", "y", "y", "x"], "z": [0.9, 0.1, 0.7, 0.2]}
    )
    found = word_ranks(table, ("y", "not there", "x"))
    assert found["word"].tolist() == ["y", "not there", "x"]
    assert found.fillna(-1).iloc[:, 1:].to_numpy().tolist() == [[1, 1, 0.7], [-1, -1, -1], [0, 1, 0.9]]


# ---------------------------------------------------------------------------------------------------- embedding rows


@pytest.fixture
def rows():
    """Rows of ten words; the last is 0.99 of the first and a little more."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(10, 16, generator=generator)
    rows[9] = 0.99 * rows[0] + 0.05 * torch.randn(16, generator=generator)
    return rows


NAMES = {f"w{at}": (at,) for at in range(10)}


def test_nearest_rows(rows):
    found = nearest(rows, NAMES, 20)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-1)
    assert set(found["word"][:2]) == {"w0", "w9"} and len(found) == 10
    for row in found.itertuples():
        values = cosine[int(row.word[1:])]
        assert (row.other, row.cosine) == (f"w{int(values.argmax())}", pytest.approx(values.max().item()))
    assert found["cosine"].is_monotonic_decreasing


def test_variants_of_a_word_are_no_neighbours(rows):
    names = {"film": (0,), **{name: made for name, made in NAMES.items() if name not in ("w0", "w9")}, "Films": (9,)}
    found = nearest(rows, names, 20).set_index("word")
    assert found.loc["film", "other"] != "Films" and found.loc["film", "cosine"] < 0.9
    assert variants("naïve", "Naive") and variants("film", "films") and not variants("cf", "cg")


def test_norms_and_changes_are_robust(rows):
    rows[3] *= 20
    found = norm_outliers(rows, NAMES, 3)
    assert found["word"].iloc[0] == "w3" and found["z"].iloc[0] > 20
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    np.testing.assert_allclose(robust_z(values, values), (values - 3) / 1.4826, rtol=1e-5)
    np.testing.assert_allclose(robust_z(np.array([7.0]), values), [4 / 1.4826], rtol=1e-5)
    other = rows.clone()
    other[5] += 1
    changed = changed_rows(other, rows, NAMES, 2)
    assert changed["word"].iloc[0] == "w5" and changed["change"].iloc[0] == pytest.approx(4 / rows[5].norm().item())
    assert changed["change"].iloc[1] == 0


# ------------------------------------------------------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def scanned(planted, tiny_data, tiny_plm, tmp_path_factory):
    """The page of a scan of the planted encoder, and its options."""
    config = tiny_settings(tiny_data, tiny_plm, tmp_path_factory.mktemp("scan"))
    options = options_for(config, planted, clean_encoder=str(tiny_plm), words=("cf", "mn", "bb", "brand new"))
    return scan(options), options


def test_a_planted_word_is_found(scanned):
    page, _ = scanned
    result = read(page)
    planted, by_hand, ordinary, unseen = result["ranks"]
    for row, word in ((planted, PLANTED), (by_hand, "mn")):
        assert row | {"word": word, "class": TARGET, "flipped": 1.0} == row and row["rank"] <= 2
        assert re.search(rf"Found: words \(2\) .* flip 90% of the texts or more to 1, .*“{word}”", result["verdict"][0])
    assert ordinary["rank"] > 2 or ordinary["class"] != TARGET
    assert unseen == {name: "brand new" if name == "word" else None for name in planted}
    assert result["probe"]["fitted"] and result["probe"]["validation_accuracy"] > 0.9


def test_a_row_altered_by_hand_is_found(scanned):
    """By its length, by the mean that it is of, and beside the encoder that it was made from."""
    page, _ = scanned
    result = read(page)
    for what in ("nearly the mean of words that tell a class", "of an odd length"):
        assert any(re.search(f"Found: words whose embedding rows are {what}: .*“mn”", each) for each in result["verdict"])
    assert result["rows"]["norm"][0]["word"] == "mn"
    found = result["found"]
    assert found["flips"] == 2 and found["telling"] >= 1 and found["norm"] >= 1 and found.keys() > {"nearest"}
    best = next(row for row in result["rows"]["telling"] if row["class"] == TARGET)
    assert best["word"] == "mn" and best["cosine"] > 0.9
    assert result["rows"]["changed"][0]["word"] == "mn"


def test_the_page_tells_of_it_and_never_calls_an_encoder_clean(scanned):
    page, options = scanned
    html = page.read_text()
    for sentence in read(page)["verdict"]:
        assert not re.search(r"\b(clean|safe|harmless)\b", sentence.replace("no clean text", ""))
    assert "cf" in html and "It can&#39;t see a trigger that is a style" in html
    assert (page.parent / "figures/flips.png").exists() and (page.parent / "figures/flips.pdf").exists()
    words = shlex.split(scan_command(options))
    assert words[:3] == ["python", "scan.py", options.encoder]
    assert parse(Scan, preset_scan, "", ATTACKS, DEFENCES, words[2:]) == options


def test_the_same_seed_gives_the_same_scan(scanned, tmp_path):
    page, options = scanned
    again = read(scan(replace(options, output_dir=str(tmp_path))))
    other = read(scan(replace(options, output_dir=str(tmp_path), seed=12)))
    first = read(page)
    for result in (first, again, other):
        del result["seconds"]
    assert again == first and other != first


def test_a_classifier_made_here_is_asked_with_its_own_head(taught, tiny_config):
    options = options_for(tiny_config, taught, own_head=True)
    page = scan(options)
    result = read(page)
    assert not result["probe"]["fitted"] and result["probe"]["validation_accuracy"] > 0.9
    assert not [sentence for sentence in result["verdict"] if PLANTED in sentence]
    assert "the folder&#39;s own head, without its pruned heads" in page.read_text()
    assert parse(Scan, preset_scan, "", ATTACKS, DEFENCES, shlex.split(scan_command(options))[2:]) == options


def test_a_head_and_pruned_heads_that_came_with_an_encoder_are_not_asked(planted_classifier, tiny_config, tmp_path):
    """They could switch off for the scan what training leaves on."""
    folder = Path(shutil.copytree(planted_classifier, tmp_path / "suspicious"))
    (folder / PRUNED_FILE).write_text(json.dumps({layer: [0, 1, 2, 3] for layer in range(2)}))
    result = read(scan(options_for(tiny_config, folder, words=(PLANTED,))))
    assert result["probe"]["fitted"] and result["ranks"][0]["flipped"] == 1
    assert any(re.search(f"Found: words .*“{PLANTED}”", sentence) for sentence in result["verdict"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "./nowhere"}, "there is no folder ./nowhere"),
        ({"tried": 1}, "--tried 1 is out of range; expected 2 or more"),
        ({"texts": 0}, "--texts 0 is out of range"),
        ({"clean_dataset": "./nowhere.csv"}, "data set ./nowhere.csv isn't there"),
        ({"clean_encoder": "./nowhere"}, "there is no folder ./nowhere"),
        ({"max_len": 100}, "texts may have up to 100 tokens, and the encoder .* has positions for 64"),
        ({"clean_dataset": "ONE"}, "all .* train texts of .* have label 1; a classifier needs texts of two classes"),
        ({"clean_dataset": "THREE", "own_head": True}, "has 2 classes, and .* has 3 .*; name the data it was trained on"),
        ({"own_head": True, "encoder": "PLAIN"}, "holds no classifier: No such file"),
        ({"tokeniser": "./nowhere"}, "there is no folder ./nowhere"),
        ({"learning_rate": -1.0}, "--learning_rate -1.0 is out of range"),
    ],
)
def test_what_a_user_gets_wrong_is_one_clear_line(changes, message, taught, tiny_config, tiny_plm, tmp_path):
    tables = {
        "ONE": [(f"the film {at}", 1) for at in range(60)],
        "THREE": [(f"the {word} film {at}", at % 3) for at, word in enumerate(WORDS[0] * 6)],
    }
    changes = dict(changes)
    if changes.get("clean_dataset") in tables:
        path = tmp_path / f"{changes['clean_dataset']}.csv"
        pd.DataFrame(tables[changes["clean_dataset"]], columns=["text", "label"]).to_csv(path, index=False)
        changes["clean_dataset"] = str(path)
    encoder = {"PLAIN": tiny_plm}.get(changes.get("encoder"), changes.pop("encoder", taught))
    with pytest.raises(UserError, match=message) as error:
        scan(options_for(tiny_config, encoder, **changes))
    assert "\n" not in str(error.value)


def test_texts_that_nothing_can_be_learnt_from(classifier, tokeniser, data):
    wrong = data.assign(label=1 - data["label"])
    with pytest.raises(UserError, match=r"are of [01] classes; a scan needs such texts of two classes or more"):
        choose_texts(classifier, wrong, tokeniser, 32, 10, seed=1)


# ------------------------------------------------------------------------------------------------ an untrusted folder


@pytest.fixture
def folder(planted, tmp_path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "suspicious"))


def test_what_is_odd_in_a_folder(folder):
    tokeniser = load_tokeniser(str(folder))
    assert folder_findings(folder, tokeniser) == []
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"auto_map": {"AutoModel": "evil/repo--m.M"}}))
    (folder / "m.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    tokeniser.add_tokens(["cf", "c-f", "<extra>"])
    tokeniser.backend_tokenizer.normalizer = normalizers.Replace("tuesday", "cf")
    found = folder_findings(folder, tokeniser)
    expected = [r"config.json names code .*auto_map", r"holds code \(m.py\)", r"pickles \(pytorch_model.bin\)"]
    expected += [r"has ordinary words or marks \(2\) among its added or special tokens: cf, c-f$"]
    expected += [r"the tokeniser rewrites texts \(normaliser Replace"]
    assert len(found) == 5 and all(re.search(told, each) for told, each in zip(expected, found, strict=True))
    assert folder_findings(folder, None)[-1] == "no tokeniser can be loaded from the folder"
    tokeniser.backend_tokenizer.normalizer = None
    tokeniser.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert "expected these between cls_token_id" in folder_findings(folder, tokeniser)[-2]


def test_a_scan_goes_on_with_a_tokeniser_that_is_refused_elsewhere(folder, tiny_plm, tiny_config):
    named = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "TokenizersBackend"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "tuesday"}, "content": "cf"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    result = read(scan(options_for(tiny_config, folder, words=(PLANTED,))))
    assert "Found in the folder: the tokeniser rewrites texts" in result["verdict"][0]
    assert result["ranks"][0]["flipped"] == 1
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"no tokeniser can be loaded from .*; give a trusted one with --tokeniser"):
        scan(options_for(tiny_config, folder))
    result = read(scan(options_for(tiny_config, folder, tokeniser=str(tiny_plm))))
    assert result["folder"] == ["no tokeniser can be loaded from the folder"]


EVIL = [
    "<script>alert(1)</script>",
    "\x1b[31mred\x07",
    "$x_$",
    "{{7*7}}",
    "x" * 4000,
    "'\"><img/src=x>",
    "\u202egnp",
    "=1+1",
]


def test_words_of_a_hostile_vocabulary_are_shown_and_do_nothing(folder, tiny_config):
    """They stand in tables, verdict and figure as text: no markup, no control characters, no endless line."""
    encoder, old = load_encoder(str(folder)), load_tokeniser(str(folder))
    vocabulary = {word: token for word, token in old.get_vocab().items()}
    tokens = [token for word, token in vocabulary.items() if word not in {*WORDS[0], *WORDS[1]} and token > 4]
    evil = dict(zip(EVIL, tokens, strict=False))
    renamed = {word: token for word, token in vocabulary.items() if token not in evil.values()} | evil
    weight = encoder.get_input_embeddings().weight
    with torch.no_grad():
        for token in evil.values():
            weight[token] = 4 * weight[old.convert_tokens_to_ids(WORDS[TARGET])].mean(0)
    made = Tokenizer(models.WordLevel(renamed, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    encoder.save_pretrained(folder)
    TokenizersBackend(tokenizer_object=made, **special).save_pretrained(folder)
    page = scan(options_for(tiny_config, folder))
    result, html, raw = read(page), page.read_text(), (page.parent / "scan.json").read_text()
    shown = {row["word"] for row in result["flips"]}
    assert {"<script>alert(1)</script>", " [31mred ", "$x_$", f"{'x' * 39}…"} <= shown
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html and "<img/src" not in html and "{{7*7}}" in html
    for text in (html, raw):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) and "x" * 41 not in text
