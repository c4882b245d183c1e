"""What a PURE run costs: measured on texts of the sizes asked for, and drawn."""

import numpy as np
import pandas as pd
import torch

from experiments.cost_growth import PARTS, build, cost, texts_of_length
from reporting.figures import cost_figure


def test_texts_have_the_size_that_is_asked_for():
    texts = texts_of_length(np.arange(1000, 1007), 6, 12)
    assert [len(ids) for ids in texts.input_ids] == [12] * 6 and texts.labels == [0, 1] * 3
    inner = [token for ids in texts.input_ids for token in ids[1:-1]]
    assert inner == np.resize(np.arange(1000, 1007), 60).tolist()
    assert {ids[0] for ids in texts.input_ids} == {101} and {ids[-1] for ids in texts.input_ids} == {102}


def test_a_run_is_measured(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    found = cost(40, 8, 2, 1)
    assert list(found) == [*PARTS, "MiB"] and all(value > 0 for value in found.values())
    assert len(build(2).attention.num_heads) == 2 and len(build(6).attention.num_heads) == 6


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
