"""Each defence does what its row says, from the encoder that was released."""

import dataclasses
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import attention_head_pruning
import attention_normalization
from attacks import ATTACKS
from attention_head_pruning import prune_heads
from attention_normalization import normalise_attention
from config import parse_config, preset_grid
from defences import DEFENCES, __main__, meft
from defences.defence import (
    as_defence,
    defended_model_folder,
    product_path,
    record_path,
    run_folder,
    run_stage,
    takes_notice,
)
from defences.fine_tuning import FINE_TUNING, fine_tuned_model_folder
from defences.shared import load_defender_inputs, random_labels, train_released
from encoder.classifier import Classifier, load_encoder
from experiments.grid import run_grid
from pipeline import defender
from pipeline.defender import Phase, new_classifier
from pipeline.training import cross_entropy
from texts.batching import TokenisedTexts
from util import load_json


def defend(config):
    config = as_defence(config)
    return [run_stage(stage, config) for stage in DEFENCES[config.defence].stages][-1]


def test_seconds_are_of_all_that_a_defence_does(given):
    def slow(classifier):
        time.sleep(0.2)

    phases = [Phase(name, name, cross_entropy, 1, before=slow, after=slow) for name in ("a", "b")]
    seconds = train_released(given, FINE_TUNING, phases, prepare=slow)["seconds"]
    assert seconds.keys() == {"preparation", "training", "evaluation"} and seconds["preparation"] > 0.9


def test_a_phase_is_trained_as_its_row_says(given, monkeypatch):
    """Every field of a phase that `fine_tune` takes, each at another value than its default."""
    taken = []
    monkeypatch.setattr(defender, "fine_tune", lambda *args, **also: taken.append((args, also)) or {"seconds": [0.0]})
    few = TokenisedTexts([[2, 5, 3]], [0], 0)
    fields = {"warm_up": 0.3, "texts_of": few.select, "after_step": print, "accuracy_below": 0.4, "freeze_head": True}
    phase = Phase("a", "what is shown", random_labels, 7, learning_rate=0.2, texts=lambda: few, **fields)
    train_released(given, FINE_TUNING, [phase])
    ((_, texts, objective), also) = taken[0]
    assert texts is few and objective is random_labels
    assert also.items() >= {**fields, "learning_rate": 0.2, "epochs": 7, "description": "what is shown"}.items()
    passed = {"before", "after", "texts", "name", "objective"} | also.keys()
    assert {field.name for field in dataclasses.fields(Phase)} <= passed


def test_two_defences_keep_their_checkpoints_apart(given, monkeypatch):
    """Both have a phase of the name `forgetting`, and may run side by side."""
    kept = []
    history = {"seconds": [0.0], "accuracy": [0.0]}
    monkeypatch.setattr(defender, "fine_tune", lambda *args, **also: kept.append(also["checkpoint"]) or history)
    for name in ("SEAM", "erase_relearn"):
        defend(replace(given, defence=name, inversions=0, repaired_words="none"))
    assert len({*kept}) == len(kept) > 4


def test_meft_maximises_entropy_first(given):
    record = defend(replace(given, defence="MEFT", entropy_epochs=2))
    entropy, tuning = record["training"]["meft_entropy"], record["training"]["meft_fine_tuning"]
    assert set(entropy["losses"]) == {"negative_entropy"} and set(tuning["losses"]) == {"cross_entropy"}
    assert len(entropy["seconds"]) == 2 and len(tuning["seconds"]) == 1
    # Minus the entropy of 32 texts, which is at most 32 log 2.
    assert -32 * np.log(2) - 1e-3 <= min(entropy["losses"]["negative_entropy"]) < 0


def test_meft_with_a_frozen_head_differs_in_that_alone(given, monkeypatch):
    phases = {}
    monkeypatch.setattr(meft, "train_released", lambda config, stage, found: phases.update({config.entropy_head: found}))
    for name in ("MEFT", "MEFT_frozen_head"):
        defend(replace(given, defence=name))
    assert [phase.freeze_head for phase in phases["trained"]] == [False, False]
    assert [phase.freeze_head for phase in phases["frozen"]] == [True, False]
    assert [replace(phase, freeze_head=False) for phase in phases["frozen"]] == phases["trained"]


PURIFIERS = ("MEFT_frozen_head", "SEAM", "fine_pruning", "reinit_layers", "MBTSAD", "fine_mixing", "discard")


def test_purifiers_as_a_grid_and_their_floors(tiny_config):
    """Each on an encoder that was planted: its numbers, its own floor, and what it says of itself."""
    changes = {"defence": PURIFIERS, "clean_encoder": tiny_config.plm, "poisoning_epochs": 1, "acc_threshold": 0.0}
    values = {field.name: getattr(tiny_config, field.name) for field in dataclasses.fields(tiny_config)}
    table, _ = run_grid(preset_grid(**{**values, **changes, "epochs": 1, "benign_floor": True}))
    assert (table["error"] == "").all() and set(table["defence"]) == set(PURIFIERS)
    assert table[["ACC", "LFR", "floor_ACC", "floor_LFR"]].notna().all(axis=None)
    rows = table.set_index("defence")
    assert rows.loc["discard", "LFR"] == rows.loc["discard", "floor_LFR"]
    for name in PURIFIERS:
        config = as_defence(replace(tiny_config, **{**changes, "defence": name, "epochs": 1}))
        for stage in DEFENCES[name].stages:
            record = load_json(record_path(config, stage))
            assert len(stage.told(config)) > 80 and len(stage.done(record)) > 40
            assert set(stage.phases) == set(record["training"])


