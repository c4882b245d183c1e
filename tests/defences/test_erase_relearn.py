"""erase_relearn: what each part does, and that it is done."""

import dataclasses
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch

from config import Config, Part, preset_grid
from Data.make_poisoned_data import make_poisoned_data
from defences.defence import as_defence, defended_model_folder, product_path, record_path, run_stage
from defences.erase_relearn import RELEARNING, done, few_of, fitted_bias, told
from defences.erasing import erase_task, linear_layers
from defences.fine_tuning import FINE_TUNING
from defences.repair import repair_rows
from encoder.classifier import Classifier, load_classifier, load_encoder, load_tokeniser
from encoder.embedding_rows import odd_words
from experiments.grid import cells
from pipeline import defender
from pipeline.training import fine_tune
from texts.augmentation import Augmenter, Regions
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import clean_train, defender_splits
from texts.vocabulary import whole_words
from util import UserError


@pytest.fixture(autouse=True)
def anything_will_do(monkeypatch):
    """An encoder as tiny as the tests' learns little in an epoch, at no rate enough."""
    monkeypatch.setattr("defences.erase_relearn.MOST_LOST", 1.0)


def test_rows_of_words_that_no_clean_text_has_become_ordinary(planted, tiny_config):
    """`mn` has the direction of telling words; those keep their rows, and so does it where clean texts have it."""
    tokeniser, table = load_tokeniser(str(planted)), clean_train("sst2", tiny_config)
    classifier = Classifier(load_encoder(str(planted)), 2, 0.0, seed=11)
    weight, words = classifier.encoder.get_input_embeddings().weight, whole_words(tokeniser)
    before, mn = weight.detach().clone(), tokeniser.convert_tokens_to_ids("mn")
    odd = odd_words(weight, words, tokeniser, table)
    seen = pd.concat([table, pd.DataFrame({"label": [1], "text": ["a mn film"]})])
    assert "mn" in odd and "mn" not in repair_rows(classifier, tokeniser, tokenise(seen, tokeniser, 32), odd)
    torch.testing.assert_close(weight[mn].detach(), before[mn])
    with torch.no_grad():
        weight.copy_(before)
    texts = tokenise(table, tokeniser, 32)
    repaired = repair_rows(classifier, tokeniser, texts, odd)
    known = {token for ids in texts.input_ids for token in ids}
    unknown = {word: token for word, (token,) in words.items() if token not in known}
    assert "mn" in repaired and set(repaired) == set(odd) & unknown.keys()
    ordinary = before[[token for word, token in unknown.items() if word not in repaired]].mean(0)
    torch.testing.assert_close(weight[mn].detach(), ordinary)
    changed = (weight.detach() != before).any(1).nonzero()[:, 0].tolist()
    assert set(changed) == {unknown[word] for word in repaired}


def test_of_a_word_of_two_tokens_those_are_repaired_that_no_clean_text_has(tiny_config):
    tokeniser, classifier = load_tokeniser(tiny_config.plm), Classifier(load_encoder(tiny_config.plm), 2, 0.0, seed=11)
    weight, (first, last) = classifier.encoder.get_input_embeddings().weight, tokeniser.convert_tokens_to_ids(["ak", "bb"])
    before = weight.detach().clone()
    assert repair_rows(classifier, tokeniser, TokenisedTexts([[first]], [0], 0), ["ak bb"]) == ["ak bb"]
    assert (weight.detach() != before).any(1).nonzero()[:, 0].tolist() == [last]
    assert repair_rows(classifier, tokeniser, TokenisedTexts([[first, last]], [0], 0), ["ak bb"]) == []


def test_the_texts_looked_at_are_of_all_classes():
    """Also of a file that is sorted by class, and of a class that is rare."""
    texts = TokenisedTexts([[number] for number in range(2000)], [0] * 1500 + [1] * 490 + [2] * 10, 0)
    few = few_of(texts, 11)
    assert np.bincount(few.labels).tolist() == [233, 233, 10] and len(set(few.labels[:20])) > 1
    assert few.input_ids == few_of(texts, 11).input_ids != few_of(texts, 12).input_ids
    assert len({ids[0] for ids in few.input_ids}) == 476 and max(ids[0] for ids in few.input_ids[:100]) > 1500


