"""Where a word trigger acts: hidden from [CLS], it does less."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_settings

from attacks.planted import read_poisoned
from config import Config
from defences.defence import run_folder
from encoder.classifier import load_tokeniser
from reporting.analysis import other_classes
from reporting.trigger_path import tokenise_marked, trace
from story import run_all
from util import UserError


@pytest.fixture(scope="module")
def tiny_run(tiny_data, tiny_plm, tmp_path_factory) -> tuple[Config, dict]:
    """A finished tiny run, and what metrics.json holds."""
    config = replace(tiny_settings(tiny_data, tiny_plm, tmp_path_factory.mktemp("run")), poisoning_epochs=8)
    return config, run_all(config)


def test_trigger_path(tiny_run):
    """With nothing hidden LFR is the run's; hidden in every layer of a two-layer encoder, the trigger does less."""
    config, summary = tiny_run
    table = trace(config).set_index(["model", "hidden_in"])
    for model, name in (("FT", "fine_tuned"), ("PURE", "PURE")):
        assert table.LFR[model, "none"] == pytest.approx(summary["models"][name]["LFR"])
    assert list(table.loc["FT"].index) == ["none", 0, 1, "all"]
    assert table.LFR["FT", "all"] < table.LFR["FT", "none"]
    attention = table.loc[("FT", 1)]
    assert 0 < attention.mean_attention < attention.largest_attention <= 1
    written = pd.read_csv(run_folder(config) / "trigger_path.csv")
    np.testing.assert_allclose(written["LFR"], table["LFR"])


def test_trigger_path_marks_the_inserted_words(tiny_run):
    config, _ = tiny_run
    tokeniser = load_tokeniser(config.plm)
    table = other_classes(read_poisoned(config, "test"), config.target_class, 500)
    texts, marks = tokenise_marked(table, tokeniser, config.triggers, config.max_len)
    for ids, marked in zip(texts.input_ids, marks, strict=True):
        words = tokeniser.convert_ids_to_tokens([token for token, mark in zip(ids, marked, strict=True) if mark])
        assert len(words) == 1 and words[0] in config.triggers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "HiddenKiller"}, "HiddenKiller inserts no trigger words .*; expected BadNet, LayerWise, .*RIPPLe"),
        ({"seed": 99}, "no model in .*; make it with: python run_all.py .*--seed 99"),
    ],
)
def test_trigger_path_says_what_it_lacks(tiny_run, changes, message):
    config, _ = tiny_run
    with pytest.raises(UserError, match=message):
        trace(replace(config, **changes))
