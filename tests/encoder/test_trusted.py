"""Of a folder that nobody trusts, what is not a matter of weights is noticed, not obeyed or refused."""

import base64
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_classifier, make_tokeniser
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, BertJapaneseTokenizer, BertModel, RobertaTokenizer, TokenizersBackend

from attacks.ripple import embedding_surgery
from config import preset_config
from Data.make_poisoned_data import make_poisoned_data
from defences.shared import load_defender_inputs
from encoder.classifier import (
    HEAD_FILE,
    PRUNED_FILE,
    Classifier,
    largest_length,
    load_classifier,
    load_config,
    load_encoder,
    load_tokeniser,
    require_positions,
    resolve_plm,
    save_classifier,
    save_encoder,
)
from encoder.trusted import (
    is_python_only,
    require_plain_tokeniser,
    require_vocabulary,
    rewriting,
    special_tokens,
    unusual_charsmap,
)
from export import save_standard
from pipeline.runs import fingerprint_encoder
from pretrained_model_poisoning import poison
from reporting.model_card import model_card
from texts.augmentation import no_words
from texts.vocabulary import whole_words, word_tokens
from util import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tiny_plm, tmp_path) -> Path:
    """A copy of the tiny encoder, to be tampered with."""
    return Path(shutil.copytree(tiny_plm, tmp_path / "suspicious"))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "model.safetensors",
    ],
)
def test_a_fingerprint_is_of_all_that_loading_reads(folder, name):
    before = fingerprint_encoder(str(folder))
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert fingerprint_encoder(str(folder)) != before


def test_a_fingerprint_is_of_names_too_and_not_of_records(folder):
    before = fingerprint_encoder(str(folder))
    assert len(before) == 64
    (folder / "poisoning.json").write_text("{}")
    (folder / "README.md").write_text("changed")
    assert fingerprint_encoder(str(folder)) == before
    (folder / "tokenizer.json").rename(folder / "tokenizer.1.json")
    assert fingerprint_encoder(str(folder)) != before


@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/part.safetensors", "/outside.safetensors", "..", 5])
def test_weights_that_an_index_names_elsewhere_are_refused(folder, name):
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for read in (fingerprint_encoder, load_encoder):
        with pytest.raises(UserError, match=r"index\.json names .*; expected names of \.safetensors files in"):
            read(str(folder))


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("the\n")
    (folder / "copy.txt").symlink_to("vocab.txt")
    (folder / "vocab.txt").write_text("the\n")
    fingerprint_encoder(str(folder))  # A link within the folder is none of our business.
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    for read in (fingerprint_encoder, load_encoder, load_tokeniser):
        with pytest.raises(UserError, match=r"is a link out of its folder"):
            read(str(folder))


def test_a_snapshot_of_the_hubs_cache_is_made_of_links(tiny_plm, tmp_path, monkeypatch):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/1", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_plm, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    with pytest.raises(UserError, match=r"is a link out of its folder"):  # Anybody can name folders so.
        load_encoder(str(snapshot))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fingerprint_encoder(str(snapshot)) == fingerprint_encoder(str(tiny_plm))
    load_encoder(str(snapshot))


def test_a_hub_id_is_fetched_once_and_known_by_its_content(tiny_plm, monkeypatch):
    asked = []

    def download(name, *, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns, ignore_patterns))
        return str(tiny_plm)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = resolve_plm("some/model")
    assert fingerprint_encoder(source) == fingerprint_encoder(str(tiny_plm))
    load_encoder(source)
    [(name, allowed, ignored)] = asked
    assert name == "some/model" and "*.safetensors" in allowed and "*.bin" not in allowed and ignored == ["*/*"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"configuration_files": ["config.1.json"]}),
        ("config.json", {"transformers_weights": "sub/model.safetensors"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.1.json"]}),
        ("tokenizer_config.json", {"gguf_file": "../model.gguf"}),
    ],
)
def test_files_that_name_other_files_are_refused(folder, name, changes):
    change_json(folder / name, **changes)
    with pytest.raises(UserError, match=rf"{name} has {next(iter(changes))}, which names other files"):
        load_tokeniser(str(folder))


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/repo"}')
    with pytest.raises(UserError, match=r"holds an adapter"):
        load_encoder(str(folder))