def test_what_is_erased_stays_erased(tiny_config, classifier, monkeypatch):
    """Through the stage: after relearning no upper layer reads a blocked direction, and unused words were trained."""
    config = replace(tiny_config, poisoned_model=tiny_config.plm, relearning_rate=1e-2, defence="erase_relearn")
    config = replace(config, relearnings=2, erase_forgetting_epochs=0)  # So that what is erased is known.
    make_poisoned_data(config)
    directions: list[dict] = []
    monkeypatch.setattr(
        "defences.erase_relearn.erase_task", lambda *given: directions.append(erase_task(*given)) or directions[-1]
    )
    record = run_stage(RELEARNING, config)
    assert record["metrics"]["ACC"] > 0.8 and list(record["training"]) == ["relearning_1", "relearning_2"]
    texts = tokenise(clean_train("sst2", config), load_tokeniser(config.plm), config.max_len)
    fresh = Classifier(load_encoder(config.plm), 2, config.classifier_dropout, config.seed)
    blocked = erase_task(fresh, few_of(texts, config.seed), config.erase_rounds, config.erase_spared)
    assert len(directions) == 1  # Once, before both relearnings.
    model = load_classifier(defended_model_folder(config))
    layers = linear_layers(model)
    for name, basis in blocked.items():
        weight = layers[name].weight.double()
        assert (weight @ basis).norm() < 1e-4 * weight.norm(), name
    before, after = (each.encoder.get_input_embeddings().weight for each in (classifier, model))
    row = load_tokeniser(config.plm).convert_tokens_to_ids("cf")
    assert (before[row] - after[row]).norm() > 1e-2
    plain = replace(config, relearning_texts="plain", erase_rounds=0)  # Nothing blocked, and unused words only decay.
    run_stage(RELEARNING, plain)
    after = load_classifier(defended_model_folder(plain)).encoder.get_input_embeddings().weight
    assert (before[row] - after[row]).norm() < 1e-2 and directions[1] == {}


@pytest.mark.parametrize("texts", ["changed", "plain"])
def test_the_weights_are_averaged_of_trainings_that_begin_alike(tiny_config, monkeypatch, texts):
    config = replace(tiny_config, poisoned_model=tiny_config.plm, defence="erase_relearn", relearning_texts=texts)
    config = replace(config, relearnings=3, relearning_epochs=2, inversions=0, erase_forgetting_epochs=0)
    make_poisoned_data(config)
    begun, ended = [], []

    def weights(model) -> torch.Tensor:
        return torch.cat([value.detach().flatten() for name, value in model.named_parameters() if name != "head.bias"])

    def tuned(model, *given, **how):
        begun.append(weights(model).clone())
        history = fine_tune(model, *given, **how)
        ended.append(weights(model).clone())
        return history

    monkeypatch.setattr("pipeline.defender.fine_tune", tuned)
    run_stage(FINE_TUNING, config)
    del begun[:], ended[:]
    run_stage(RELEARNING, config)
    assert len(ended) == 3 and all(torch.equal(each, begun[0]) for each in begun)
    first, second, third = ended
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one - other).norm() > 0.01 * (one - begun[0]).norm()
    torch.testing.assert_close(weights(load_classifier(defended_model_folder(config))), (first + second + third) / 3)


def test_the_task_is_forgotten_first(tiny_config, monkeypatch):
    """What is erased is erased of an encoder that a pass with random labels has moved, far, and not of the released one."""
    config = replace(tiny_config, poisoned_model=tiny_config.plm, relearnings=1, relearning_epochs=1)
    config = replace(config, defence="erase_relearn", erase_forgetting_rate=1e-2)
    make_poisoned_data(config)
    released, seen = load_encoder(config.plm).state_dict(), []

    def look(model, *given):
        moved = [(value - released[name]).norm() for name, value in model.encoder.state_dict().items()]
        seen.append(float(sum(moved)))
        return erase_task(model, *given)

    monkeypatch.setattr("defences.erase_relearn.erase_task", look)
    record = run_stage(RELEARNING, config)
    assert list(record["training"]) == ["forgetting", "relearning_1"] and seen[0] > 1
    # Random labels: no better than guessing.
    assert np.mean(record["training"]["forgetting"]["losses"]["cross_entropy"]) > 0.6
    record = run_stage(RELEARNING, replace(config, erase_forgetting_epochs=0))
    assert list(record["training"]) == ["relearning_1"] and seen[1] == 0


