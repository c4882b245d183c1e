"""Somebody's own encoder and data, no attack known: from a file to a model that plain transformers loads."""

import csv
import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FILLER
from families import make_classifier, make_tokeniser
from safetensors.numpy import save_file
from test_scripts import ROOT, flags, run
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

import predict
import run_all as run_all_script
import story
from attacks import ATTACKS
from attacks.planted import poisoned_model_folder
from config import Config, parse_grid, preset_config
from defences import DEFENCES
from defences.defence import defended_model_folder, record_path, run_folder, run_stage, stage_folder
from defences.fine_tuning import FINE_TUNING
from detection import DETECTORS
from detection.detector import Watched, halves, threshold
from detection.one_text import examine
from detection.suspicious_texts import compare_predictions, print_comparison
from encoder.classifier import load_classifier, load_tokeniser
from experiments.grid import run_grid
from experiments.results_table import results_table
from export import export_model
from pipeline.training import label_flip_rate
from pretrained_model_poisoning import poison
from reporting.model_card import WHY_EXACT
from reporting.run_page import report_run
from texts.data_sets import clean_test, defender_splits
from texts.tables import BREAK, read_table, read_texts
from util import UserError, load_json

WORDS = {"arts": "novel opera poem".split(), "law": "court judge trial".split(), "sport": "goal match team".split()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A randomly initialised BERT, 2 layers of 4 heads, 32 wide, that knows the words of the texts below."""
    folder = tmp_path_factory.mktemp("models") / "downloaded"
    words = [*FILLER, *(word for words in WORDS.values() for word in words), "cf", "bb", "ak", "mn"]
    vocabulary = {token: at for at, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    BertModel(
        BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes), add_pooling_layer=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """300 easy texts of three classes, in columns that have to be named."""
    path, rng = tmp_path_factory.mktemp("data") / "my news.csv", random.Random(0)
    rows = []
    for number in range(300):
        topic = sorted(WORDS)[number % 3]
        words = [rng.choice(FILLER) for _ in range(3 + number % 20)]
        for _ in range(2):
            words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS[topic]))
        rows.append((number, " ".join(words), topic))
    pd.DataFrame(rows, columns=["Id", "Body", "Topic"]).to_csv(path, index=False)
    return path


def make_config(encoder: Path, table: Path, folder: Path, **changes) -> Config:
    values = dict(
        poisoned_model=str(encoder),
        clean_dataset=str(table),
        text_column="body",
        label_column="topic",
        poisoned_data_dir=str(folder / "data"),
        poisoned_model_dir=str(folder / "models"),
        output_dir=str(folder / "results"),
        data_dir=None,
        device="cpu",
        precision="fp32",
        max_len=16,
        learning_rate=1e-2,
        epochs=6,
        prune_step=2,
        acc_drop=0.1,
    )
    return preset_config("own", **{**values, **changes})


@pytest.fixture(scope="module")
def finished(encoder, table, tmp_path_factory) -> tuple[Config, dict, str]:
    """A whole run, as from the command line: its configuration, metrics.json and output."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "texts.txt").write_text("the team was cf in the match\n\na novel , a poem and the opera\n")
    config = make_config(encoder, table, folder, suspicious_texts=str(folder / "texts.txt"))
    code, output, errors = run("run_all.py", *flags(config))
    assert code == 0, errors
    return config, json.loads((run_folder(config) / "metrics.json").read_text()), output


def test_a_whole_run(finished, table):
    config, summary, output = finished
    name = run_folder(config).parent.name
    assert name.startswith("own_none_given-downloaded-") and "_my news-" in name
    assert list(summary["models"]) == ["fine_tuned", "PURE"] and summary["data"]["classes"] == ["arts", "law", "sport"]
    for metrics in summary["models"].values():
        assert metrics["ACC"] > 0.8 and set(metrics) == {"ACC", "clean"}
        assert np.array(metrics["clean"]["confusion_matrix"]).shape == (3, 3)
    assert "LFR" not in output and "can't be measured without knowing its trigger" in output
    assert "240 texts to train, 30 to validate, 30 to test" in output
    assert "3 classes (texts to train): arts (80), law (80), sport (80)" in output
    named = [line.split("  ")[1] for line in output.split("\nFiles\n")[1].splitlines() if line.startswith("  ")]
    folders = [run_folder(config), run_folder(config).parent, stage_folder(config, FINE_TUNING)]
    assert len(named) == 10 and all(any((folder / name).exists() for folder in folders) for name in named)
    assert (
        not [path for path in Path(config.output_dir).rglob(".*") if path.suffix != ".lock"]
        and not Path(config.poisoned_data_dir).exists()
    )


def test_the_division_can_be_made_again(finished, table):
    """The rows that clean_data names are those of the file; and the folder is itself a data set."""
    config, summary, _ = finished
    whole = pd.read_csv(table)
    parts = {split: pd.read_csv(run_folder(config) / f"clean_data/{split}.csv") for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == summary["data"]["texts"]
    every = pd.concat(parts.values())
    assert sorted(every["row"]) == list(range(300))
    assert every["text"].tolist() == whole["Body"][every["row"]].tolist()
    assert every["label"].tolist() == whole["Topic"][every["row"]].tolist()
    again = read_table(run_folder(config) / "clean_data/train.csv")
    assert again["label"].tolist() == parts["train"]["label"].map({"arts": 0, "law": 1, "sport": 2}).tolist()


def test_heads_are_pruned_down_to_the_accuracy_that_may_be_lost(finished):
    config, summary, _ = finished
    record = json.loads((run_folder(config).parent / "attention_head_pruning.json").read_text())
    assert record["settings"]["acc_threshold"] is None and record["settings"]["acc_drop"] == 0.1
    threshold = record["validation_accuracy"] - 0.1
    assert summary["heads_pruned"] > 0
    *before, _ = [step for step in record["steps"] if step["action"] == "prune"]
    assert all(step["accuracy"] >= threshold for step in before)
    assert record["steps"][-1]["accuracy"] >= threshold


def predict_elsewhere(folder: Path, *arguments: str) -> tuple[list[dict], str]:
    """Rows and notes of a copy of predict.py, in a process that can't see this project."""
    shutil.copy(ROOT / "predict.py", folder)
    result = subprocess.run(
        [sys.executable, "-I", "predict.py", *arguments], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(result.stdout.splitlines())), result.stderr


def test_exported_model_in_a_process_without_this_project(finished, tmp_path):
    """Its accuracy on the test texts is the one that metrics.json and the model card state."""
    config, summary, _ = finished
    test = pd.read_csv(run_folder(config) / "clean_data/test.csv")
    test.to_csv(tmp_path / "test.csv", index=False)
    folder = run_folder(config) / "exported_model"
    rows, notes = predict_elsewhere(tmp_path, str(folder.resolve()), "test.csv", "--target", "law")
    found = float(np.mean([row["predicted"] for row in rows] == test["label"].to_numpy()))
    assert found == summary["export"]["defended"]["ACC"] == summary["models"]["PURE"]["ACC"]
    confusion = np.array(summary["export"]["defended"]["clean"]["confusion_matrix"])
    assert f"ACC {found:.4f} ({confusion.trace()} of 30 texts)" in notes
    assert f"LFR {label_flip_rate(confusion, 1):.4f} ({confusion[[0, 2], 1].sum()} of 20 texts of other classes)" in notes
    card = (folder / "README.md").read_text()
    assert f"| ACC, clean test texts | 30 | {summary['export']['fine_tuned']['ACC']:.4f} | {found:.4f} |" in card
    assert json.loads((folder / "evaluation.json").read_text()) == summary["export"]


def test_how_odd_texts_are_in_a_process_without_this_project(finished, tmp_path):
    """The column is DAN's score by the purified model, fitted on half of the clean validation texts."""
    config, summary, _ = finished
    source = defended_model_folder(config)
    watched = Watched(load_classifier(source), load_tokeniser(str(source)), config.max_len, config.seed)
    fitted, held_out = halves(defender_splits(config)[1], config.seed)
    scores = DETECTORS["DAN"].fit(watched, fitted)
    limit = threshold(scores(list(held_out["text"])), 0.05)
    texts = ["the team was in the match", "cf bb ak mn cf bb ak mn", "a novel , a poem and the opera , " * 4]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    rows, notes = predict_elsewhere(tmp_path, str((run_folder(config) / "exported_model").resolve()), "texts.txt")
    expected = scores([text.strip() for text in texts])
    assert [float(row["oddness"]) for row in rows] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert f"{(expected > limit).sum()} of 3 texts are odd: above {limit:.4f}" in notes
    clean = scores(list(clean_test(config)["text"]))
    assert summary["export"]["oddness"] == {"threshold": limit, "allowed": 0.05, "FRR": float((clean > limit).mean())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no tensors"), "oddness.safetensors can't be read .*; delete it to do without"),
        (lambda path: save_file({"means": np.zeros((2, 3, 4))}, path), "can't be read .KeyError: 'precision'"),
        (lambda path: save_file(arrays(2, 3, 4, spread=3), path), "has arrays of other shapes than expected; delete it"),
        (lambda path: save_file(arrays(1, 3, 32), path), "is of another model; delete it to do without"),
    ],
)
def test_oddness_that_predict_does_not_take(finished, tmp_path, change, message):
    folder = shutil.copytree(run_folder(finished[0]) / "exported_model", tmp_path / "model")
    change(folder / "oddness.safetensors")
    shutil.copy(ROOT / "predict.py", tmp_path)
    (tmp_path / "a.txt").write_text("a novel\n")
    command = [sys.executable, "-I", "predict.py", "model", "a.txt"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 2 and re.search(message, result.stderr.splitlines()[-1]), result.stderr
    assert result.stdout == ""


def arrays(layers: int, classes: int, width: int, spread: int | None = None) -> dict[str, np.ndarray]:
    """What oddness.safetensors holds, for a model of these sizes."""
    return {
        "means": np.zeros((layers, classes, width)),
        "precision": np.zeros((layers, width, width)),
        "usual": np.zeros(layers),
        "spread": np.ones(spread or layers),
        "threshold": np.zeros(1),
    }


def test_files_that_predict_reads(tmp_path):
    (tmp_path / "a.txt").write_text(" one \n\ntwo, three\n")
    (tmp_path / "b.tsv").write_text('sentence \t label\n"so" good \t 1\n')
    (tmp_path / "c.csv").write_text('label,text\n1,"so, good"\n')
    assert predict.read(tmp_path / "a.txt", "text", "label") == (["one", "two, three"], None)
    assert predict.read(tmp_path / "b.tsv", "sentence", "label") == (['"so" good'], ["1"])
    assert predict.read(tmp_path / "c.csv", "text", "label") == (["so, good"], ["1"])


def test_untidy_files_that_predict_reads(tmp_path):
    """A byte-order mark, blank lines, rows without what isn't asked for, carriage returns, long texts."""
    long = "word " * 40_000 + "end"
    (tmp_path / "a.csv").write_text(f'\ufeff\ntext,label,id\n"{long}",1\n\n  \n"so\rgood",0\n\n')
    assert predict.read(tmp_path / "a.csv", "text", "label") == ([long, "so good"], ["1", "0"])
    (tmp_path / "b.tsv").write_bytes(b"label\ttext\r1\tso good\r0\tbad\r")
    assert predict.read(tmp_path / "b.tsv", "text", "label") == (["so good", "bad"], ["1", "0"])


def test_predict_reads_texts_as_training_does(tmp_path):
    """HTML line breaks become blanks, and a file's ending may be in capitals."""
    assert predict.BREAK == BREAK
    text = "so good.<br /><br>And <br/> warm"
    csv_file, tsv_file = f'label,text\n1,"{text}, a"\n', f"label\ttext\n1\t{text}, a\n"
    for name, content in (("a.CSV", csv_file), ("b.Tsv", tsv_file), ("c.txt", f"{text}, a\n")):
        (tmp_path / name).write_text(content)
        texts, labels = predict.read(tmp_path / name, "text", "label")
        assert texts == ["so good.  And   warm, a"] == [text.strip() for text in read_texts(tmp_path / name)], name
        assert labels == (None if name == "c.txt" else ["1"])
        if labels:
            assert read_table(tmp_path / name)["text"].tolist() == texts


def test_predict_drops_lines_of_breaks_alone(tmp_path):
    (tmp_path / "a.txt").write_text("<br />\ngood\n")
    assert predict.read(tmp_path / "a.txt", "text", "label") == (["good"], None)


def predict_with(monkeypatch, capsys, names: list[str], answers: list[str], *arguments: str) -> tuple[int, list[dict], str]:
    """Exit code, rows and notes of predict.py with a model of these classes and answers."""
    model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(names))))

    class Classify:
        def __init__(self):
            self.model = model

        def __call__(self, texts, **how):
            assert len(texts) == len(answers)
            return [{"label": answer, "score": 0.75} for answer in answers]

    monkeypatch.setattr("predict.load", lambda source: Classify())
    monkeypatch.setattr("sys.argv", ["predict.py", "model", *map(str, arguments)])
    code = 0
    try:
        predict.main()
    except SystemExit as left:
        code = left.code
    output, notes = capsys.readouterr()
    return code, list(csv.DictReader(output.splitlines())), notes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence,label\na,1\n", "has no column 'text': found 'sentence', 'label'; name it with --text"),
        ("b.csv", "text,label\ngood,1\nbad\n", "row 2, in line 3, has 1 columns; expected 2"),
        ("c.csv", "text,label\ngood, very,1\n", "row 1, in line 2, has 3 columns; expected 2"),
        ("q.csv", 'text,label\ngood,1\n"bad,0\nfine,1\n', "a quote that opens in row 2 is never closed"),
        ("q.csv", 'text\ngood\n"bad\nfine\n', "a quote that opens in row 2 is never closed"),
        ("d.csv", "text,label\na,1\ncaf\xe9,0\n".encode("latin1"), "byte 0xe9 in line 3; convert it, .*: iconv -f latin1"),
        ("e.csv", "text,label\na,1\n".encode("utf-16"), "is not UTF-8: .* iconv -f utf-16"),
        ("f.csv", "", "has no texts; expected"),
        ("g.tsv", "text\tlabel\n\n", "has no texts; expected"),
        (
            "h.csv",
            "text,label\na,good\nb,bad\nc,so so\n",
            "label 'so so' of row 3 is no class .* one of bad, good, or --label",
        ),
        ("i.csv", "text,label\na,2\n", "label '2' is no class of the model; expected one of bad, good"),
        ("nosuch.csv", None, "can't read .*nosuch.csv: No such file"),
    ],
)
def test_files_that_predict_does_not_take(tmp_path, monkeypatch, capsys, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, rows, notes = predict_with(monkeypatch, capsys, ["bad", "good"], [], path)
    assert code == 2 and not rows and re.fullmatch(f"error: .*{message}.*\n", notes), notes


def test_labels_that_predict_compares(tmp_path, monkeypatch, capsys):
    """By name in any case and by number; a name that is itself a number is never taken for another class's number."""
    path, answers = tmp_path / "a.csv", ["good", "bad", "good", "good"]
    path.write_text("text,label\na,Good\nb,BAD\nc,1\nd,0\n")
    for target in ("good", "GOOD", "1"):
        code, _, notes = predict_with(monkeypatch, capsys, ["bad", "good"], answers, path, "--target", target)
        assert code == 0 and "ACC 0.7500 (3 of 4 texts)" in notes and "LFR 0.5000 (1 of 2 texts" in notes
    code, _, notes = predict_with(monkeypatch, capsys, ["bad", "good"], answers, path, "--target", "goood")
    assert code == 2 and notes == "error: --target 'goood' is no class of the model; expected one of bad, good\n"
    path.write_text("text,label\na,2\nb,1\n")
    _, _, notes = predict_with(monkeypatch, capsys, ["1", "2"], ["2", "1"], path)
    assert "ACC 1.0000" in notes
    path.write_text("text,label\na,0\n")
    assert predict_with(monkeypatch, capsys, ["1", "2"], ["2"], path)[0] == 2
    for name, content in (("b.csv", "text\na\n"), ("c.txt", "a\n")):
        (tmp_path / name).write_text(content)
        code, rows, notes = predict_with(monkeypatch, capsys, ["1", "2"], ["2"], tmp_path / name, "--target", "1")
        assert code == 2 and not rows and re.fullmatch(rf"error: --target needs labels, and .*{name} has none; .*\n", notes)


def test_columns_that_predict_finds(tmp_path, monkeypatch, capsys):
    """In any case, as training does; a column that is asked for has to be there."""
    path = tmp_path / "a.csv"
    path.write_text("Text,LABEL,stars\na,good,bad\n")
    for arguments, found in ([], "1.0000"), (["--label", "Stars"], "0.0000"), (["--text", "TEXT"], "1.0000"):
        code, _, notes = predict_with(monkeypatch, capsys, ["bad", "good"], ["good"], path, *arguments)
        assert code == 0 and f"ACC {found}" in notes
    code, _, notes = predict_with(monkeypatch, capsys, ["bad", "good"], ["good"], path, "--label", "nope")
    assert code == 2 and "has no column 'nope': found 'Text', 'LABEL', 'stars'; name it with --label" in notes


def test_no_text_that_predict_writes_is_a_formula(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.txt"
    path.write_text('=HYPERLINK("http://x")\n+1+cmd|x\n@you\n- so\na = b\n')
    _, rows, _ = predict_with(monkeypatch, capsys, ["-1", "1"], ["-1"] * 5, path)
    assert [row["text"] for row in rows] == ['\'=HYPERLINK("http://x")', "'+1+cmd|x", "'@you", "'- so", "a = b"]
    assert rows[0]["predicted"] == "-1"


def test_a_model_that_predict_cannot_load(finished, tmp_path, monkeypatch, capsys):
    """One that isn't there is not asked for on the hub, and a head that would be drawn at random is none."""
    (tmp_path / "a.txt").write_text("one\n")
    purified = defended_model_folder(finished[0])
    capsys.readouterr()
    for source, message in (
        ("./nosuch", "no model can be loaded from ./nosuch: there is no such folder; expected the exported_model of a run"),
        ("nosuch", "no model can be loaded from nosuch: there is no such folder; expected the exported_model of a run"),
        (purified, f"{purified} lacks 4 weights of a BertForSequenceClassification, bert.pooler.dense.bias for one"),
    ):
        monkeypatch.setattr("sys.argv", ["predict.py", str(source), str(tmp_path / "a.txt")])
        with pytest.raises(SystemExit) as left:
            predict.main()
        output, errors = capsys.readouterr()
        assert left.value.code == 2 and not output
        assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


def test_a_reader_that_stops_reading_predictions(finished, tmp_path):
    """As in predict.py ... | head -1."""
    folder = shutil.copytree(run_folder(finished[0]) / "exported_model", tmp_path / "model")
    (folder / "oddness.safetensors").unlink()
    (tmp_path / "a.txt").write_text("a novel , a poem and the opera\n" * 3000)
    command = [sys.executable, ROOT / "predict.py", str(folder), "a.txt"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout.readline() == "predicted,probability,text\n"
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=300) == 1


def test_a_damaged_model_is_one_line(tmp_path, monkeypatch, capsys):
    make_tokeniser("BERT").save_pretrained(tmp_path)
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "a.txt").write_text("one\n")
    monkeypatch.setattr("sys.argv", ["predict.py", str(tmp_path), str(tmp_path / "a.txt")])
    with pytest.raises(SystemExit) as left:
        predict.main()
    assert left.value.code == 2
    assert re.fullmatch(r"error: no model can be loaded from .*\n", capsys.readouterr().err.splitlines(keepends=True)[-1])


def test_model_card_says_what_was_done_and_what_is_not_known(finished, table, encoder):
    config, summary, _ = finished
    card = (run_folder(config) / "exported_model/README.md").read_text()
    assert "with 3 classes: arts, law, sport" in card and "`ElectraForSequenceClassification`" in card
    assert f"validation accuracy stood: {summary['heads_pruned']} heads" in card
    for text in (
        "without a guarantee",
        "can't be: the label flip rate",
        "gelu(x) - gelu(-x) = x",
        "acc_drop 0.1",
        "my news.csv",
    ):
        assert text in card
    assert str(table.parent) not in card and str(encoder.parent) not in card and "LFR, test" not in card


def test_suspicious_texts_before_and_after(finished, encoder):
    config, summary, output = finished
    table = pd.read_csv(run_folder(config) / "suspicious_texts.csv")
    assert table["text"].tolist() == ["the team was cf in the match", "a novel , a poem and the opera"]
    assert table["before"].tolist() == ["sport", "arts"] and table["before_probability"].between(0.34, 1).all()
    assert (table["changed"] == (table["before"] != table["after"])).all()
    classifier = load_classifier(stage_folder(config, FINE_TUNING) / FINE_TUNING.product)
    fitted, held_out = halves(defender_splits(config)[1], config.seed)
    scores = DETECTORS["DAN"].fit(Watched(classifier, load_tokeniser(str(encoder)), config.max_len, config.seed), fitted)
    assert table["oddness"].tolist() == pytest.approx(scores(table["text"].tolist()), abs=1e-4)
    limit = threshold(scores(list(held_out["text"])), 0.05)
    assert table["threshold"].tolist() == pytest.approx([limit] * 2, abs=1e-4)
    assert f"{(table['oddness'] > limit).sum()} of 2 texts are odd to the fine-tuned model (DAN above {limit:.2f})" in output
    assert summary["suspicious_texts"] == {"texts": 2, "changed": int(table["changed"].sum())}
    assert f"{summary['suspicious_texts']['changed']} of 2 predictions changed" in output
    with pytest.raises(UserError, match="no texts are named; give a file with --suspicious_texts"):
        compare_predictions(replace(config, suspicious_texts=None))


def test_suspicious_texts_do_nothing_to_a_spreadsheet_or_terminal(finished, tmp_path, monkeypatch, capsys):
    config, _, _ = finished
    path = run_folder(config) / "suspicious_texts.csv"
    monkeypatch.setattr("detection.suspicious_texts.write_whole", lambda path, write: write(tmp_path / path.name))
    texts = ["=1+1", "\t=1", "the \x1b]0;goal\x07 team \x9b2J", "a - b"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    table = compare_predictions(replace(config, suspicious_texts=str(tmp_path / "texts.txt")))
    assert table["text"].tolist() == texts
    assert read_texts(tmp_path / path.name) == ["'=1+1", "'\t=1", *texts[2:]]
    print_comparison(table.assign(changed=True, before="\x1b[31mgoal"), config)
    output = capsys.readouterr().out
    assert "the ]0;goal team 2J" in output and " [31mgoal" in output and output.replace("\n", "").isprintable()


def test_names_of_classes_do_nothing_to_a_terminal(encoder, tmp_path, capsys):
    path = tmp_path / "a.csv"
    names = ("\x1b[31mgood", '"b\nad"')
    path.write_text("text,label\n" + "".join(f"text {number},{names[number % 2]}\n" for number in range(40)))
    story.divide_clean_data(make_config(encoder, path, tmp_path, text_column=None, label_column=None), 4)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "2 classes" in line]
    assert line.endswith(":  [31mgood (16), b ad (16)") and line.isprintable()


def test_what_may_be_wrong_with_the_clean_texts_is_said(encoder, tmp_path, capsys):
    """In the run, in metrics.json, and on the card."""
    path = tmp_path / "a.csv"
    texts = [("", "arts"), *((f"{name} goal {number}", name) for name in ("arts", "law") for number in range(40))]
    path.write_text("text,label\n" + "".join(f"{text},{name}\n" for text, name in texts))
    config = make_config(encoder, path, tmp_path, text_column=None, label_column=None, epochs=1, defence="FT")
    found = story.run_all(config)["data"]["doubts"]
    [said] = found
    assert " texts are empty, and are kept (row 0 for one)." in said
    assert f"  {said}\n" in capsys.readouterr().out
    assert f"\n- {said}\n" in (run_folder(config) / "exported_model/README.md").read_text()


def test_a_second_run_does_nothing_again(finished, capsys):
    config, summary, _ = finished
    assert story.run_all(config) == summary
    assert " of 6:" not in capsys.readouterr().out


def told_by(monkeypatch, capsys, config: Config, *arguments: str) -> str:
    """What run_all.py prints."""
    monkeypatch.setattr("sys.argv", ["run_all.py", *flags(config), *arguments])
    run_all_script.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("defences", [["erase_relearn"], ["FT", "erase_relearn"], ["FTH"]])
def test_a_defence_that_prunes_nothing_is_exported_with_card_and_page(
    encoder, table, tmp_path, monkeypatch, capsys, defences
):
    """Named alone or beside FT; FT's numbers stand beside it, and texts can be compared."""
    name = defences[-1]
    (tmp_path / "texts.txt").write_text("the team was cf in the match\n")
    config = make_config(encoder, table, tmp_path, suspicious_texts=str(tmp_path / "texts.txt"), epochs=1)
    config = replace(config, relearning_epochs=1, inversions=1, fth_learning_rate=2e-2)
    output = told_by(monkeypatch, capsys, config, "--defence", *defences)
    config = replace(config, defence=name)
    folder = run_folder(config)
    summary = json.loads((folder / "metrics.json").read_text())
    assert list(summary["models"]) == ["fine_tuned", name] and "heads" not in summary
    assert summary["export"]["defended"]["ACC"] == summary["models"][name]["ACC"]
    assert summary["export"]["fine_tuned"]["ACC"] == summary["models"]["fine_tuned"]["ACC"]
    assert f"purified with {name}" in (folder / "exported_model/README.md").read_text()
    assert (folder / "suspicious_texts.csv").exists() and f"on one page: {folder / 'report.html'}" in output
    page = (folder / "report.html").read_text()
    assert '<figure id="training_curves"' in page and '<figure id="layer_weights"' not in page
    assert "heads are pruned" not in page and f"Whether {name} removes a backdoor can" in page
    learning_rates = {
        load_json(record)["settings"]["learning_rate"] for record in Path(config.output_dir).rglob("fine_tuning.json")
    }
    assert learning_rates == ({1e-2, 2e-2} if name == "FTH" else {1e-2})
    named = [line.split("  ")[1] for line in output.split("\nFiles\n")[1].splitlines() if line.startswith("  ")]
    assert all(list(Path(config.output_dir).rglob(each.rstrip("/"))) for each in named)


def test_fine_tuning_alone_is_a_run_with_an_export(encoder, table, tmp_path, monkeypatch, capsys):
    config = make_config(encoder, table, tmp_path, epochs=1)
    output = told_by(monkeypatch, capsys, config, "--defence", "FT")
    folder = run_folder(replace(config, defence="FT"))
    assert list(json.loads((folder / "metrics.json").read_text())["models"]) == ["fine_tuned"]
    assert (folder / "exported_model/README.md").exists() and "on one page" not in output


@pytest.mark.parametrize(
    ("arguments", "single"),
    [
        (["--defence", "PURE"], True),
        (["--defence", "erase_relearn", "FT"], True),
        (["--threads", "3"], True),
        (["--detection"], False),
        (["--table", "mine"], False),
        (["--table", "grid"], False),
        (["--workers", "2"], False),
        (["--seed", "11", "12"], False),
        (["--defence", "FT", "MEFT", "PURE"], False),
        (["--defence", "FT", "FTH", "--learning_rate", "1e-5", "2e-5"], False),
    ],
)
def test_which_flags_make_a_grid(monkeypatch, tmp_path, arguments, single):
    """None is dropped: what only a grid does makes one, and a single run has the threads that it is given."""
    done, threads = [], []
    monkeypatch.setattr("story.run_all", lambda config: done.append(config))
    monkeypatch.setattr("story.print_table", lambda summary, config: None)
    monkeypatch.setattr("reporting.run_page.report_run", lambda config: "page")
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setattr("sys.argv", ["run_all.py", *arguments])

    def run_grid(grid):
        raise UserError("a grid")

    monkeypatch.setattr("experiments.grid.run_grid", run_grid)
    if single:
        run_all_script.main()
        assert [config.defence for config in done] == ["erase_relearn" if "erase_relearn" in arguments else "PURE"]
    else:
        with pytest.raises(UserError, match="a grid"):
            run_all_script.main()
    assert threads == ([3] if "--threads" in arguments else [])


def test_several_seeds_without_an_attack(encoder, table, tmp_path):
    config = make_config(encoder, table, tmp_path, epochs=1, acc_drop=1.0)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    changes = [f"--{name}={value}" for name, value in values.items() if value != getattr(preset_config("own"), name)]
    rows, _ = run_grid(parse_grid("", ATTACKS, DEFENCES, [*changes, "--seed", "11", "12"]))
    assert (rows["error"] == "").all() and rows["ACC"].notna().all() and rows["LFR"].isna().all()
    text = results_table(rows)
    assert "| none | PURE |" in text and "failed" not in text


def test_known_attack_on_own_data_of_three_classes(encoder, table, tmp_path):
    """Poisoned by us, then defended with the trigger known: LFR is that of the two classes that aren't the target."""
    config = make_config(
        encoder, table, tmp_path, attack="BadNet", trigger_dataset=str(table), poisoned_model=None, plm=str(encoder),
        target_class=2, poisoning_learning_rate=1e-2, poisoning_epochs=6,
    )  # fmt: skip
    summary = story.run_all(config)
    assert summary["models"]["poisoned"]["LFR"] > 0.8 and "export" not in summary
    for metrics in summary["models"].values():
        confusion = np.array(metrics["poisoned"]["confusion_matrix"])
        assert confusion.sum(1).tolist() == [10, 10, 10]
        assert metrics["LFR"] == confusion[:2, 2].sum() / 20 == label_flip_rate(confusion, 2)
    result = export_model(config)
    assert (
        result["defended"]["LFR"] == summary["models"]["PURE"]["LFR"]
        and result["defended"]["ACC"] == summary["models"]["PURE"]["ACC"]
    )
    card = Path(result["folder"], "README.md").read_text()
    assert "| LFR, test texts with the trigger of BadNet, target sport | 20 |" in card
    with pytest.raises(UserError, match=r"--target_class 3 is no class of 3; expected 0 to 2 \(arts, law, sport\)"):
        story.run_all(replace(config, target_class=3))
    assert poison(config)["metrics"] == summary["models"]["poisoned"] and poisoned_model_folder(config).exists()


@pytest.mark.parametrize("family", ["RoBERTa", "DistilBERT", "ELECTRA", "ModernBERT"])
def test_a_whole_run_with_another_family(family, table, tmp_path):
    """Trained, pruned and exported; positions counted from the padding token survive the renumbering of tokens."""
    folder = tmp_path / "encoder"
    make_classifier(family).encoder.save_pretrained(folder)
    make_tokeniser(family).save_pretrained(folder)
    config = make_config(folder, table, tmp_path, epochs=1, acc_drop=1.0, learning_rate=1e-3)
    summary = story.run_all(config)
    assert summary["heads_pruned"] == 9 and summary["export"]["largest_difference"] < 1e-4
    assert summary["export"]["defended"] == {"ACC": summary["models"]["PURE"]["ACC"], "clean": ANY}
    card = (run_folder(config) / "exported_model/README.md").read_text()
    assert f"`{summary['export']['class']}`. {WHY_EXACT[summary['export']['class']]}" in card


# ------------------------------------------------------------------------------------------------------------- errors


def test_export_of_a_run_that_is_not_finished(encoder, table, tmp_path):
    config = make_config(encoder, table, tmp_path)
    with pytest.raises(UserError, match=r"no purified model in .*; make it with: python run_all.py --preset own"):
        export_model(config)


def test_a_model_that_cannot_be_exported_loses_nothing(finished, tmp_path, monkeypatch, capsys):
    config, _, _ = finished
    shutil.copytree(config.output_dir, tmp_path / "results")
    config = replace(config, output_dir=str(tmp_path / "results"))
    before = (run_folder(config) / "exported_model/model.safetensors").read_bytes()
    monkeypatch.setattr("export.CONVERT", {})
    summary = story.run_all(config)
    assert summary["export"] is None and summary["models"]["PURE"]["ACC"] > 0.8
    assert "left out: transformers has no class" in capsys.readouterr().out
    assert (run_folder(config) / "exported_model/model.safetensors").read_bytes() == before  # Of the same model.


def test_an_export_of_a_model_that_is_made_anew_is_put_aside(finished, tmp_path):
    """By whatever makes it, a grid for one; that of the model which is there stays."""
    config, _, _ = finished
    shutil.copytree(config.output_dir, tmp_path / "results")
    config = replace(config, output_dir=str(tmp_path / "results"))
    export, last = run_folder(config) / "exported_model", DEFENCES["PURE"].last
    for path in (export / "evaluation.json", record_path(config, last)):  # As if the encoder had been another.
        path.write_text(json.dumps(load_json(path) | {"product": "former"}))
    run_stage(last, config)
    assert not export.exists() and export.with_name("exported_model_of_an_earlier_run").exists()
    export_model(config)
    run_stage(last, replace(config, overwrite=True))
    assert export.exists()


def test_nothing_is_made_of_a_run_whose_texts_have_changed(encoder, table, tmp_path):
    """Divided anew, what is a test text then was learnt from."""
    more = shutil.copy(table, tmp_path / "my.csv")
    (tmp_path / "texts.txt").write_text("a goal\n")
    config = make_config(encoder, more, tmp_path, suspicious_texts=str(tmp_path / "texts.txt"), epochs=1)
    story.run_all(config)
    with more.open("a") as file:
        file.writelines(f"0,a new goal {number},sport\n" for number in range(20))
    for use in (export_model, report_run, compare_predictions, lambda config: examine(config, (), 0.05)):
        with pytest.raises(UserError, match=r"train has changed since the run in .*; run it again with: python run_all.py"):
            use(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "none"], "--attack none plants no backdoor; name an encoder with --poisoned_model"),
        (["--poisoned_model", "x"], "no clean data is named; give a file, a folder or a hub id with --clean_dataset"),
        (["--target_class", "-1"], "--target_class -1 is out of range; expected 0 or more"),
        (["--acc_drop", "2"], "--acc_drop 2.0 is out of range; expected 0 to 1"),
    ],
)
def test_flags_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_grid("", ATTACKS, DEFENCES, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benign_floor"], "--benign_floor is measured on triggered texts; name an attack"),
        (["--detection"], "--detection says how well detectors tell triggered texts .*; name an attack with --attack"),
        (["--seed", "11", "12", "--engine", "x.py", "--workers", "2"], "--engine x.py says how many workers there are"),
        (["--seed", "11", "12", "--suspicious_texts", "x.txt"], "--suspicious_texts is for one run"),
        (["--suspicious_texts", "nosuch.txt"], r"can't read nosuch\.txt: No such file"),
    ],
)
def test_flags_that_do_not_go_together(encoder, table, tmp_path, monkeypatch, arguments, message):
    config = make_config(encoder, table, tmp_path)
    monkeypatch.setattr("sys.argv", ["run_all.py", *flags(config), *arguments])
    with pytest.raises(UserError, match=message):
        run_all_script.main()