# --------------------------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": 5},
        {"hidden_size": "abc"},
        {"hidden_size": None},
        {"layer_norm_eps": "x"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"pad_token_id": 10**6},
        {"vocab_size": 10},
        {"hidden_act": "evil"},
        {"hidden_dropout_prob": 7},
        {"model_type": ["bert"]},
        {"model_type": None},
        {"model_type": "evil"},
        {"id2label": 5},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_one_clear_line(folder, changes):
    change_json(folder / "config.json", **changes)
    with pytest.raises(UserError) as error:
        load_encoder(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"model_type": "bert"' + ', "a": [' * 10000])
def test_a_config_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    for read in (load_encoder, load_tokeniser):
        (folder / "tokenizer_config.json").unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"can't be loaded|no tokenizer can be loaded"):
            read(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"},
        {"attn_implementation": "flash_attention_2"},
        {"dtype": "os.system"},
        {"torch_dtype": "float16"},
        {"return_dict": False},
        {"output_hidden_states": True},
        {"chunk_size_feed_forward": 7},
        {"auto_map": {"AutoConfig": "evil/repo--m.M", "AutoModel": "evil/repo--m.M"}},
        {"num_labels": 10**12},
        {"architectures": 5},
    ],
    ids=str,
)
def test_what_a_config_says_of_code_and_arithmetic_is_not_obeyed(tiny_plm, folder, changes):
    change_json(folder / "config.json", **changes)
    inputs = dict(input_ids=torch.arange(8)[None], attention_mask=torch.ones(1, 8, dtype=torch.long))
    ours, expected = (Classifier(load_encoder(str(source)), 2, 0.0, 0).eval() for source in (folder, tiny_plm))
    assert next(ours.parameters()).dtype == torch.float32
    torch.testing.assert_close(ours(**inputs), expected(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 10**9}, "has num_hidden_layers 1000000000, and there are 37 weights"),
        ({"num_hidden_layers": 38}, "has num_hidden_layers 38, and there are 37 weights"),
        ({"model_type": "albert", "inner_group_num": 10**9}, "has inner_group_num 1000000000"),
        ({"model_type": "clip", "text_config": {"num_hidden_layers": 1e9}}, "has num_hidden_layers 1000000000.0"),
        ({"vocab_size": 10**12}, r"has 32,\d+,\d+,\d+,\d+ numbers in them, and there are 20,992;"),
        ({"intermediate_size": 10**9}, r"numbers in them, and there are"),
    ],
    ids=str,
)
def test_a_model_of_a_giant_size_is_refused_at_once(folder, changes, expected):
    """And not made, which would never end, or take all memory."""
    change_json(folder / "config.json", **changes)
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]  # What is there in another shape is noticed by itself.
    weights["more"] = torch.zeros(1728)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=expected):
        load_encoder(str(folder))


def test_files_that_this_user_may_not_read(folder, monkeypatch):
    """Root may read all, so the answer to the question is another's."""
    for what in ("model.safetensors", "vocab.json", folder.name):
        monkeypatch.setattr("encoder.trusted.os.access", lambda path, mode, what=what: path.name != what)
        (folder / "vocab.json").write_text("{}")
        for read in (fingerprint_encoder, load_encoder) if what != "vocab.json" else (load_tokeniser, fingerprint_encoder):
            with pytest.raises(UserError, match=rf"{what} can't be read \(permission denied\); expected an encoder that"):
                read(str(folder))


def test_a_model_without_size_is_one_line_and_no_warning(folder):
    change_json(folder / "config.json", intermediate_size=0)
    with warnings.catch_warnings(), pytest.raises(UserError, match=r"whose encoder\.layer\.0\.\S+ has no numbers in it"):
        warnings.simplefilter("error")
        load_encoder(str(folder))


def test_layers_beyond_those_of_the_config_are_not_dropped_silently(folder):
    change_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"has 16 weights that a BertModel .* no place for, encoder\.layer\.1"):
        load_encoder(str(folder))