def test_pure_s_second_step_starts_from_the_released_encoder(given):
    """Whatever became of the fine-tuned one: it is there for its heads to be measured."""
    pruning = prune_heads(given)
    weights = product_path(given, FINE_TUNING) / "model.safetensors"
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}
    save_file(broken, weights, metadata={"format": "pt"})
    record = normalise_attention(given)
    losses = record["training"]["attention_normalization"]["losses"]["cross_entropy"]
    tuned = load_json(record_path(given, FINE_TUNING))["training"]["fine_tuning"]["losses"]["cross_entropy"]
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(tuned[0], rel=0.2)  # A fresh head on the same encoder, less some heads.
    assert pruning["settings"]["fine_tuned_model"] == load_json(record_path(given, FINE_TUNING))["product"]


def test_halves_of_pure(given):
    only_pruned, only_normalised = (defend(replace(given, defence=name)) for name in ("prune_only", "normalise_only"))
    parts = only_pruned["training"]["attention_normalization"]["losses"]
    assert max(parts["attention_penalty"]) == 0 and any(only_pruned["settings"]["pruned_heads"].values())
    parts = only_normalised["training"]["attention_normalization"]["losses"]
    assert min(parts["attention_penalty"]) > 0 and not any(only_normalised["settings"]["pruned_heads"].values())


def test_fth_is_ft_at_its_own_learning_rate(given):
    record = defend(replace(given, defence="FTH", fth_learning_rate=3e-3))
    assert record["settings"]["learning_rate"] == 3e-3
    assert record["metrics"] == defend(replace(given, defence="FT", learning_rate=3e-3))["metrics"]


def test_a_stage_script_runs_what_its_defence_stands_for(monkeypatch):
    def asked(module, function: str, defence: str, *flags: str):
        """The configuration that a script's `main` hands to what does the work."""
        taken = []
        record = {"metrics": {"ACC": 1.0}, "pruned_heads": {}}
        monkeypatch.setattr(module, function, lambda *args: taken.append(args[-1]) or record)
        monkeypatch.setattr("sys.argv", ["script", "--defence", defence, *flags])
        module.main()
        return taken[0]

    assert asked(attention_head_pruning, "prune_heads", "normalise_only").pruning_criterion == "none"
    assert asked(attention_normalization, "normalise_attention", "prune_only").penalty_coefficient == 0
    assert asked(__main__, "run_stage", "FTH", "--fth_learning_rate", "0.1").learning_rate == 0.1


def test_fine_tuning_beside_fth_is_ft_s():
    """Where a script's command line names FTH, which is the same stage at another learning rate."""
    config, plain = (parse_config("", ATTACKS, DEFENCES, ["--defence", name]) for name in ("FTH", "FT"))
    assert fine_tuned_model_folder(config) == defended_model_folder(plain) != defended_model_folder(config)


def test_what_a_defence_takes_notice_of():
    assert takes_notice("FT") == takes_notice("MEFT") == {"learning_rate"}
    assert takes_notice("erase_relearn") == {"learning_rate", "left_out"}
    assert takes_notice("SEAM") == takes_notice("discard") == takes_notice("MEFT_frozen_head") == {"learning_rate"}
    assert takes_notice("FTH") == set()
    assert takes_notice("PURE") == {"learning_rate", "penalty_coefficient", "pruning_criterion"}
    assert takes_notice("prune_only") == {"learning_rate", "pruning_criterion"}
    assert takes_notice("normalise_only") == {"learning_rate", "penalty_coefficient"}


def test_no_head_of_the_defender_is_one_of_the_attacker(given):
    """Where both have one seed: its encoder writes for the head that it was trained with."""
    own, heads = load_defender_inputs(given), []
    for seed in (given.seed, given.seed + 1):
        heads += [
            new_classifier(replace(given, seed=seed), own).head.weight,
            Classifier(load_encoder(given.plm), 2, 0.1, seed).head.weight,
        ]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(heads, 2))


def test_no_run_has_another_one_s_folder(tiny_config):
    """Where stages are shared too: one's export must not be taken for another's."""
    assert len({run_folder(replace(tiny_config, defence=name)) for name in DEFENCES}) == len(DEFENCES)


def test_runs_share_what_does_not_differ(tiny_config):
    """Folders are named by what is read, so another attack's share, or another stage's field, makes no new one."""
    folders = {
        defended_model_folder(replace(tiny_config, defence="FT", **{name: value}))
        for name, value in (
            ("stylebkd_share", 0.9),
            ("hiddenkiller_share", 0.9),
            ("prune_step", 7),
            ("penalty_coefficient", 9.0),
            ("entropy_epochs", 9),
            ("surgery_words", 3),
        )
    }
    assert folders == {defended_model_folder(replace(tiny_config, defence="FT"))}
