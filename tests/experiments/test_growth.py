"""What a PURE run and a scan cost: measured at the sizes asked for, and drawn."""

import numpy as np
import pandas as pd
import torch

from detection.encoder_scan import Effort
from encoder.classifier import load_encoder, load_tokeniser
from experiments import scan_growth
from experiments.cost_growth import PARTS, cost, texts_of_length
from experiments.growth import cost_figure, encoder_of_depth, measure_growth, measured


def test_texts_have_the_size_that_is_asked_for():
    texts = texts_of_length(np.arange(1000, 1007), 6, 12)
    assert [len(ids) for ids in texts.input_ids] == [12] * 6 and texts.labels == [0, 1] * 3
    inner = [token for ids in texts.input_ids for token in ids[1:-1]]
    assert inner == np.resize(np.arange(1000, 1007), 60).tolist()
    assert {ids[0] for ids in texts.input_ids} == {101} and {ids[-1] for ids in texts.input_ids} == {102}


def test_a_run_is_measured(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    found = measured(cost, (40, 8, 2), 1)
    assert list(found) == [*PARTS, "MiB"] and all(value > 0 for value in found.values())
    assert encoder_of_depth(2).config.num_hidden_layers == 2 and encoder_of_depth(6).config.num_hidden_layers == 6


def test_an_encoder_of_a_smaller_vocabulary(tmp_path):
    """What is left of MiniLM is as it was: rows, numbers of tokens; a word that is gone is cut into pieces."""
    scan_growth.write_encoder(tmp_path, 5000, 6)
    small, whole = load_encoder(str(tmp_path)), encoder_of_depth(6)
    torch.testing.assert_close(small.get_input_embeddings().weight, whole.get_input_embeddings().weight[:5000])
    tokeniser = load_tokeniser(str(tmp_path))
    assert len(tokeniser) == 5000 and tokeniser("the film")["input_ids"] == [101, 1996, 2143, 102]
    assert max(tokeniser("an exquisite mastodon")["input_ids"]) < 5000


def test_a_scan_is_measured():
    found = scan_growth.cost(6000, 1, Effort(texts=4, tried=8))
    assert list(found) == ["words", "scan", "folder and head, s", "embedding, s", "words, s"]
    assert 1000 < found["words"] < 6000 and found["scan"] > 0


def doubled(first: int, second: int) -> dict[str, float]:
    return {"twice": 2 * first + second / 3}


def test_each_size_is_a_row_and_all_are_drawn(tmp_path):
    runs = [("first", {"first": 10, "second": 1}), ("first", {"first": 100, "second": 1})]
    measure_growth(runs, doubled, ("twice",), tmp_path / "grown.csv", 1)
    table = pd.read_csv(tmp_path / "grown.csv")
    assert table.columns.tolist() == ["grows", "first", "second", "twice", "MiB"]
    assert table["twice"].tolist() == [20.33, 200.33] and (table["MiB"] > 50).all()
    assert {path.name for path in tmp_path.iterdir()} == {"grown.csv", "grown.png", "grown.pdf"}


def test_every_part_and_the_memory_are_drawn():
    rows = [
        {"grows": what, "texts": number, "layers": 6, **dict.fromkeys(PARTS, number / 10), "MiB": 900 + number}
        for what in ("texts", "layers")
        for number in (100, 1000)
    ]
    axes = cost_figure(pd.DataFrame(rows), PARTS).axes
    assert len(axes) == 4 and [len(ax.lines) for ax in axes] == [4, 4, 1, 1]
    assert axes[0].lines[0].get_xydata().tolist() == [[100, 10], [1000, 100]]
    assert axes[2].lines[0].get_xydata().tolist() == [[100, 1000], [1000, 1900]]
    labels = {label.get_text() for ax in axes for label in ax.get_yticklabels()}
    assert {"10", "100", "1,000", "2,000"} <= labels and not any("$" in label for label in labels)
    near = cost_figure(pd.DataFrame(rows).assign(**{part: [60, 120, 60, 250] for part in PARTS}), PARTS)
    assert [label.get_text() for label in near.axes[0].get_yticklabels()] == ["50", "100", "200", "500"]
