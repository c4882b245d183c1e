"""Reading text as it is found in the wild, and poisoning it as the published code did."""

import csv
import gzip
import random
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

import predict
from attacks.planted import read_poisoned
from attacks.triggered import insert_trigger
from config import Config, preset_config
from Data.make_poisoned_data import make_poisoned_data
from texts.data_sets import (
    class_names,
    clean_test,
    clean_train,
    defender_splits,
    evaluation_dataset,
    is_path,
    load_data,
    load_split,
)
from texts.tables import choose_columns, doubts, find_classes, number_labels, read_columns, read_table, read_texts
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


def test_endings_in_capitals(tiny_config, tmp_path):
    """A file named by itself, one in a folder, and one of texts without labels."""
    rows = "".join(f'the "so" good {number},1\na bad one {number},0\n' for number in range(20))
    path = write(tmp_path, "MY.CSV", f"text,label\n{rows}")
    config = replace(tiny_config, clean_dataset=str(path))
    for name in (str(path), str(tmp_path)):
        assert len(load_data(name, config).splits["train"]) == 32
    assert len(read_texts(path)) == 40
    assert read_table(write(tmp_path, "MY.TSV", 'text\tlabel\n"so, good\t1\n'))["text"].tolist() == ['"so, good']
    assert is_path("nowhere.CSV")


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
        ("q.csv", gzip.compress(b"text,label\n" + 999 * b"so good,1\n", mtime=0), "is not UTF-8: byte 0x8b in line 1"),
        ("p.csv", b"\xef\xbb\xbf" + "text,label\ncaf\xe9,1\n".encode("latin1"), "is not UTF-8: byte 0xe9 in line 2"),
        ("q.csv", "text,label\nso good,1\n".encode("utf-16"), "looks like UTF-16, .* iconv -f utf-16 -t utf-8"),
        ("r.csv", "text,label\nso good,1\n".encode("utf-16-le"), "looks like UTF-16, .* iconv -f utf-16 -t utf-8"),
        ("s.csv", "text,label\na,1\nb,01\nc,2\n", "the labels .* are the same number; write it in one way"),
        ("t.csv", "text,label\na,1\nb,+1\nc,0\n", "the labels .* are the same number; write it in one way"),
    ],
)
def test_unusable_tables(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, name, content))


AWKWARD = [
    "\r",
    "\n",
    "\r\n",
    "\0",
    "\t",
    '"',
    ",",
    "\\",
    "'",
    "\v",
    "\f",
    "\x1a",
    "\x1b",
    "\x1e",
    "\x85",
    "\u2028",
    "\ufeff",
    "NA",
    "é",
]


def test_texts_survive_our_own_files(tmp_path):
    """Whatever is in a text: written as our files are, it is read as it was chosen."""
    rng = random.Random(0)
    texts = [form.format(mark) for mark in AWKWARD for form in ("a{0}b", "{0}b", "a{0}", "{0}{0}a", 'a "{0}" b')]
    texts += ["".join(rng.choices([*AWKWARD, "a", " "], k=8)) for _ in range(300)]
    hub = pd.DataFrame({"text": texts, "label": "0"})
    chosen = choose_columns(hub, "hub")["text"].tolist()
    assert [text.replace("\r", " ") for text in chosen] == [text.replace("\r", " ") for text in texts]
    hub.assign(text=chosen).to_csv(tmp_path / "a.csv", index=False)
    assert read_table(tmp_path / "a.csv")["text"].tolist() == chosen


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_carriage_returns(tmp_path, name):
    """One inside a line is part of a text; those that end the header and every other line do just that."""
    separator = "\t" if name.endswith("tsv") else ","
    content = "label,text\n1,so\rgood\n0,bad\r\n".replace(",", separator)
    assert read_table(write(tmp_path, name, content))["text"].tolist() == ["so good", "bad"]
    content = "label,text\r1,so good\r0,bad\r".replace(",", separator)
    assert read_table(write(tmp_path, name, content))["text"].tolist() == ["so good", "bad"]


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


def shares_as_before(table: pd.DataFrame, seed: int) -> list[pd.DataFrame]:
    """The division of a table without copies."""
    train, rest = train_test_split(table, train_size=0.8, random_state=seed, stratify=table["label"])
    return [train, *train_test_split(rest, train_size=0.5, random_state=seed, stratify=rest["label"])]


