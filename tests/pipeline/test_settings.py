"""What a stage's result depends on is in its settings: each field of Config, changed, changes those of the stages that read
it, and of no others."""

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertModel

import attention_head_pruning
import attention_normalization
import pretrained_model_poisoning
from config import NOT_SETTINGS, Config
from Data.make_poisoned_data import make_poisoned_data
from defences import (
    discard,
    erase_relearn,
    fine_mixing,
    fine_pruning,
    fine_tuning,
    mbtsad,
    meft,
    reinit_layers,
    seam,
    shared,
)
from defences.defence import as_defence

STAGES = POISONING, FT, MEFT, PRUNING, NORMALISATION, ERASING, SEAM, NEURONS, REINIT, MIXING, DISCARD, TEACHER, STUDENT = (
    *("poisoning", "FT", "MEFT", "pruning", "normalisation", "erasing"),
    *("SEAM", "neurons", "reinit", "mixing", "discard", "teacher", "student"),
)
ALL = {*STAGES}
DEFENDER = ALL - {POISONING}


@pytest.fixture
def other_plm(tiny_plm, tmp_path) -> Path:
    """The tiny encoder with another weight."""
    folder = Path(shutil.copytree(tiny_plm, tmp_path / "other"))
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias += 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path, tiny_data) -> Path:
    """The tiny data's train texts as one table with columns that can be mixed up."""
    rows = [line.split("\t") for line in (tiny_data / "sst2/train.tsv").read_text().splitlines()[1:]]
    path = tmp_path / "table.csv"
    lines = [f"{text},{text} film,{label},{1 - int(label)}" for text, label in rows]
    path.write_text("\n".join(["text,more,label,opposite", *lines]) + "\n")
    return path


# Field: what it is changed to; what else has to be so, before and after; the stages whose settings change.
CHANGES = {
    "attack": ("HiddenKiller", {}, ALL),
    "plm": ("OTHER", {}, {POISONING}),
    "poisoned_model": ("OTHER", {}, DEFENDER - {DISCARD}),
    "tokeniser": ("OTHER", {}, DEFENDER - {DISCARD}),  # The trusted encoder has its own.
    "clean_encoder": ("OTHER", {}, {MIXING, DISCARD}),
    "seed": (12, {}, ALL),
    "trigger_dataset": ("hiddenkiller_sst2", {"setting": "DS", "trigger_dataset": "stylebkd_sst2"}, {POISONING}),
    "clean_dataset": ("hiddenkiller_sst2", {"setting": "DS", "trigger_dataset": "stylebkd_sst2"}, ALL),
    "text_column": ("more", {"attack": "none", "clean_dataset": "TABLE", "text_column": "text"}, DEFENDER),
    "label_column": ("opposite", {"attack": "none", "clean_dataset": "TABLE", "label_column": "label"}, DEFENDER),
    "split_seed": (12, {}, DEFENDER),
    "max_len": (24, {}, ALL),
    "poisoning_max_len": (16, {}, {POISONING}),
    "triggers": (("cf",), {}, ALL),
    "target_class": (0, {}, ALL),
    "rare_word_share": (0.25, {}, ALL),  # The test texts' positions are drawn after the train texts'.
    "hiddenkiller_share": (0.7, {"attack": "HiddenKiller"}, {POISONING}),
    "stylebkd_share": (0.7, {"attack": "StyleBkd"}, {POISONING}),
    "poisoning_epochs": (2, {}, {POISONING}),
    "poisoning_learning_rate": (1e-3, {}, {POISONING}),
    "ripple_coefficient": (0.2, {"attack": "RIPPLe"}, {POISONING}),
    "surgery_words": (3, {"attack": "RIPPLe"}, {POISONING}),
    "epochs": (2, {}, DEFENDER - {ERASING}),
    "learning_rate": (1e-3, {}, DEFENDER - {ERASING}),
    "fth_learning_rate": (1e-3, {"defence": "FTH"}, DEFENDER - {ERASING}),
    "repaired_words": ("none", {}, {ERASING}),
    "inversions": (2, {}, {ERASING}),
    "measured_regions": (2, {}, {ERASING}),
    "erase_forgetting_epochs": (0, {}, {ERASING}),
    "erase_forgetting_rate": (1e-3, {}, {ERASING}),
    "erase_rounds": (2, {}, {ERASING}),
    "erase_spared": (0.25, {}, {ERASING}),
    "relearning_rate": (1e-3, {}, {ERASING}),
    "relearnings": (2, {}, {ERASING}),
    "relearning_epochs": (2, {}, {ERASING}),
    "relearning_texts": ("plain", {}, {ERASING}),
    "left_out": ("erasing", {"defence": "erase_relearn"}, {ERASING}),
    "acc_threshold": (0.5, {}, {PRUNING, NEURONS}),
    "acc_drop": (0.1, {"acc_threshold": None}, {PRUNING, NEURONS}),
    "pruning_criterion": ("entropy", {}, {PRUNING}),
    "prune_step": (3, {}, {PRUNING}),
    "penalty_coefficient": (0.3, {}, {NORMALISATION}),
    "entropy_epochs": (2, {}, {MEFT}),
    "entropy_head": ("frozen", {}, {MEFT}),
    "forgetting_epochs": (2, {}, {SEAM}),
    "forgetting_rate": (1e-3, {}, {SEAM}),
    "reinit_layers": (1, {}, {REINIT}),
    "mixing_share": (0.2, {}, {MIXING}),
    "batch_size": (16, {}, ALL),
    "max_grad_norm": (2.0, {}, ALL),
    "classifier_dropout": (0.2, {}, ALL),
    "precision": ("bf16", {}, ALL),
}
# These say where things are, or only through others what they are.
EXCEPTIONS = {
    *NOT_SETTINGS,
    "preset",  # A name for defaults of other fields.
    "setting",  # Which data sets go together; the texts themselves are hashed.
}