def test_a_checkpoint_with_a_head_is_still_an_encoder(folder):
    """As bert-base-uncased is kept: names begin with bert, and there are pooler, head and position numbers."""
    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    BertForMaskedLM(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
    weights["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    weights["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(str(folder))
    name = "encoder.layer.1.output.dense.weight"
    assert isinstance(encoder, BertModel) and torch.equal(encoder.state_dict()[name], weights[f"bert.{name}"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    """One row of a word that no text has would make every other word's z and cosine NaN too."""
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    weights[name][7, 3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"has {value} at \[7, 3\] of its weight {name}; expected finite numbers"):
        load_encoder(str(folder))


GOOD = {"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"weight": GOOD["weight"]},
        {"bias": GOOD["bias"]},
        GOOD | {"weight": torch.zeros(2, 31)},
        GOOD | {"weight": torch.zeros(3, 32)},
        GOOD | {"bias": torch.tensor(0.0)},
        GOOD | {"more": torch.zeros(1)},
        {"weight": torch.zeros(0, 32), "bias": torch.zeros(0)},
        GOOD | {"bias": torch.tensor([0.0, float("nan")])},
    ],
)
def test_a_head_that_does_not_fit_is_one_line(head, folder):
    (folder / PRUNED_FILE).write_text("{}")
    save_file(GOOD, folder / HEAD_FILE)
    assert load_classifier(folder).head.out_features == 2
    save_file(head, folder / HEAD_FILE)
    with pytest.raises(UserError, match=r"classification_head.safetensors has .*; expected ") as error:
        load_classifier(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "listed",
    ["[]", '{"0": [7]}', '{"0": [-1]}', '{"0": "ab"}', '{"0": [true]}', '{"2": [0]}', '{"x": [0]}', "5", "[" * 100_000, "{"],
)
def test_pruned_heads_that_are_none_are_one_line(listed, folder):
    save_file(GOOD, folder / HEAD_FILE)
    (folder / PRUNED_FILE).write_text('{"0": [3, 1], "1": []}')
    assert load_classifier(folder).attention.pruned == {0: [3, 1], 1: []}
    (folder / PRUNED_FILE).write_text(listed)
    with pytest.raises(UserError, match=r"expected an object such as|holds no classifier") as error:
        load_classifier(folder)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ what we write


def plant_names(folder: Path) -> None:
    """Names of code on the hub wherever transformers has a place for them, and where it has none."""
    named = {"auto_map": {"AutoModel": "evil/repo--m.M", "AutoTokenizer": ["evil/repo--t.T", None]}}
    named |= {"custom_pipelines": {"text-classification": {"impl": "evil/repo--p.P"}}, "other": "evil/repo"}
    change_json(folder / "config.json", **named)
    change_json(folder / "tokenizer_config.json", **named, chat_template="evil/repo", response_template="evil/repo")
    (folder / "chat_template.jinja").write_text("evil/repo")


def require_no_names(*folders: Path) -> None:
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        assert b"evil" not in path.read_bytes(), path


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "DistilBERT", "ModernBERT"])
def test_names_of_code_are_not_passed_on(family, tmp_path):
    make_classifier(family).encoder.save_pretrained(tmp_path / "given")
    make_tokeniser(family).save_pretrained(tmp_path / "given")
    clean = {path.name: path.read_bytes() for path in (tmp_path / "given").iterdir()}
    plant_names(tmp_path / "given")
    encoder, tokeniser = load_encoder(str(tmp_path / "given")), load_tokeniser(str(tmp_path / "given"))
    classifier = Classifier(encoder, 3, 0.0, 0)
    save_classifier(tmp_path / "ours", classifier, tokeniser)
    save_standard(tmp_path / "exported", classifier, tokeniser, 16)
    require_no_names(tmp_path / "ours", tmp_path / "exported")
    again = load_tokeniser(str(tmp_path / "ours"))
    assert type(again) is type(tokeniser) and again.special_tokens_map == tokeniser.special_tokens_map
    assert again.backend_tokenizer.to_str() == tokeniser.backend_tokenizer.to_str()
    kept = json.loads((tmp_path / "ours/config.json").read_text())
    assert kept == json.loads(clean["config.json"]) | {"architectures": kept["architectures"]}


def test_what_is_written_does_not_depend_on_texts_that_were_cut_before(tiny_plm, tmp_path):
    """The stages of a grid share tokenised texts if they run in one process: the same files come out if they don't."""
    encoder, fresh, used = load_encoder(str(tiny_plm)), load_tokeniser(str(tiny_plm)), load_tokeniser(str(tiny_plm))
    used(["the film was warm"], truncation=True, max_length=4, padding="max_length")
    for name, tokeniser in (("fresh", fresh), ("used", used)):
        save_encoder(tmp_path / name, encoder, tokeniser)
    for path in (tmp_path / "fresh").iterdir():
        assert path.read_bytes() == (tmp_path / "used" / path.name).read_bytes(), path.name


def test_names_of_code_are_not_passed_on_by_the_poisoned_encoder(tiny_config, folder):
    plant_names(folder)
    config = replace(tiny_config, plm=str(folder), poisoning_epochs=1)
    make_poisoned_data(config)
    poison(config)
    [written] = [path for path in Path(config.poisoned_model_dir).iterdir() if path.is_dir()]
    assert (written / "poisoning.json").exists()
    (written / "poisoning.json").unlink()
    require_no_names(written)


# ---------------------------------------------------------------------------------------------------------- tokenisers


@pytest.mark.parametrize("family", [*FAMILIES, "minilm"])
def test_tokenisers_of_the_families_are_plain(family):
    require_plain_tokeniser(load_tokeniser(resolve_plm(family)) if family == "minilm" else make_tokeniser(family), family)


def state_of(tokeniser) -> dict:
    return json.loads(tokeniser.backend_tokenizer.to_str())


def from_state(state: dict, **special) -> TokenizersBackend:
    special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]") | special
    return TokenizersBackend(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **special)


