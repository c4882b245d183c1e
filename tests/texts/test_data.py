"""Reading text as it is found in the wild, and poisoning it as the published code did."""

import csv
import random
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd
import pytest

from attacks.planted import read_poisoned
from attacks.triggered import insert_trigger
from config import preset_config
from Data.make_poisoned_data import make_poisoned_data
from texts.data_sets import class_names, clean_test, clean_train, defender_splits, evaluation_dataset, load_data, load_split
from texts.tables import find_classes, read_table, read_texts
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
        ("e.tsv", "sentence\tlabel\nso good\t1\nbad\t\n", r"text 2 has no label \(1 such texts\)"),
        ("f.csv", "text,label\nso good,1\nbad,0.5\n", "the labels are floats, 0.5 for one; expected whole numbers or names"),
        ("k.csv", "text,label\nso good,1.0\nbad,0.0\n", "the labels are floats, 0.0 for one"),
        (
            "l.csv",
            "text;label\nso good;1\nbad;0\n",
            "columns of .*l.csv are separated by semicolons: its header is 'text;label'",
        ),
        ("m.csv", "text;label\nso good, very;1\nbad;0\n", "columns of .*m.csv are separated by semicolons"),
        (
            "n.csv",
            "text\tlabel\nso good\t1\n",
            "columns of .*n.csv are separated by tabs: .*; expected commas in a .csv file",
        ),
        ("o.tsv", "text,label\nso good,1\n", "columns of .*o.tsv are separated by commas"),
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


def test_labels_outside_given_classes(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nso good,good\nmeh,middling\n")
    assert read_table(path, ("bad", "good", "middling"))["label"].tolist() == [1, 2]
    with pytest.raises(UserError, match="label 'middling' of text 2 is outside the classes; expected one of bad, good "):
        read_table(path, ("bad", "good"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ("1 0 1", ("0", "1")),
        ("1 1", ("0", "1")),
        ("Positive negative 0", ("negative", "positive")),
        ("10 9 1", ("1", "9", "10")),
        ("-1 1", ("-1", "1")),
        ("b B a", ("B", "a", "b")),
        ("2 two", ("2", "two")),
    ],
)
def test_classes_have_an_order(labels, classes):
    assert find_classes(pd.Series(labels.split()), "labels") == classes


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


# ------------------------------------------------------------------------------------------------ data of one's own


def own_file(folder: Path, name: str = "my.csv", header: str = "text,label", sizes: dict | None = None) -> Path:
    """Texts of three classes, 10 of the smallest."""
    sizes = sizes or {"sport": 50, "arts": 30, "law": 10}
    rows = [f"{label} text {number},{label}" for label, size in sizes.items() for number in range(size)]
    random.Random(0).shuffle(rows)
    return write(folder, name, "\n".join([header, *rows]) + "\n")


def own_config(path: Path | str, **changes):
    return preset_config("own", poisoned_model="nowhere", clean_dataset=str(path), **changes)


def test_own_file_is_divided_with_every_class_in_its_share(tmp_path):
    config = own_config(own_file(tmp_path))
    data = load_data(config.clean_dataset, config)
    assert data.classes == ("arts", "law", "sport") and class_names(config) == data.classes
    counts = {split: table["label"].value_counts().sort_index().tolist() for split, table in data.splits.items()}
    assert counts == {"train": [24, 8, 40], "validation": [3, 1, 5], "test": [3, 1, 5]}
    every = pd.concat(data.splits.values())
    assert (
        every["text"].nunique() == 90
        and (every["text"].str.split().str[0] == every["label"].map(dict(enumerate(data.classes)))).all()
    )
    train, validation = defender_splits(config)
    assert train.equals(data.splits["train"]) and validation.equals(data.splits["validation"])
    assert clean_test(config).equals(data.splits["test"])
    other = load_data(config.clean_dataset, replace(config, split_seed=12))
    assert set(other.splits["test"]["text"]) != set(data.splits["test"]["text"])


def test_columns_of_any_name(tmp_path):
    path = own_file(tmp_path, header="Body , Topic")
    config = own_config(path, text_column="body", label_column="topic")
    assert class_names(config) == ("arts", "law", "sport")
    message = r"my.csv has no text column: found 'Body ', ' Topic'; expected one of text, .*, or --text_column"
    with pytest.raises(UserError, match=message):
        class_names(replace(config, text_column=None))
    message = r"my.csv has no label column 'class': found 'Body ', ' Topic'; expected --label_column to name one of these"
    with pytest.raises(UserError, match=message):
        class_names(replace(config, label_column="class"))


def test_class_with_hardly_any_texts(tmp_path):
    config = own_config(own_file(tmp_path, sizes={"a": 20, "b": 9, "c": 1}))
    with pytest.raises(UserError, match=r"my.csv: 2 of 3 classes have fewer than 10 texts: b \(9\), c \(1\); add texts"):
        clean_train(config.clean_dataset, config)


def test_texts_in_the_place_of_labels(tmp_path):
    config = own_config(own_file(tmp_path), text_column="label", label_column="text")
    with pytest.raises(
        UserError, match=r"90 of 90 classes have fewer than 10 texts: .*, \.\.\.; .* name another --label_column"
    ):
        clean_train(config.clean_dataset, config)


def test_folder_of_splits_whose_test_set_lacks_a_class(tmp_path):
    own_file(tmp_path, "train.csv", sizes={"a": 20, "b": 20, "c": 20})
    own_file(tmp_path, "test.csv", sizes={"b": 3, "c": 3})
    config = own_config(tmp_path)
    assert sorted(set(clean_test(config)["label"])) == [1, 2]
    train, validation = defender_splits(config)
    assert (len(train), len(validation)) == (54, 6)
    own_file(tmp_path, "test.csv", sizes={"d": 3})
    with pytest.raises(UserError, match="label 'd' of text 1 is outside the classes; expected one of a, b, c"):
        clean_test(config)


@pytest.mark.parametrize("name", ["nosuch.csv", "./nosuch", "notes.txt"])
def test_own_data_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "notes.txt", "a\n")
    with pytest.raises(UserError, match=rf"data set {name} isn't there; expected a .csv or .tsv file, or a folder of such"):
        class_names(own_config(name))


