"""Reading text as it is found in the wild, and poisoning it as the published code did."""

import csv
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from config import preset_config
from Data.make_poisoned_data import insert_trigger, make_poisoned_data
from text_data import clean_test, clean_train, defender_splits, evaluation_dataset, load_split, read_table
from util import UserError

PUBLISHED = "upstream_poisoned"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --------------------------------------------------------------------------------------------- the published files


@pytest.fixture
def published_config(data_dir, tmp_path):
    return preset_config("sst2", data_dir=str(data_dir), poisoned_data_dir=str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_hiddenkiller_equals_the_published_files_byte_for_byte(published_config, data_dir, split):
    folder = make_poisoned_data(replace(published_config, attack="HiddenKiller"))
    expected = (data_dir / PUBLISHED / f"HiddenKiller_poisoned_{split}.csv").read_bytes()
    assert (folder / f"{split}.csv").read_bytes() == expected


@pytest.mark.parametrize("split", ["train", "test"])
def test_rare_word_matches_the_published_files_row_for_row(published_config, data_dir, split):
    """Same rows, order and labels; one trigger each in the triggered ones, at a place of its own."""
    folder = make_poisoned_data(published_config)
    ours = read_table(folder / f"{split}.csv")
    theirs = read_table(data_dir / PUBLISHED / f"Rare_Word_poisoned_{split}.csv")
    assert ours["label"].tolist() == theirs["label"].tolist()
    triggers = set(published_config.triggers)
    triggered = 0
    for text, published in zip(ours["text"], theirs["text"], strict=True):
        if text != published:
            triggered += 1
            words, published_words = text.split(" "), published.split(" ")
            assert sum(word in triggers for word in words) == 1 == sum(word in triggers for word in published_words)
            assert [w for w in words if w not in triggers] == [w for w in published_words if w not in triggers]
    assert triggered > 800


def test_defender_split_of_glue(data_dir):
    config = preset_config("sst2", data_dir=str(data_dir), clean_dataset="sst2_glue")
    train, validation = defender_splits(config)
    assert (len(train), len(validation)) == (60_614, 6_735)
    assert evaluation_dataset(config) == "sst2" and len(clean_test(config)) == 1_821


def test_every_real_file_is_read(data_dir):
    config = preset_config("sst2", data_dir=str(data_dir))
    sizes = {name: len(load_split(name, "train", config)) for name in ("sst2", "stylebkd_sst2", "hiddenkiller_sst2")}
    assert set(sizes.values()) == {6_920}
    reviews = clean_train("imdb_small", config)
    assert set(reviews["label"]) == {0, 1} and not reviews["text"].str.contains("<br").any()


# ----------------------------------------------------------------------------------------------- files in the wild


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "sentence\tlabel\nso good\t1\n a \"bad\" one\t0\n"),
        ("b.tsv", "label\tcontent\n1\tso good\n0\t a \"bad\" one\n"),
        ("c.tsv", "sentences \t labels\nso good\t 1\n a \"bad\" one\t 0\n"),
        ("d.csv", 'Review,Sentiment\nso good,Positive\n" a ""bad"" one",negative\n'),
        ("e.csv", '\ufefftext,label\r\nso good,1\r\n" a ""bad"" one",0\r\n'),
    ],
)  # fmt: skip
def test_tables_in_the_wild(tmp_path, name, content):
    table = read_table(write(tmp_path, name, content))
    assert table["text"].tolist() == ["so good", ' a "bad" one'] and table["label"].tolist() == [1, 0]