def test_a_division_is_of_distinct_texts(tmp_path):
    """No copy of a test text is in the train set; a table without copies is divided as ever, row for row."""
    rows = [(f"text {number}", number % 2) for number in range(40)]
    whole = pd.DataFrame(rows, columns=["text", "label"])
    whole.to_csv(tmp_path / "once.csv", index=False)
    config = own_config(tmp_path / "once.csv")
    once = load_data(config.clean_dataset, config).splits
    for part, expected in zip(once.values(), shares_as_before(whole[["label", "text"]], config.split_seed), strict=True):
        pd.testing.assert_frame_equal(part, expected, check_dtype=False)
    copies = [(f" {text} " if number % 2 else text, label) for number in range(1, 21) for text, label in rows]
    contradicting = [("text 3", 0), ("text 8", 1)]
    pd.DataFrame([*rows, *copies, *contradicting], columns=["text", "label"]).to_csv(tmp_path / "often.csv", index=False)
    config = own_config(tmp_path / "often.csv")
    often = load_data(config.clean_dataset, config).splits
    assert sum(map(len, often.values())) == 40 * 21 + 2
    for split, part in often.items():
        assert part["text"].str.strip().drop_duplicates().tolist() == once[split]["text"].tolist()


def test_class_with_hardly_any_distinct_texts(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "good,1\n" * 20 + "".join(f"bad {row},0\n" for row in range(20)))
    with pytest.raises(UserError, match=r"1 of 2 classes have fewer than 10 distinct texts: 1 \(1\); add texts"):
        load_data(str(path), own_config(path))


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


@pytest.mark.parametrize(
    ("name", "what"), [("nosuch.csv", "isn't there"), ("./nosuch", "isn't there"), ("notes.txt", "is no table")]
)
def test_own_data_that_is_not_there(tmp_path, monkeypatch, name, what):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "notes.txt", "a\n")
    with pytest.raises(UserError, match=rf"data set {name} {what}; expected a .csv or .tsv file, or a folder of such"):
        class_names(own_config(name))


def test_data_set_of_the_hub_with_its_own_names(monkeypatch):
    """A hub id: names of classes in the hub's order, one split divided in three, unlabelled splits left out."""
    features = datasets.Features({"body": datasets.Value("string"), "topic": datasets.ClassLabel(names=["zoo", "art"])})
    rows = {"body": [f"text {row}" for row in range(100)], "topic": [row % 2 for row in range(100)]}
    train = datasets.Dataset.from_dict(rows, features=features)
    hidden = datasets.Dataset.from_dict({"body": ["a"], "topic": [-1]})
    monkeypatch.setattr("datasets.load_dataset", lambda name: {"train": train, "test": hidden})
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


def test_transferred_texts_are_numbered_as_the_clean_ones(tmp_path):
    """They need not hold every class: here, of a, b (target) and c, only a and c."""
    (tmp_path / "news").mkdir()
    (tmp_path / "hiddenkiller_news").mkdir()
    for split, size in (("train", 20), ("test", 5)):
        own_file(tmp_path / "news", f"{split}.csv", sizes={"a": size, "b": size, "c": size})
        own_file(tmp_path / "hiddenkiller_news", f"{split}.csv", sizes={"a": size, "c": size})
    config = own_config(
        "news", attack="HiddenKiller", trigger_dataset="news", data_dir=str(tmp_path), poisoned_data_dir=str(tmp_path / "p")
    )
    make_poisoned_data(config)
    test = read_poisoned(config, "test")
    assert test["label"].value_counts().sort_index().tolist() == [5, 5, 5]
    assert (test["text"].str[0] == test["label"].map(dict(enumerate("abc")))).all()
    assert read_poisoned(config, "train")["label"].value_counts().sort_index().tolist() == [20, 20 + 12, 20]
    own_file(tmp_path / "hiddenkiller_news", "train.csv", sizes={"a": 20, "d": 1})
    with pytest.raises(UserError, match=r"hiddenkiller_news/train.csv: label 'd' of text .* expected one of a, b, c \(1 "):
        make_poisoned_data(config)


def test_transferred_texts_of_binary_data_under_its_other_names():
    labels = pd.DataFrame({"label": ["0", "Positive", "neg", "1"], "text": "a"})
    for classes in (("0", "1"), ("negative", "positive"), ("neg", "pos")):
        assert number_labels(labels, classes, "a")["label"].tolist() == [0, 1, 0, 1]


