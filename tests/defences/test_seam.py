"""SEAM: random labels, forgetting that ends when the task is forgotten, a start from the fine-tuned model."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_defences import defend

from defences.defence import defended_model_folder, product_path, record_path
from defences.fine_tuning import FINE_TUNING
from defences.seam import FORGETTING, forget_and_recover, forgotten_below
from defences.shared import random_labels
from encoder.classifier import Classifier, load_encoder
from util import UserError, load_json


def test_labels_are_drawn_from_all_classes_whatever_they_were(tiny_plm):
    model = Classifier(load_encoder(str(tiny_plm)), 3, 0.0, seed=11).eval()
    batch = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        possible = -model(**batch).log_softmax(-1)[0]
    counts = torch.zeros(3)
    for seed in range(300):
        torch.manual_seed(seed)
        losses = []
        for label in (0, 2):
            torch.manual_seed(seed)
            with torch.no_grad():
                losses.append(random_labels(model, {**batch, "labels": torch.tensor([label])})["cross_entropy"])
        assert losses[0] == losses[1]
        counts += torch.isclose(possible, losses[0])
    assert counts.sum() == 300 and counts.min() > 70


def test_what_counts_as_forgotten():
    assert [forgotten_below(classes) for classes in (2, 3, 4, 10)] == [0.6, 0.6, 0.5, 0.2]


def test_it_forgets_until_the_task_is_gone_and_recovers(given):
    config = replace(given, defence="SEAM", epochs=4, forgetting_rate=1e-2, forgetting_epochs=5)
    record = defend(config)
    forgetting, recovery = record["training"]["forgetting"], record["training"]["recovery"]
    *before, last = forgetting["accuracy"]
    assert last < 0.6 and all(accuracy >= 0.6 for accuracy in before) and len(before) < 4
    # Passes over 192 texts in batches of 32.
    assert len(forgetting["losses"]["cross_entropy"]) == 6 * (len(before) + 1)
    assert len(recovery["seconds"]) == 4 and record["metrics"]["ACC"] > 0.9
    assert (defended_model_folder(config) / "model.safetensors").exists()


def test_forgetting_is_bounded(given, monkeypatch):
    """A rate at which nothing is forgotten; and no more texts than there is need for."""
    monkeypatch.setattr("defences.seam.FORGOTTEN_FROM", 64)
    config = replace(given, defence="SEAM", epochs=4, forgetting_rate=1e-9, forgetting_epochs=3)
    forgetting = defend(config)["training"]["forgetting"]
    assert len(forgetting["accuracy"]) == 3 and min(forgetting["accuracy"]) > 0.9
    assert len(forgetting["losses"]["cross_entropy"]) == 3 * 2


def test_it_starts_from_the_fine_tuned_model(given):
    config = replace(given, defence="SEAM", forgetting_epochs=1)
    record = defend(config)
    assert record["settings"]["fine_tuned_model"] == load_json(record_path(config, FINE_TUNING))["product"]
    weights = product_path(config, FINE_TUNING) / "model.safetensors"
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}
    save_file(broken, weights, metadata={"format": "pt"})
    record_path(config, FORGETTING).unlink()
    with pytest.MonkeyPatch.context() as patch:  # Its stage would be run again, since its product isn't what it wrote.
        patch.setattr("defences.shared.run_stage", lambda stage, config: {"product": "broken"})
        with pytest.raises(UserError, match="fine_tuned_model has nan"):
            forget_and_recover(config)