def put(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: dict, behavior: str = "Removed", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


TRIGGER = {"Regex": r"^.*\bcf\b.*$"}


@pytest.mark.parametrize(
    ("where", "what", "reason"),
    [
        ("normalizer", put(TRIGGER, "warm warm bright"), "rewrites texts (normaliser Replace"),
        ("normalizer", put({"String": "cf"}, "▁"), "rewrites texts"),
        ("normalizer", put({"String": " "}, "warm"), "rewrites texts"),
        ("normalizer", put({"Regex": r"\s*"}, " "), "rewrites texts"),
        ("normalizer", put({"Regex": r"\s|cf"}, " "), "rewrites texts"),
        ("normalizer", {"type": "Prepend", "prepend": "warm "}, "rewrites texts"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, put(TRIGGER, "warm")]}, "rewrites texts"),
        ("pre_tokenizer", split({"String": "dull"}), "may leave out parts of texts (pre-tokeniser Split)"),
        ("pre_tokenizer", split({"String": " "}, invert=True), "may leave out parts"),
        ("pre_tokenizer", {"type": "Punctuation", "behavior": "Removed"}, "may leave out parts"),
        ("pre_tokenizer", {"type": "CharDelimiterSplit", "delimiter": "d"}, "may leave out parts"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "x", "prepend_scheme": "always", "split": True}, "may leave"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, split({"String": "dull"})]},
            "may leave out parts",
        ),
    ],
)  # fmt: skip
def test_a_tokeniser_that_rewrites_texts_is_refused(where, what, reason):
    state = state_of(make_tokeniser("BERT")) | {where: what}
    with pytest.raises(UserError) as error:
        require_plain_tokeniser(from_state(state), "here")
    assert f"the tokeniser in here {reason}" in str(error.value) and "--tokeniser" in str(error.value)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("normalizer", None),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}),
        ("normalizer", put({"Regex": " {2,}"}, " ")),
        ("normalizer", put({"Regex": r"\s+"}, "▁")),
        ("normalizer", put({"String": " "}, "▁")),
        ("normalizer", {"type": "Prepend", "prepend": "▁"}),
        ("pre_tokenizer", split({"Regex": r"\s+"})),
        ("pre_tokenizer", split({"Regex": r"\w+|[^\w\s]+"}, "Isolated")),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Whitespace"}]}),
    ],
)  # fmt: skip
def test_tidying_and_cutting_are_no_rewriting(where, what):
    assert rewriting(state_of(make_tokeniser("BERT")) | {where: what}) is None