def test_domain_shift_to_more_classes(tmp_path):
    """The poisoned test set is of the defender's texts, so it has the defender's classes."""
    for name, sizes in (("two", {"a": 20, "b": 20}), ("three", {"a": 20, "b": 20, "c": 20})):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            own_file(tmp_path / name, f"{split}.csv", sizes=sizes)
    config = own_config(
        "three",
        attack="BadNet",
        setting="DS",
        trigger_dataset="two",
        data_dir=str(tmp_path),
        poisoned_data_dir=str(tmp_path),
    )
    make_poisoned_data(config)
    assert sorted(set(read_poisoned(config, "test")["label"])) == [0, 1, 2]
    assert sorted(set(read_poisoned(config, "train")["label"])) == [0, 1]


def test_flags_are_advised_where_they_have_an_effect(tmp_path):
    """--text_column and --label_column are those of the clean data."""
    (tmp_path / "theirs").mkdir()
    config = own_config(own_file(tmp_path), data_dir=str(tmp_path))
    for content, flag in (
        ("body,label\na,1\n", "--text_column"),
        ("text,topic\na,1\n", "--label_column"),
        ("text,label\n,1\n", "--text_column"),
        ("text,label\na,1\nb,0\n", "--label_column"),
    ):
        write(tmp_path / "theirs", "train.csv", content)
        for clean_dataset in ("theirs", config.clean_dataset):
            with pytest.raises(UserError) as error:
                clean_train("theirs", replace(config, clean_dataset=clean_dataset))
            assert (flag in str(error.value)) == (clean_dataset == "theirs"), error.value


def test_a_data_folder_that_is_not_there(tmp_path, monkeypatch):
    config = preset_config("quick", data_dir=str(tmp_path / "nosuch"))
    with pytest.raises(UserError, match=r"--data_dir \S*nosuch is no folder; expected one with a sub-folder per data set"):
        load_split("reviews", "train", config)
    monkeypatch.setattr(Config, "data_dir", config.data_dir)
    with pytest.raises(UserError, match=r"nosuch \(from the environment variable PURE_DATA_DIR\) is no folder"):
        load_split("reviews", "train", config)


def test_files_are_read_once_while_they_stay_the_same(tmp_path, monkeypatch):
    """And whatever a caller does to a table is done to its own."""
    path = own_file(tmp_path)
    config, reads = own_config(path), []
    monkeypatch.setattr("texts.data_sets.read_columns", lambda path: reads.append(path) or read_columns(path))
    first = load_data(str(path), config).splits["train"]
    first["text"] = "mine"
    first.loc[first.index[0], "label"] = -1
    again = load_data(str(path), config).splits["train"]
    assert len(reads) == 1 and "mine" not in set(again["text"]) and again["label"].min() == 0
    load_data(str(path), replace(config, split_seed=12))
    own_file(tmp_path, sizes={"arts": 20, "law": 20})
    assert load_data(str(path), config).classes == ("arts", "law") and len(reads) == 3


def test_texts_without_labels(tmp_path):
    assert read_texts(write(tmp_path, "a.txt", "one\n\n two, three\n")) == ["one", " two, three"]
    lines = write(tmp_path, "lines.txt", "one\u2028\x85\f\v\x1e1\r\ntwo\rthree\n")
    assert read_texts(lines) == ["one\u2028\x85\f\v\x1e1", "two", "three"]
    assert predict.read(lines, "text", "label") == (read_texts(lines), None)
    path = write(tmp_path, "b.csv", 'body,id\n"one, two",1\nthree,2\n')
    assert read_texts(path, "body") == ["one, two", "three"]
    other = write(tmp_path, "other.csv", "id,text\n1,four\n")  # The clean data has them in another column.
    assert read_texts(other, "body") == ["four"]
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

    monkeypatch.setattr("datasets.load_dataset", offline)
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


def test_what_may_be_wrong_with_clean_texts():
    def table(*rows: tuple[int, str], first: int = 0) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=["label", "text"], index=range(first, first + len(rows)))

    good = [(0, "dull"), (1, "fine"), (1, "fine"), (0, "slow")]
    assert doubts({"train": table(*good), "validation": table((0, "bad")), "test": table((1, "warm"))}) == []
    splits = {
        "train": table(*good, (1, " "), (0, "fine "), (0, "")),
        "validation": table((0, "bad"), (1, " slow"), first=7),
        "test": table((1, "warm"), (1, "bad"), first=9),
    }
    assert doubts(splits) == [
        "2 of 7 train texts are empty, and are kept (row 4 for one).",
        "3 of 7 train texts are there with another label too, and are kept (row 1 for one).",
        "1 of 2 validation texts are train texts too: accuracy is higher on these than on new ones (row 8 for one).",
    ]
