"""The card of an exported model is published: names in it are text, whatever they are."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import preset_config
from reporting.model_card import model_card


@pytest.mark.parametrize("defence", ["PURE", "FT"])
@pytest.mark.parametrize(("right", "interval", "guessed"), [(40, "0.9124 to 1.0000", False), (21, "0.3750 to 0.6706", True)])
def test_what_an_accuracy_is_worth(defence, right, interval, guessed):
    """Its 95 % interval, which is none of width 0 where all is right; whether it may be chance; what was done."""
    classifier = SimpleNamespace(encoder=SimpleNamespace(config=SimpleNamespace(id2label={0: "bad", 1: "good"})))
    confusion = [[20, 0], [40 - right, right - 20]]
    metrics = {"ACC": right / 40, "clean": {"confusion_matrix": confusion}}
    result = {"fine_tuned": metrics, "defended": metrics, "largest_difference": 1e-6, "doubts": []}
    result["class"] = "DistilBertForSequenceClassification"
    config = preset_config("own", poisoned_model="some/model", clean_dataset="my.csv", defence=defence)
    card = model_card(config, classifier, [], {"fingerprints": {"encoder": "f"}}, result)
    assert f"(Wilson) is\n{interval}. The test texts" in card
    assert ("\n**An accuracy of 0.525 is not shown to be better than" in card) == guessed
    odd = {"threshold": 1.0, "allowed": 0.05, "FRR": 0.04}
    fitted = model_card(config, classifier, [], {"fingerprints": {"encoder": "f"}}, result | {"oddness": odd})
    assert "writes no score of how odd" in card and "writes no score of how odd" not in fitted and "## Odd texts" in fitted
    title = "purified with PURE and fine-tuned on my.csv" if defence == "PURE" else "fine-tuned on my.csv without a defence"
    assert f"# some/model, {title}\n" in card and ("nothing was done against a backdoor" in card) == (defence == "FT")


def test_an_encoder_that_was_put_aside():
    """The card is about the trusted one, and says no way to a folder."""
    classifier = SimpleNamespace(encoder=SimpleNamespace(config=SimpleNamespace(id2label={0: "bad", 1: "good"})))
    metrics = {"ACC": 0.9, "clean": {"confusion_matrix": [[9, 1], [1, 9]]}}
    result = {"fine_tuned": metrics, "defended": metrics, "largest_difference": 1e-6, "doubts": []}
    result["class"] = "DistilBertForSequenceClassification"
    config = preset_config(
        "own",
        poisoned_model="some/model",
        clean_dataset="my.csv",
        defence="discard",
        tokeniser="a/b",
        clean_encoder=str(Path(__file__).parent),
    )
    card = model_card(config, classifier, [], {"fingerprints": {"encoder": "f"}}, result)
    assert "# reporting, fine-tuned on my.csv in place of some/model\n" in card and "may\nhave carried" not in card
    assert "The trusted encoder's files (SHA-256" in card and "The tokeniser is that of reporting" in card
    assert "clean_encoder reporting" in card and str(Path(__file__).parent) not in card and "a/b" not in card
    mixed = model_card(replace(config, defence="fine_mixing"), classifier, [], {"fingerprints": {"encoder": "f"}}, result)
    assert "clean_encoder reporting" in mixed and "The given encoder's files" in mixed


def test_names_stay_text():
    config = preset_config(
        "own", poisoned_model="</p><script>", clean_dataset="a|b [x](y).csv", attack="BadNet", target_class=1
    )
    classes = {0: "cheap | 0", 1: "<img src=x>\n---\n# new"}
    classifier = SimpleNamespace(encoder=SimpleNamespace(config=SimpleNamespace(id2label=classes)))
    measured = {"confusion_matrix": [[9, 1], [1, 9]]}
    metrics = {"ACC": 0.9, "LFR": 0.1, "clean": measured, "poisoned": measured}
    read = {"fingerprints": {"encoder": "</p><script>"}}
    result = {"fine_tuned": metrics, "defended": metrics, "largest_difference": 1e-6, "doubts": []}
    result["class"] = "DistilBertForSequenceClassification"
    card = model_card(config, classifier, ["The first thing.", "The second."], read, result)
    assert "# \\</p>\\<script>, purified with PURE and fine-tuned on a\\|b \\[x](y).csv\n" in card
    assert "2 classes: cheap \\| 0, \\<img src=x> --- # new." in card and "target \\<img src=x> --- # new | 10 |" in card
    assert "1. The first thing.\n2. The second.\n" in card
    for tag in ("<script", "<img", "</p"):
        assert card.count(tag) == card.count(f"\\{tag}") > 0