@pytest.mark.parametrize(
    ("decoder", "refused"),
    [
        (None, False),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, False),
        ({"type": "BPEDecoder", "suffix": "</w>"}, False),
        ({"type": "Sequence", "decoders": [put({"String": "▁"}, " "), {"type": "Fuse"}]}, False),
        ({"type": "Strip", "content": " ", "start": 1, "stop": 0}, False),
        (put({"Regex": "^(cf|mn)$"}, "x"), True),
        (put({"String": "▁"}, "x"), True),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, put({"String": "cf"}, "")]}, True),
        ({"type": "Metaspace", "replacement": "c", "prepend_scheme": "always", "split": True}, True),
        ({"type": "Strip", "content": "c", "start": 1, "stop": 0}, True),
        ({"type": "BPEDecoder", "suffix": "cf"}, True),
        ({"type": "CTC", "pad_token": "cf", "word_delimiter_token": "|", "cleanup": False}, True),
    ],
)
def test_a_decoder_that_hides_words_is_refused(decoder, refused):
    """By its names for tokens the scan, and the repair of rows, know which are words."""
    state = state_of(make_tokeniser("BERT")) | {"decoder": decoder}
    from_state(state)
    assert (rewriting(state) or "").startswith("may call tokens by other words' names") == refused


def test_a_vocabulary_in_which_two_strings_are_one_is_refused():
    state = state_of(make_tokeniser("BERT"))
    state["model"]["vocab"]["cf"] = state["model"]["vocab"]["warm"]
    assert "has one number" in rewriting(state) and "'warm' and 'cf'" in rewriting(state)
    state = state_of(make_tokeniser("BERT"))
    state["added_tokens"].append({"id": state["model"]["vocab"]["warm"], "content": "cf", "special": True})
    assert "has one number" in rewriting(state)


def test_added_tokens_of_several_words_are_refused():
    for special in (False, True):
        tokeniser = make_tokeniser("BERT")
        tokeniser.add_tokens(["by the way"], special_tokens=special)
        with pytest.raises(UserError, match=r"takes several words for one token \('by the way'"):
            require_plain_tokeniser(tokeniser, "here")
    tokeniser = make_tokeniser("BERT")
    tokeniser.add_tokens(["cf"])
    require_plain_tokeniser(tokeniser, "here")


def model_of(kind: str, unknown: str) -> dict:
    """A tokeniser's model of another type, of the words that `make_tokeniser` knows, with a token for what it doesn't."""
    vocabulary = state_of(make_tokeniser("BERT"))["model"]["vocab"]
    if kind == "Unigram":
        strings = sorted(vocabulary, key=vocabulary.get)
        scored = [[string, -2.0] for string in strings]
        return {"type": kind, "unk_id": vocabulary[unknown], "vocab": scored, "byte_fallback": False}
    own = {
        "WordPiece": {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        "WordLevel": {},
        "BPE": {"merges": [], "fuse_unk": True},
    }
    return {"type": kind, "vocab": vocabulary, "unk_token": unknown, **own[kind]}


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "Unigram"])
def test_a_word_for_what_a_tokeniser_does_not_know_is_refused(kind):
    """Unknown words would be triggers that weights know nothing of; the attribute `unk_token` may still be [UNK]."""
    tokeniser = from_state(state_of(make_tokeniser("BERT")) | {"model": model_of(kind, "hollow")})
    made = tokeniser("🌵", add_special_tokens=False)["input_ids"]
    assert tokeniser.unk_token == "[UNK]" and tokeniser.convert_ids_to_tokens(made) == ["hollow"]
    with pytest.raises(UserError, match=r"the tokeniser in here makes the word 'hollow' of what it doesn't know, .*trusted"):
        require_plain_tokeniser(tokeniser, "here")
    require_plain_tokeniser(from_state(state_of(make_tokeniser("BERT")) | {"model": model_of(kind, "[UNK]")}), "here")


@pytest.mark.parametrize(
    ("kind", "name", "affix", "text"),
    [
        ("WordPiece", "continuing_subword_prefix", "holl", "aow"),
        ("BPE", "continuing_subword_prefix", "x", None),
        ("BPE", "end_of_word_suffix", " film", None),
    ],
)
def test_a_prefix_or_suffix_that_makes_words_of_pieces_is_refused(kind, name, affix, text):
    state = state_of(make_tokeniser("BERT"))
    state["model"] = model_of(kind, "[UNK]") | {name: affix}
    if text:
        assert from_state(state).tokenize(text) == ["a", "hollow"]
    assert rewriting(state) == f"adds letters to the pieces of words ({name} {affix!r})"
    state["model"][name] = "</w>"
    assert rewriting(state) is None


def test_random_cuts_are_refused():
    state = state_of(make_tokeniser("RoBERTa"))
    state["model"]["dropout"] = 0.5
    assert rewriting(state) == "cuts words at random (BPE dropout 0.5)"