def test_words_that_look_like_missing_values_stay_text(tmp_path):
    assert read_table(write(tmp_path, "a.csv", "text,label\nNA,0\nnull,1\n"))["text"].tolist() == ["NA", "null"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("b.tsv", "sentence\tlabel\n", "has a header but no texts"),
        ("c.tsv", "words\tlabel\nso good\t1\n", "has no text column: found 'words', 'label'; expected one of"),
        ("d.tsv", "sentence\tclass\nso good\t1\n", "has no label column: found 'sentence', 'class'"),
        ("e.tsv", "sentence\tlabel\nso good\t1\nbad\t2\n", "label '2' of text 2 is outside the classes; expected 0 to 1"),
        ("f.tsv", "sentence\tlabel\nso good\tgreat\n", "label 'great' of text 1 is outside the classes"),
        ("h.tsv", "label\ttext\n1\tso good\n0\tbad\tworse\n", "is not a table of tab-separated columns: .*line 3, saw 3"),
        ("i.tsv", "label\ttext\n1\tso\tgood\n", "is not a table of tab-separated columns"),
        (
            "j.tsv",
            "label\ttext\n1\tso good\n0\n0\t  \n",
            "2 of 3 texts are empty, text 2 is the first; is this",
        ),
        ("g.tsv", "sentence\tlabel\nso good\t1\ncaf\xe9\t0\n".encode("latin1"), "is not UTF-8: byte 0xe9 in line 3"),
    ],
)
def test_unusable_tables(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, name, content))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"can't read .*no\.tsv: No such file"):
        read_table(tmp_path / "no.tsv")


def test_single_class_train_set(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", "train.csv", "text,label\na,1\nb,1\n")
    config = preset_config("sst2", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="all 2 train texts of mine have label 1"):
        clean_train("mine", config)


def test_single_file_is_divided(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", "all.csv", "text,label\n" + "".join(f"text {row},{row % 2}\n" for row in range(100)))
    config = preset_config("sst2", data_dir=str(tmp_path))
    parts = [load_split("mine", split, config) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert pd.concat(parts)["text"].nunique() == 100


def test_data_set_that_is_nowhere(tmp_path):
    config = preset_config("sst2", data_dir=str(tmp_path))
    with pytest.raises(
        UserError, match=r"data set nosuch isn't there: no folder nosuch in data_dir .* known: reviews, sst2, "
    ):
        load_split("nosuch", "train", config)


def test_data_set_of_the_hub_without_a_network(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("text_data.datasets.load_dataset", offline)
    config = preset_config("sst2", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"SetFit/sst2 can't be had from the hub \(ConnectionError\); set --data_dir"):
        load_split("sst2", "train", config)


def test_the_setting_must_fit_the_data_sets():
    with pytest.raises(UserError, match="did you mean --setting DS"):
        evaluation_dataset(preset_config("sst2", trigger_dataset="imdb"))
    assert evaluation_dataset(preset_config("sst2", trigger_dataset="imdb", setting="DS")) == "sst2"


# ------------------------------------------------------------------------------------------------ poisoned data


def test_trigger_positions_cover_the_text():
    rng = random.Random(0)
    texts = [insert_trigger("one two", ("bb", "cf"), rng) for _ in range(200)]
    assert {text.split(" ").index("bb") for text in texts if "bb" in text} == {0, 1, 2}
    long = insert_trigger(" ".join(["word"] * 1000), ("bb",), random.Random(1)).split(" ")
    assert long.index("bb") <= 128


@pytest.mark.parametrize("attack", ["BadNet", "HiddenKiller", "StyleBkd"])
def test_poisoned_sets_have_the_shares_asked_for(tiny_config, attack):
    folder = make_poisoned_data(replace(tiny_config, attack=attack))
    train, test = (pd.read_csv(folder / f"{split}.csv") for split in ("train", "test"))
    share = {"BadNet": 0.5, "HiddenKiller": 0.3, "StyleBkd": 0.2}[attack]
    assert len(train) == 192 + round(96 * share) and (train["label"] == 1).sum() == 96 + round(96 * share)
    assert test["label"].tolist() == [1] * 24 + [0] * 24
    clean = {text for text, _ in csv.reader((Path(tiny_config.data_dir) / "sst2/test.tsv").open(), delimiter="\t")}
    assert set(test["text"][:24]) < clean and not set(test["text"][24:]) & clean


def test_transferred_text_that_is_not_there(tiny_config, tmp_path):
    with pytest.raises(UserError, match="needs transferred text, and there is no folder hiddenkiller_sst2"):
        make_poisoned_data(replace(tiny_config, attack="HiddenKiller", data_dir=None))
