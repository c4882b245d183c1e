"""What a clean encoder is good for: discard takes it, Fine-mixing mixes it in."""

import dataclasses
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_defences import defend
from transformers import BertConfig, BertModel

from config import Config, preset_grid
from defences import fine_mixing
from defences.defence import defended_model_folder, takes_notice
from defences.fine_mixing import mix, suspicious_rows
from encoder.classifier import Classifier, load_classifier, load_encoder
from experiments.grid import cells, run_grid
from texts.batching import TokenisedTexts
from util import UserError


@pytest.fixture
def trusted(tiny_plm, tmp_path):
    """An encoder of the tiny one's kind in which every weight is another."""
    folder = shutil.copytree(tiny_plm, tmp_path / "trusted")
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).save_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def parameters(folder) -> dict[str, torch.Tensor]:
    return dict(load_encoder(str(folder)).named_parameters())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_each_weight_is_one_encoder_s_or_the_other_s(tiny_plm, trusted, share):
    clean, suspicious = parameters(trusted), parameters(tiny_plm)
    mixtures = []
    for seed in (11, 11, 12):
        classifier = Classifier(load_encoder(str(tiny_plm)), 2, 0.0, seed=11)
        mix(classifier, clean, share, seed)
        mixtures.append({name: weight.detach().clone() for name, weight in classifier.encoder.named_parameters()})
    taken = torch.cat([(mixtures[0][name] == clean[name]).flatten() for name in clean])
    kept = torch.cat([(mixtures[0][name] == suspicious[name]).flatten() for name in clean])
    assert torch.equal(taken, ~kept)
    assert taken.double().mean().item() == pytest.approx(share, abs=0.01)
    assert all(torch.equal(mixtures[0][name], mixtures[1][name]) for name in clean)
    assert share in (0, 1) or not torch.equal(
        mixtures[0]["embeddings.word_embeddings.weight"], mixtures[2]["embeddings.word_embeddings.weight"]
    )


def test_suspicious_rows_by_hand():
    """Distances 3, 4, 2, 1 for tokens that occur 20, 400, 0 and 20 times: 4 / log 400 is less than 2 / log 20."""
    clean = torch.zeros(4, 2)
    embedding = torch.tensor([[3.0, 0.0], [0.0, 4.0], [2.0, 0.0], [0.0, 1.0]])
    texts = TokenisedTexts([[0, 1] * 20, [1] * 380, [3] * 20], [0, 1, 0], 0)
    expected = np.array([3 / np.log(20), 4 / np.log(400), 2 / np.log(20), 1 / np.log(20)])
    assert list(np.argsort(-expected)) == [0, 1, 2, 3] and 4 / np.log(400) == pytest.approx(2 / np.log(20))
    assert suspicious_rows(embedding + torch.tensor([0.0, 1e-3]), clean, texts, number=1).tolist() == [0]
    more_often = TokenisedTexts([*texts.input_ids, [1] * 400], [0, 1, 0, 1], 0)
    assert suspicious_rows(embedding, clean, more_often, number=3).tolist() == [0, 2, 1]
    assert suspicious_rows(embedding, clean, more_often).tolist() == [0, 2, 1, 3]


def test_the_mixture_is_what_is_tuned(given, tiny_plm, trusted, monkeypatch):
    """At a rate that leaves all weights where they are; of the embedding the most suspicious rows are clean throughout."""
    monkeypatch.setattr(fine_mixing, "SUSPICIOUS_WORDS", 5)
    monkeypatch.setattr(suspicious_rows, "__defaults__", (5,))
    config = replace(given, defence="fine_mixing", clean_encoder=str(trusted), mixing_share=0.3, learning_rate=1e-12)
    record = defend(config)
    model, clean, suspicious = (
        dict(load_encoder(str(folder)).named_parameters()) for folder in (defended_model_folder(config), trusted, tiny_plm)
    )
    taken = {name: (model[name] - clean[name]).abs() < 1e-8 for name in clean}
    for name in clean:
        torch.testing.assert_close(model[name], torch.where(taken[name], clean[name], suspicious[name]), rtol=0, atol=1e-8)
    rows = taken["embeddings.word_embeddings.weight"].all(1)
    assert rows.sum() == 5
    others = torch.cat([each[~rows].flatten() if "word_embed" in name else each.flatten() for name, each in taken.items()])
    assert others.double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert record["settings"]["mixing_share"] == 0.3


def test_discard_is_fine_tuning_of_the_clean_encoder(given, trusted):
    """Bit for bit, and whatever the suspicious one is."""
    record = defend(replace(given, defence="discard", clean_encoder=str(trusted)))
    expected = defend(replace(given, defence="FT", poisoned_model=str(trusted)))
    assert record["metrics"] == expected["metrics"]
    folders = [
        defended_model_folder(replace(given, defence="discard", clean_encoder=str(trusted))),
        defended_model_folder(replace(given, defence="FT", poisoned_model=str(trusted))),
    ]
    first, second = (load_classifier(folder).state_dict() for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("defence", ["discard", "fine_mixing"])
def test_a_clean_encoder_that_is_not_named(given, defence):
    message = f"--defence {defence} needs an encoder that is trusted, and none is named; give .* --clean_encoder"
    with pytest.raises(UserError, match=message):
        defend(replace(given, defence=defence))
    grid = preset_grid(**{**dataclasses.asdict(given), "defence": ("FT", defence)})
    with pytest.raises(UserError, match=message):  # Before anything is run.
        run_grid(grid)
    assert not (defended_model_folder(replace(given, defence="FT"))).exists()


@pytest.mark.parametrize(("size", "other"), [("intermediate_size", 48), ("max_position_embeddings", 40)])
def test_encoders_that_cannot_be_mixed(given, tiny_plm, tmp_path, size, other):
    folder = shutil.copytree(tiny_plm, tmp_path / "wider")
    config = BertConfig.from_pretrained(folder)
    setattr(config, size, other)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    with pytest.raises(UserError, match=f"differ in {size} 64 and {other}, so that their weights can't be mixed"):
        defend(replace(given, defence="fine_mixing", clean_encoder=str(folder)))


def test_a_grid_sweeps_the_share(given, trusted):
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(Config)}
    changes = {"defence": ("FT", "fine_mixing"), "mixing_share": (0.2, 0.8), "clean_encoder": str(trusted)}
    grid = preset_grid(**{**values, **changes})
    found = [(config.defence, config.mixing_share) for config in cells(grid)]
    assert found == [("FT", 0.2), ("fine_mixing", 0.2), ("fine_mixing", 0.8)]
    assert takes_notice("fine_mixing") == {"learning_rate", "mixing_share"}