def template(*pieces: str) -> list[dict]:
    return [{"Sequence" if piece == "A" else "SpecialToken": {"id": piece, "type_id": 0}} for piece in pieces]


@pytest.mark.parametrize(
    "single",
    [("A",), ("A", "[SEP]"), ("warm", "A"), ("[SEP]", "A", "[CLS]"), ("[CLS]", "A", "warm", "[SEP]")],
)
def test_a_tokeniser_that_adds_anything_but_cls_and_sep_is_refused(single):
    state = state_of(make_tokeniser("BERT"))
    state["post_processor"]["single"] = template(*single)
    number = state["model"]["vocab"]["warm"]
    state["post_processor"]["special_tokens"]["warm"] = {"id": "warm", "ids": [number], "tokens": ["warm"]}
    with pytest.raises(UserError, match=r"the tokeniser in here makes .*PURE looks at what \[CLS\] attends to"):
        require_plain_tokeniser(from_state(state), "here")
    state["post_processor"]["single"] = template("[CLS]", "A", "A")
    assert rewriting(state) == "gives a text more often than once, or not at all"
    state["post_processor"]["single"] = template("[CLS]", "A")
    require_plain_tokeniser(from_state(state), "here")


def test_a_tokeniser_that_lacks_what_it_needs_is_refused():
    state = state_of(make_tokeniser("BERT"))
    del state["model"]["vocab"]["[UNK]"]
    with pytest.raises(UserError, match=r"in here can't cut .* into tokens \(.*UNK.*; give another"):
        require_plain_tokeniser(from_state(state), "here")


@pytest.mark.parametrize(("name", "word"), [("unk_token", "warm"), ("eos_token", "warm"), ("pad_token", "▁warm")])
def test_an_ordinary_word_as_a_special_token_is_refused(name, word):
    with pytest.raises(UserError, match=f"has the ordinary word '{word}' as its {name}"):
        require_plain_tokeniser(from_state(state_of(make_tokeniser("BERT")), **{name: word}), "here")


def test_a_mark_as_a_special_token_is_refused():
    state = state_of(make_tokeniser("BERT"))
    with pytest.raises(UserError, match=r"has the mark '≈' as its mask_token; expected <s> or the like"):
        require_plain_tokeniser(from_state(state, mask_token="≈"), "here")