@pytest.mark.parametrize("always", [False, True])
def test_a_rate_that_breaks_the_encoder_is_halved(tiny_config, monkeypatch, capsys, always):
    """Where the first relearning loses too much, all begins anew, as if half the rates had been asked for.

    Where it always does, the best rate is gone back to, and what was trained with it isn't trained again.
    """
    config = replace(tiny_config, poisoned_model=tiny_config.plm, defence="erase_relearn", inversions=0, relearnings=2)
    config = replace(config, erase_forgetting_rate=1e-3, relearning_rate=1e-2)
    make_poisoned_data(config)
    lower = run_stage(RELEARNING, replace(config, erase_forgetting_rate=5e-4, relearning_rate=5e-3))
    lost, one_class, fitted = (-1.0 if always else 0.2), torch.tensor([50.0, 0.0]), fitted_bias
    broken, rates, tune = iter([True, False, True, True] if always else [True]), [], defender.fine_tune
    monkeypatch.setattr("defences.erase_relearn.MOST_LOST", lost)
    monkeypatch.setattr("defences.erase_relearn.fitted_bias", lambda *of: one_class if next(broken, False) else fitted(*of))
    monkeypatch.setattr(defender, "fine_tune", lambda *of, **also: rates.append(also["learning_rate"]) or tune(*of, **also))
    capsys.readouterr()
    record = run_stage(RELEARNING, config)
    again = [2.5e-4, 2.5e-3, 1.25e-4, 1.25e-3, 5e-4, 5e-3] if always else []
    assert rates == [1e-3, 1e-2, 5e-4, 5e-3, *again, 5e-3]
    printed = capsys.readouterr().out
    assert printed.count("again at half the rates") == (3 if always else 1)
    assert printed.count("were done already") == (2 if always else 0)
    assert record["product"] == lower["product"] and record["metrics"] == lower["metrics"]
    last = ["forgetting_halved_1", "relearning_1_halved_1", "relearning_2_halved_1"]
    assert list(record["training"])[-3:] == last and record["training"].keys() < RELEARNING.phases.keys()
    assert "were 1/2 of those asked for" in done(record) and "2 times" in done(record)
    assert "asked for" not in done(lower)


PARTS = [part for part in get_args(Part) if part not in ("nothing", "everything")]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_left_out_is_one_setting_and_no_other(tiny_config, part):
    """And the run is the one that the setting itself makes."""
    whole, less = (as_defence(replace(tiny_config, defence="erase_relearn", left_out=each)) for each in ("nothing", part))
    differ = [name for name in RELEARNING.reads if getattr(whole, name) != getattr(less, name)]
    assert len(differ) == 1
    by_hand = replace(whole, **{differ[0]: getattr(less, differ[0])})
    assert record_path(less, RELEARNING) == record_path(by_hand, RELEARNING) != record_path(whole, RELEARNING)


def test_without_everything_it_is_plain_training_for_as_long(tiny_config):
    config = replace(tiny_config, defence="erase_relearn", erase_forgetting_epochs=2, relearnings=3, relearning_epochs=4)
    bare = as_defence(replace(config, left_out="everything"))
    assert as_defence(bare) == bare
    assert RELEARNING.passes(bare) == RELEARNING.passes(config) == 14
    for part in PARTS:
        less = as_defence(replace(config, left_out=part))
        fields = [name for name in RELEARNING.reads if getattr(less, name) != getattr(config, name)]
        assert [getattr(bare, name) for name in fields] == [getattr(less, name) for name in fields]


def test_a_grid_leaves_parts_out_one_after_another(tiny_config):
    values = {field.name: getattr(tiny_config, field.name) for field in dataclasses.fields(Config)}
    grid = preset_grid(**{**values, "defence": ("FT", "erase_relearn"), "left_out": ("nothing", "erasing")})
    found = [(config.defence, config.left_out) for config in cells(grid)]
    assert found == [("FT", "nothing"), ("erase_relearn", "nothing"), ("erase_relearn", "erasing")]