class ReachedError(Exception):
    """A stage has said what it depends on, and goes no further."""


@pytest.fixture
def settings_of(monkeypatch):
    """A function from a configuration to the settings of every stage, in which nothing is trained."""

    def note(record, settings, compute, **also):
        raise ReachedError(settings)

    for module in (pretrained_model_poisoning, attention_head_pruning, shared):
        monkeypatch.setattr(module, "run_once", note)
    monkeypatch.setattr(attention_head_pruning, "fine_tune_clean", lambda config: {"product": "0"})
    monkeypatch.setattr(shared, "run_stage", lambda stage, config: {"product": "0"})
    heads = {0: [1], 1: []}
    monkeypatch.setattr(attention_normalization, "load_pruned_heads", lambda *read: (heads, [0.1, 0.2]))
    stages = {
        FT: fine_tuning.fine_tune_clean,
        MEFT: meft.maximise_entropy_and_fine_tune,
        PRUNING: attention_head_pruning.prune_heads,
        NORMALISATION: attention_normalization.normalise_attention,
        ERASING: erase_relearn.erase_and_relearn,
        SEAM: seam.forget_and_recover,
        NEURONS: fine_pruning.prune_and_fine_tune,
        REINIT: reinit_layers.fine_tune_below_new_layers,
        MIXING: fine_mixing.mix_and_fine_tune,
        DISCARD: discard.fine_tune_trusted,
        TEACHER: mbtsad.train_on_split_words,
        STUDENT: mbtsad.distil_attention,
    }

    def found(config: Config) -> dict[str, dict]:
        config, result = as_defence(config), {}
        if config.attack != "none":
            make_poisoned_data(config)
            stages_now = {POISONING: pretrained_model_poisoning.poison, **stages}
        else:
            stages_now = stages
        for name, stage in stages_now.items():
            with pytest.raises(ReachedError) as stop:
                stage(config)
            (result[name],) = stop.value.args
        return result

    return found


def test_every_field_is_thought_of():
    assert {field.name for field in dataclasses.fields(Config)} == CHANGES.keys() | EXCEPTIONS
    assert not CHANGES.keys() & EXCEPTIONS


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_changes_the_settings_of_what_reads_it(field, tiny_config, other_plm, table, settings_of):
    value, before, readers = CHANGES[field]
    known = {"OTHER": str(other_plm), "TABLE": str(table)}
    before = {name: known.get(each, each) if isinstance(each, str) else each for name, each in before.items()}
    value = known.get(value, value) if isinstance(value, str) else value
    first = replace(tiny_config, **{"poisoned_model": tiny_config.plm, "clean_encoder": tiny_config.plm, **before})
    old, new = settings_of(first), settings_of(replace(first, **{field: value}))
    assert {name for name in old if old[name] != new[name]} == readers


def test_settings_name_the_method_and_the_classes(tiny_config, settings_of):
    config = replace(tiny_config, poisoned_model=tiny_config.plm, clean_encoder=tiny_config.plm)
    for settings in settings_of(config).values():
        assert settings["method"] >= 1 and settings["classes"] == ["0", "1"]


def test_a_file_of_the_encoder_that_changes_is_noticed(tiny_config, other_plm, settings_of):
    """Not its weights alone: its configuration and its tokeniser make another function of the same weights."""
    config = replace(tiny_config, plm=str(other_plm), poisoned_model=str(other_plm), clean_encoder=str(other_plm))
    for name, old, new in (("config.json", '"gelu"', '"relu"'), ("tokenizer.json", '"cf"', '"fc"')):
        first = settings_of(config)
        text = (other_plm / name).read_text()
        assert old in text
        (other_plm / name).write_text(text.replace(old, new))
        second = settings_of(config)
        assert all(first[stage] != second[stage] for stage in ALL), name