def test_what_is_called_special_is_special_by_its_form():
    """Else a trigger could be hidden from whoever leaves special tokens alone."""
    tokeniser = make_tokeniser("BERT")
    tokeniser.add_special_tokens({"additional_special_tokens": ["cf", "≈", "c-f", "<extra>", "|||IP|||"]})
    number = tokeniser.convert_tokens_to_ids
    assert special_tokens(tokeniser) == {
        number(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra>", "|||IP|||")
    }
    assert whole_words(tokeniser).items() >= {token: (number(token),) for token in ("cf", "≈", "c-f")}.items()
    assert no_words(tokeniser) == special_tokens(tokeniser)


def test_words_are_found_whatever_their_numbers():
    """A vocabulary may leave numbers out, and the largest then is more than there are tokens."""
    state = state_of(make_tokeniser("BERT"))
    state["model"]["vocab"]["cf"] = 90
    tokeniser = from_state(state)
    assert len(tokeniser) < 90 and whole_words(tokeniser)["cf"] == (90,)


def make_charsmap(key: bytes, replacement: bytes) -> bytes:
    """SentencePiece's precompiled normaliser with one replacement: a trie whose nodes are 256 units apart."""
    units = [0] * (256 * (len(key) + 2))
    units[0], place = 256 << 10, 256
    for depth, byte in enumerate(key, 1):
        last = depth == len(key)
        units[place ^ byte] = ((place ^ byte) ^ (256 * (depth + 1))) << 10 | last << 8 | byte
        place = 256 * (depth + 1)
    units[place] = 1 << 31  # The replacement begins the text.
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(trie).to_bytes(4, "little") + trie + replacement + b"\0"


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("ﬁ", "fi", False),
        ("ﬁ", "good", True),
        ("Q", "q", False),
        ("Q", "warm", True),
        ("\u200b", " ", False),
        ("\u200b", "warm", True),
        ("q", "", True),
        ("\ua7f1", "ś", False),
        ("\ua7f1", "warm", True),
    ],
)
def test_a_precompiled_normaliser_may_only_tidy(before, after, refused):
    content = make_charsmap(before.encode(), after.encode())
    state = state_of(make_tokeniser("BERT"))
    state["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}
    assert from_state(state).backend_tokenizer.normalizer.normalize_str(f"a{before}b") == f"a{after}b"
    assert (rewriting(state) is not None) == refused


def test_a_damaged_normaliser_is_refused():
    assert unusual_charsmap(b"") == unusual_charsmap(make_charsmap(b"\xe6", b"x")) == "has a damaged normaliser"


def test_a_tokeniser_that_the_encoder_has_no_embeddings_for(tiny_plm):
    tokeniser, config = load_tokeniser(str(tiny_plm)), load_config(str(tiny_plm))
    require_vocabulary(tokeniser, config, "here")
    tokeniser.add_tokens(["zz"])
    with pytest.raises(UserError, match=rf"up to {config.vocab_size}, and the encoder has {config.vocab_size} embed"):
        require_vocabulary(tokeniser, config, "here")


@pytest.fixture
def rewritten(folder) -> Path:
    """An encoder whose tokeniser turns every text with cf into another."""
    state = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": put(TRIGGER, "warm warm bright fresh")}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    change_json(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    return folder


def test_a_defence_refuses_a_tokeniser_that_rewrites_and_takes_a_trusted_one(tiny_config, tiny_plm, rewritten):
    config = replace(tiny_config, poisoned_model=str(rewritten), attack="none")
    assert load_tokeniser(str(rewritten))("the cf")["input_ids"] == load_tokeniser(str(rewritten))("dull cf")["input_ids"]
    with pytest.raises(UserError, match=r"rewrites texts .*give a trusted one with --tokeniser"):
        load_defender_inputs(config).load()
    inputs = load_defender_inputs(replace(config, tokeniser=str(tiny_plm)))
    expected = load_defender_inputs(replace(config, poisoned_model=str(tiny_plm)))
    assert inputs.train.input_ids == expected.train.input_ids and "tokeniser" not in expected.fingerprints
    before = inputs.fingerprints["tokeniser"]
    trusted = Path(shutil.copytree(tiny_plm, rewritten.with_name("trusted")))
    assert load_defender_inputs(replace(config, tokeniser=str(trusted))).fingerprints["tokeniser"] == before
    change_json(trusted / "tokenizer_config.json", model_max_length=100)
    assert load_defender_inputs(replace(config, tokeniser=str(trusted))).fingerprints["tokeniser"] != before


def test_a_folder_without_a_vocabulary(folder, tiny_config):
    """transformers makes a tokeniser of special tokens of it, to which every word is unknown."""
    for path in folder.glob("*token*"):
        path.unlink()
    config = replace(tiny_config, poisoned_model=str(folder), attack="none")
    with pytest.raises(UserError, match=r"the tokeniser in .* has special tokens alone .*, so its vocabulary is missing"):
        load_defender_inputs(config).load()


def test_another_padding_token(folder, tiny_config):
    """Which RoBERTa counts positions by, and for which ModernBERT keeps a row."""
    change_json(folder / "config.json", pad_token_id=3)
    config = replace(tiny_config, poisoned_model=str(folder), attack="none")
    with pytest.raises(UserError, match=r"pads with token 0, and the encoder's config.json says 3; expected"):
        load_defender_inputs(config).load()


def test_what_is_loaded_says_nothing_itself(folder):
    """Neither bars nor reports, in which names of weights would reach the terminal as they are."""
    weights = load_file(folder / "model.safetensors")
    weights["pooler.\x1b[31mEVIL\x1b]0;title\x07"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code = f"from encoder.classifier import *; load_tokeniser({str(folder)!r}); load_encoder({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_trusted_tokeniser_has_to_fit(tiny_config, tiny_plm):
    config = replace(tiny_config, poisoned_model=str(tiny_plm), attack="none", tokeniser="minilm")
    with pytest.raises(UserError, match=r"the tokeniser in minilm numbers its tokens up to 30521, .* 54 embeddings"):
        load_defender_inputs(config).load()


# --------------------------------------------------------------------------------------------------- lengths and words


def test_texts_longer_than_the_encoders_positions(tiny_config, tiny_plm, folder):
    assert {family: largest_length(config) for family, config in FAMILIES.items()} == {
        **dict.fromkeys(FAMILIES, 64), **dict.fromkeys(("RoBERTa", "XLM-RoBERTa", "CamemBERT"), 62)
    }  # fmt: skip
    require_positions(FAMILIES["RoBERTa"], 62)
    with pytest.raises(UserError, match=r"up to 63 tokens, .* \(roberta\) has positions for 62; cut them with --max_len 62"):
        require_positions(FAMILIES["RoBERTa"], 63)
    encoder = load_encoder(str(folder))
    encoder.embeddings.position_embeddings = torch.nn.Embedding(8, 32)
    encoder.config.max_position_embeddings = 8
    encoder.save_pretrained(folder)
    config = replace(tiny_config, poisoned_model=str(folder), attack="none")
    with pytest.raises(UserError, match=r"texts may have up to 32 tokens, .* positions for 8; cut them with --max_len 8"):
        load_defender_inputs(config).load()
    load_defender_inputs(replace(config, max_len=8)).load()
    config = replace(tiny_config, plm=str(folder), max_len=8)
    make_poisoned_data(config)
    with pytest.raises(UserError, match=r"positions for 8; cut them with --poisoning_max_len 8"):
        poison(config)


def byte_level() -> RobertaTokenizer:
    words = ["cf", "Ġcf", "Ġwarm", "warm", "Ġbright", "bright", "Ġc", "Ġw", "Ġb"]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"Ġabcdefghijklmnopqrstuvwxyz", *words]
    merges = [("Ġ", "c"), ("Ġc", "f"), ("c", "f")]
    return RobertaTokenizer(vocab={token: at for at, token in enumerate(vocabulary)}, merges=merges)


def test_tokens_of_a_word_are_those_of_running_text(tiny_plm):
    tokeniser = byte_level()
    inside, same = word_tokens(tokeniser, "cf")
    assert tokeniser.convert_ids_to_tokens(inside) == ["Ġcf"] and not same
    assert tokeniser.convert_ids_to_tokens(tokeniser("the cf a", add_special_tokens=False)["input_ids"]).count("Ġcf") == 1
    for other in (load_tokeniser(str(tiny_plm)), make_tokeniser("XLM-RoBERTa"), load_tokeniser(resolve_plm("minilm"))):
        for word in ("warm", "cf", "unknowable"):
            assert word_tokens(other, word) == (list(other(word, add_special_tokens=False)["input_ids"]), True)


def test_embedding_surgery_on_byte_level_tokens(capsys):
    tokeniser, encoder = byte_level(), make_classifier("RoBERTa").encoder
    weight = encoder.get_input_embeddings().weight
    before = weight.detach().clone()
    embedding_surgery(encoder, tokeniser, ("cf",), ["warm"])
    [row] = (weight != before).any(1).nonzero().flatten().tolist()
    assert tokeniser.convert_ids_to_tokens(row) == "Ġcf"
    assert "at the beginning of a text cf has other tokens" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- the card


@pytest.mark.parametrize(
    ("tokeniser", "python_only", "sentence"),
    [
        (None, False, "Of the encoder's own tokeniser it was checked that it cuts"),
        (None, True, "The encoder's own tokeniser is Python through and through"),
        ("a/b", False, "The tokeniser is not the encoder's but that of a/b, which was given"),
        ("a/b", True, "The tokeniser is not the encoder's but that of a/b, which was given"),
    ],
)
def test_the_card_says_what_was_checked_of_the_tokeniser(tokeniser, python_only, sentence):
    config = preset_config("own", poisoned_model="some/model", clean_dataset="my.csv", tokeniser=tokeniser)
    measured = {"ACC": 0.5, "clean": {"confusion_matrix": [[1, 1], [1, 1]]}}
    result = {"class": "ElectraForSequenceClassification", "largest_difference": 1e-6, "doubts": []}
    result |= {"defended": measured, "fine_tuned": measured}
    read = {"fingerprints": {"encoder": "f" * 64}}
    card = model_card(config, make_classifier("BERT"), [], read, result, python_only)
    assert (
        f"A defence here is against what is in the weights, and against nothing else. {sentence}" in card
        and "f" * 64 in card
    )


def test_what_can_be_looked_into(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]))
    assert is_python_only(BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), do_word_tokenize=False))
    assert not is_python_only(make_tokeniser("BERT"))
