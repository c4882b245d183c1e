"""The card of an exported model is published: names in it are text, whatever they are."""

from types import SimpleNamespace

from config import preset_config
from reporting.model_card import model_card


def test_names_stay_text():
    config = preset_config(
        "own", poisoned_model="</p><script>", clean_dataset="a|b [x](y).csv", attack="BadNet", target_class=1
    )
    classes = {0: "cheap | 0", 1: "<img src=x>\n---\n# new"}
    classifier = SimpleNamespace(encoder=SimpleNamespace(config=SimpleNamespace(id2label=classes)))
    measured = {"confusion_matrix": [[9, 1], [1, 9]]}
    metrics = {"ACC": 0.9, "LFR": 0.1, "clean": measured, "poisoned": measured}
    read = {"fingerprints": {"encoder": "</p><script>"}}
    result = {"fine_tuned": metrics, "defended": metrics, "largest_difference": 1e-6}
    result["class"] = "DistilBertForSequenceClassification"
    card = model_card(config, classifier, ["The first thing.", "The second."], read, result)
    assert "# \\</p>\\<script>, purified with PURE and fine-tuned on a\\|b \\[x](y).csv\n" in card
    assert "2 classes: cheap \\| 0, \\<img src=x> --- # new." in card and "target \\<img src=x> --- # new | 10 |" in card
    assert "1. The first thing.\n2. The second.\n" in card
    for tag in ("<script", "<img", "</p"):
        assert card.count(tag) == card.count(f"\\{tag}") > 0