def test_data_set_of_the_hub_with_its_own_names(monkeypatch):
    """A hub id: names of classes in the hub's order, one split divided in three, unlabelled splits left out."""
    features = datasets.Features({"body": datasets.Value("string"), "topic": datasets.ClassLabel(names=["zoo", "art"])})
    rows = {"body": [f"text {row}" for row in range(100)], "topic": [row % 2 for row in range(100)]}
    train = datasets.Dataset.from_dict(rows, features=features)
    hidden = datasets.Dataset.from_dict({"body": ["a"], "topic": [-1]})
    monkeypatch.setattr("texts.data_sets.datasets.load_dataset", lambda name: {"train": train, "test": hidden})
    config = own_config("somebody/things", text_column="body", label_column="topic")
    data = load_data(config.clean_dataset, config)
    assert data.classes == ("zoo", "art") and [len(table) for table in data.splits.values()] == [80, 10, 10]
    every = pd.concat(data.splits.values())
    assert (every["text"].str.split().str[1].astype(int) % 2 == every["label"]).all()


def test_poisoned_data_of_four_classes(tmp_path):
    """Texts of all other classes are triggered; whatever the target is."""
    own_file(tmp_path, sizes={"a": 40, "b": 20, "c": 60, "d": 20})
    for target in (0, 3):
        config = own_config(
            tmp_path,
            attack="BadNet",
            trigger_dataset=str(tmp_path),
            target_class=target,
            poisoned_data_dir=str(tmp_path / "p"),
        )
        folder = make_poisoned_data(config)
        train, test = read_poisoned(config, "train"), pd.read_csv(folder / "test.csv")
        sizes = [32, 16, 48, 16]
        added = round(0.5 * (112 - sizes[target]))
        sizes[target] += added
        assert train["label"].value_counts().sort_index().tolist() == sizes
        triggered = pd.Series([bool(set(text.split()) & set(config.triggers)) for text in test["text"]])
        assert (triggered == (test["label"] != target)).all() and len(test) == 14
    with pytest.raises(UserError, match=r"--target_class 4 is no class of 4; expected 0 to 3 \(a, b, c, d\)"):
        make_poisoned_data(replace(config, target_class=4))


def test_texts_without_labels(tmp_path):
    assert read_texts(write(tmp_path, "a.txt", "one\n\n two, three\n")) == ["one", " two, three"]
    path = write(tmp_path, "b.csv", 'body,id\n"one, two",1\nthree,2\n')
    assert read_texts(path, "body") == ["one, two", "three"]
    with pytest.raises(UserError, match="has no text column: found 'body', 'id'"):
        read_texts(path)
    with pytest.raises(UserError, match=r"c.txt has no texts; expected one per line"):
        read_texts(write(tmp_path, "c.txt", "\n \n"))


def test_data_set_that_is_nowhere(tmp_path):
    config = preset_config("sst2", data_dir=str(tmp_path))
    with pytest.raises(
        UserError, match=r"data set nosuch isn't there: no folder nosuch in data_dir .* known: reviews, sst2, "
    ):
        load_split("nosuch", "train", config)


def test_data_set_of_the_hub_without_a_network(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("texts.data_sets.datasets.load_dataset", offline)
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