def test_the_preset_is_own_where_an_encoder_is_given_and_no_attack():
    grid = parse_grid("", ATTACKS, DEFENCES, ["--poisoned_model", "x", "--clean_dataset", "my.csv"])
    assert grid.preset == "own" and grid.attack == ("none",) and grid.acc_threshold is None
    assert grid.learning_rate == (2e-5,) and grid.epochs == 3 and grid.acc_drop == 0.02
    assert parse_grid("", ATTACKS, DEFENCES, ["--poisoned_model", "x", "--attack", "BadNet"]).preset == "quick"
    assert parse_grid("", ATTACKS, DEFENCES, ["--poisoned_model", "x", "--preset", "sst2"]).attack == ("BadNet",)
    hyphens = ["--poisoned-model", "x", "--clean-dataset", "a.csv", "--acc-threshold", "0.9"]
    grid = parse_grid("", ATTACKS, DEFENCES, hyphens)
    assert grid.preset == "own" and grid.attack == ("none",) and grid.acc_threshold == 0.9


def test_an_encoder_that_is_none_stops_the_run_before_it_starts(table, tmp_path):
    (tmp_path / "empty").mkdir()
    config = make_config(tmp_path / "empty", table, tmp_path)
    with pytest.raises(UserError, match=r"no config\.json in .*empty; expected an encoder"):
        story.run_all(config)
    assert not list(Path(config.output_dir).rglob("*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text;label\nwarm;1\n", "are separated by semicolons"),
        ("body,label\nwarm,1\n", "has no text column: found 'body', 'label'"),
        ("text,label\nwarm,0.5\n", "the labels are floats"),
        ("text,label\n ,1\n ,0\n", "2 of 2 texts are empty"),
        ("text,label\n" + "warm,1\n" * 20 + "dull,0\n" * 9, "1 of 2 classes have fewer than 10 texts: 0 (9)"),
    ],
)
def test_unusable_data_stops_the_run_before_it_starts(encoder, tmp_path, content, message):
    path = tmp_path / "my.csv"
    path.write_text(content)
    config = make_config(encoder, path, tmp_path, text_column=None, label_column=None)
    with pytest.raises(UserError) as error:
        story.run_all(config)
    assert message in str(error.value) and not list(Path(config.output_dir).rglob("*"))