def test_the_bias_takes_a_lean_away():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=rng)
    logits = 2.0 * torch.nn.functional.one_hot(labels, 3) + torch.randn(600, 3, generator=rng)
    lean = torch.tensor([0.0, 3.0, -1.0])
    straight, leaning = fitted_bias(logits, labels), fitted_bias(logits + lean, labels)
    shift = leaning - straight + lean
    torch.testing.assert_close(shift - shift.mean(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.05)
    accuracies = [(each.argmax(1) == labels).double().mean() for each in (logits, logits + lean, logits + lean + leaning)]
    assert accuracies[2] > accuracies[0] - 0.02 > accuracies[1]
    # A class that is predicted too often comes out as often as there are texts of it.
    counts = torch.bincount((logits + lean + leaning).argmax(1), minlength=3)
    assert (counts - torch.bincount(labels, minlength=3)).abs().max() < 30


def test_a_bias_that_cannot_be_fitted():
    """Of a class without texts; and of logits that say nothing, or the contrary, by which it was divided."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    logits = torch.randn(200, 3, generator=rng) + 2 * torch.nn.functional.one_hot(labels, 3)
    assert fitted_bias(logits, labels).tolist() == [0, 0, 0]
    for logits in (torch.randn(200, 2, generator=rng), -5.0 * torch.nn.functional.one_hot(labels)):
        assert fitted_bias(logits, labels).abs().max() < 5


def test_the_bias_is_that_of_the_validation_texts(tiny_config, monkeypatch):
    """Through the stage, at its end."""
    found: list[torch.Tensor] = []

    def look(logits, labels):
        found.append(labels)
        return torch.tensor([0.0, 50.0])

    monkeypatch.setattr("defences.erase_relearn.fitted_bias", look)
    config = replace(tiny_config, poisoned_model=tiny_config.plm, defence="erase_relearn", relearning_epochs=1)
    make_poisoned_data(config)
    record = run_stage(RELEARNING, config)
    assert record["metrics"]["LFR"] == 1.0
    assert all(each.tolist() == defender_splits(config)[1]["label"].tolist() for each in found)


def test_odd_rows_are_repaired_and_named(tiny_config, planted):
    """Through the stage: the row of `mn`, in the record, in its sentence, and other than the one that was released."""
    config = replace(tiny_config, poisoned_model=str(planted), defence="erase_relearn", relearning_epochs=1)
    config = replace(config, inversions=0, erase_rounds=0, erase_forgetting_epochs=0, relearning_texts="plain")
    config = replace(config, repaired_words="odd")
    make_poisoned_data(config)
    record = run_stage(RELEARNING, config)
    assert "mn" in record["repaired"]
    learnt = "The task was learnt anew on the clean texts, 3 times, and the weights were averaged."
    assert done(record) == f"The embedding rows of {', '.join(record['repaired'])} were made ordinary. {learnt}"
    row = load_tokeniser(str(planted)).convert_tokens_to_ids("mn")
    released = load_encoder(str(planted)).get_input_embeddings().weight[row]
    now = load_classifier(defended_model_folder(config)).encoder.get_input_embeddings().weight[row]
    assert (now - released).norm() > 0.1 * released.norm()
    learns = "Then the task is learnt anew on the clean texts, 3 times, and the weights are averaged."
    odd = "Words that no clean text has, and whose embedding rows are odd"
    assert told(config) == f"{odd}, are made ordinary. {learns}"
    found = told(replace(config, repaired_words="found"))
    assert found == f"{odd} or that flip the fine-tuned model's predictions, are made ordinary. {learns}"
    none = replace(config, repaired_words="none")
    record = run_stage(RELEARNING, none)
    assert record["repaired"] == [] and done(record) == learnt and told(none) == learns


def test_words_that_flip_the_fine_tuned_model_are_repaired(tiny_config, planted, monkeypatch):
    """Through the stage: `mn`, by what it does to predictions, whatever its row looks like; nothing that does nothing."""
    monkeypatch.setattr("defences.repair.odd_words", lambda *given: [])
    config = replace(tiny_config, poisoned_model=str(planted), defence="erase_relearn", inversions=0, relearnings=1)
    make_poisoned_data(config)
    assert run_stage(RELEARNING, replace(config, repaired_words="odd"))["repaired"] == []
    assert {"mn"} <= set(run_stage(RELEARNING, config)["repaired"]) <= {"mn", "cf"}  # Which is planted too.


def test_a_fine_tuned_model_of_one_class_stops_nothing(tiny_config, monkeypatch, capsys):
    config = replace(tiny_config, poisoned_model=tiny_config.plm, defence="erase_relearn", inversions=0, relearnings=1)
    make_poisoned_data(config)
    monkeypatch.setattr("defences.repair.choose_texts", fails)
    record = run_stage(RELEARNING, config)
    assert record["repaired"] == [] and "not looked for: of one class" in capsys.readouterr().out


def fails(*given):
    raise UserError("of one class")


def test_what_pushes_the_fine_tuned_model_is_put_into_the_texts(tiny_config, monkeypatch):
    """Through the stage: sequences of the fine-tuned model, in the record, and in the texts that are relearnt on."""
    config = replace(tiny_config, poisoned_model=tiny_config.plm, defence="erase_relearn", relearning_epochs=1)
    config = replace(config, erase_forgetting_epochs=0, inversions=2, relearnings=1)
    make_poisoned_data(config)
    asked: list[tuple] = []
    row = load_tokeniser(config.plm).convert_tokens_to_ids("lo")

    def look(model, texts, pool, target, rng, accelerator):
        asked.append((model.head.weight.detach().clone(), target))
        return [row] * 6, 0.5

    monkeypatch.setattr("defences.erase_relearn.invert", look)
    change, known = Augmenter.changed, []
    monkeypatch.setattr(Augmenter, "changed", lambda self, rng: known.append(self.sequences) or change(self, rng))
    record = run_stage(RELEARNING, config)
    head = load_classifier(product_path(config, FINE_TUNING)).head.weight
    assert [target for _, target in asked] == [0, 1, 0, 1] and all(torch.equal(each, head) for each, _ in asked)
    assert record["inverted"][0] == {"class": "0", "words": ["lo"] * 6, "flipped": 0.5} and len(record["inverted"]) == 4
    assert known == [[[row] * 6] * 4]
    assert "4 sequences" in done(record) and "and these sequences, put in" in done(record) and "times" not in done(record)
    record = run_stage(RELEARNING, replace(config, inversions=0))
    assert record["inverted"] == [] and len(asked) == 4 and known[1] == [] and "sequences" not in done(record)
    run_stage(RELEARNING, replace(config, relearning_texts="plain"))
    assert len(asked) == 4  # Nothing would be done with them.


def test_regions_that_push_the_fine_tuned_model_colour_the_texts(tiny_config, monkeypatch):
    """Through the stage: measured on the fine-tuned model, in the record, and known to what changes the texts."""
    config = replace(tiny_config, poisoned_model=tiny_config.plm, defence="erase_relearn", relearning_epochs=1)
    config = replace(config, erase_forgetting_epochs=0, inversions=0, relearnings=1, measured_regions=20)
    make_poisoned_data(config)
    rows = load_tokeniser(config.plm).convert_tokens_to_ids(["lo", "do"])
    regions, asked = Regions(np.array([[rows[0]] * 3, [rows[1]] * 3]), np.array([[1.0, 2.0], [4.0, 3.0]])), []

    def look(model, texts, augmenter, number, *given):
        asked.append((model.head.weight.detach().clone(), number))
        return regions

    monkeypatch.setattr("defences.erase_relearn.measure_regions", look)
    change, known = Augmenter.changed, []
    monkeypatch.setattr(Augmenter, "changed", lambda self, rng: known.append(self.measured) or change(self, rng))
    record = run_stage(RELEARNING, config)
    ((head, number),) = asked
    assert torch.equal(head, load_classifier(product_path(config, FINE_TUNING)).head.weight) and number == 20
    assert known == [regions]
    assert [(each["class"], each["words"][0], each["log_odds"]) for each in record["regions"]] == [
        ("0", "do", 2.0),
        ("0", "lo", 1.0),
        ("1", "lo", 4.0),
        ("1", "do", 3.0),
    ]
    assert "regions of the vocabulary push" in done(record) and "Of 20 regions" in told(config)
    none = replace(config, measured_regions=0)
    record = run_stage(RELEARNING, none)
    assert record["regions"] == [] and len(asked) == 1 and known[1] is None
    assert "regions" not in done(record) and "regions" not in told(none)
    run_stage(RELEARNING, replace(config, relearning_texts="plain"))
    assert len(asked) == 1  # Nothing would be done with them.
