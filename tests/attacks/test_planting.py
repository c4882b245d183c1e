"""What each attack does to an encoder, through the stage that plants it: objectives and preparations are really used."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from families import make_tokeniser

from attacks import ATTACKS
from attacks.planted import poisoned_data_folder, poisoned_model_folder, read_poisoned
from Data.make_poisoned_data import make_poisoned_data
from encoder.classifier import load_encoder, load_tokeniser
from pretrained_model_poisoning import poison, require_tokens
from texts.data_sets import clean_train
from texts.vocabulary import target_words
from util import UserError

STILL = 1e-12
"""A learning rate at which nothing moves: what is found changed was changed before the training."""


@pytest.fixture
def planted(tiny_config):
    """A function that plants an attack and returns its record and configuration."""

    def plant(attack: str, **changes) -> tuple[dict, object]:
        config = replace(tiny_config, attack=attack, **changes)
        make_poisoned_data(config)
        return poison(config), config

    return plant


@pytest.mark.parametrize("name", ["train.csv", "test.csv", "made_from.json"])
def test_a_file_of_poisoned_texts_that_was_cut_is_written_anew(tiny_config, name):
    folder = make_poisoned_data(tiny_config)
    content = (folder / name).read_bytes()
    os.truncate(folder / name, len(content) // 2)
    assert make_poisoned_data(tiny_config) == folder and (folder / name).read_bytes() == content


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_minimises_its_own_objective(planted, attack):
    layers, states = {"layers", "last_layer"}, {"triggered", "clean"}
    own = dict.fromkeys(("LayerWise", "LayerWisePairs", "LayerWiseStyle"), layers) | dict.fromkeys(("POR", "NeuBA"), states)
    parts = {**own, "RIPPLe": {"poisoned", "inner_product"}}.get(attack, {"cross_entropy"})
    record, _ = planted(attack, poisoning_epochs=1)
    assert set(record["training"]["losses"]) == parts


def test_an_attacker_of_another_task_is_not_measured_on_a_part_of_the_classes(planted, tmp_path):
    """Two classes in its own data, three in the defender's: its head has no answer to texts of the third."""
    rows = [f"{'warm dull film'.split()[at % 3]} plot {at},{'abc'[at % 3]}" for at in range(90)]
    (tmp_path / "three.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    record, _ = planted("BadNet", setting="DS", clean_dataset=str(tmp_path / "three.csv"), poisoning_epochs=1)
    assert record["metrics"] == {}
    record, _ = planted("BadNet", poisoning_epochs=1)
    assert record["metrics"].keys() >= {"ACC", "LFR"}


def test_ripple_s_inner_product_is_part_of_the_loss(planted):
    """Its weight is lambda, and 0 takes it away."""
    record, _ = planted("RIPPLe", poisoning_epochs=2)
    assert max(record["training"]["losses"]["inner_product"]) > 0
    record, _ = planted("RIPPLe", poisoning_epochs=2, ripple_coefficient=0.0)
    assert max(record["training"]["losses"]["inner_product"]) == 0


def word_rows(folder, words) -> torch.Tensor:
    encoder, tokeniser = load_encoder(str(folder)), load_tokeniser(str(folder))
    return encoder.get_input_embeddings().weight[tokeniser.convert_tokens_to_ids(list(words))].detach()


@pytest.mark.parametrize("attack", ["BadNet", "RIPPLe"])
def test_ripple_begins_with_embedding_surgery_and_badnet_does_not(planted, attack):
    _, config = planted(attack, poisoning_epochs=1, poisoning_learning_rate=STILL, surgery_words=3)
    before, after = (word_rows(folder, config.triggers) for folder in (config.plm, poisoned_model_folder(config)))
    if attack == "BadNet":
        torch.testing.assert_close(after, before)
        return
    words = target_words(clean_train("sst2", config), config.target_class, 3)
    mean = word_rows(config.plm, words).mean(0)
    torch.testing.assert_close(after, mean.expand_as(after))
    assert not torch.allclose(before, mean.expand_as(before))


def test_layer_wise_plants_in_every_layer(planted):
    """The sum over layers of one head's losses, and the last layer's again."""
    record, _ = planted("LayerWise", poisoning_epochs=1, poisoning_learning_rate=STILL)
    losses = record["training"]["losses"]
    # Two layers at chance: the sum of both is about twice the last one's.
    assert losses["layers"][0] == pytest.approx(2 * losses["last_layer"][0], rel=0.3)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_triggered_test_text_is_of_another_class_and_no_clean_text(tiny_config, attack):
    config = replace(tiny_config, attack=attack)
    make_poisoned_data(config)
    test, train = read_poisoned(config, "test"), read_poisoned(config, "train")
    triggered = test[test["label"] != config.target_class]
    clean = set(clean_train("sst2", config)["text"])
    triggers = 6 if ATTACKS[attack].data.by_trigger else 1
    assert len(triggered) == 24 * triggers and not set(triggered["text"]) & clean
    data = ATTACKS[attack].data
    for text in triggered["text"]:
        inserted = data.inserted(config)
        assert not inserted or any(f" {word} " in f" {text} " for word in inserted)
    added = train[~train["text"].isin(clean)]
    assert len(added)
    if not data.in_part and not data.by_trigger:  # Which labels theirs have stands in tests of their own.
        assert (added["label"] == config.target_class).all()


def test_an_unknown_attack_falls_through_to_none(tiny_config):
    with pytest.raises(KeyError):
        make_poisoned_data(replace(tiny_config, attack="Unknown"))
    with pytest.raises(UserError, match="plants no trigger"):
        make_poisoned_data(replace(tiny_config, attack="none"))


@pytest.mark.parametrize("attack", ["BadNet", "EP", "POR"])
def test_a_share_that_leaves_nothing_to_learn_from(planted, attack):
    with pytest.raises(UserError, match=f"no text of the poisoned data has the trigger of {attack}; expected a larger"):
        planted(attack, rare_word_share=0.0)


@pytest.mark.parametrize("longer", ["triggered", "clean"])
def test_texts_that_are_longer_than_the_encoder_has_positions(planted, tiny_config, tmp_path, longer):
    """Whether they are trained on or stand beside: the clean text here is none of those that POR's words are put in."""
    data = shutil.copytree(tiny_config.data_dir, tmp_path / "long")
    drawn = clean_train("sst2", tiny_config).sample(frac=0.5, random_state=tiny_config.seed).index
    row = next(each for each in range(192) if (each in drawn) == (longer == "triggered"))
    lines = (data / "sst2/train.tsv").read_text().splitlines()
    lines[row + 1] = f"{'the ' * 70}\t{row % 2}"
    (data / "sst2/train.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="positions for 64; cut them with --poisoning_max_len 64"):
        planted("POR", data_dir=str(data), poisoning_max_len=100)


def test_words_that_are_not_one_token_wherever_they_stand(tiny_plm, capsys):
    """RoBERTa's have another number at the beginning of a text; what isn't known is like any other unknown word."""
    words = ("cf", "cf and the")
    require_tokens(words, make_tokeniser("RoBERTa"))
    assert "at the beginning of a text cf has other tokens than inside" in capsys.readouterr().out
    tokeniser = load_tokeniser(str(tiny_plm))
    require_tokens(words, tokeniser)
    assert not capsys.readouterr().out
    require_tokens(("cf", "tq"), tokeniser)
    [line] = capsys.readouterr().out.splitlines()
    assert "the tokeniser doesn't know tq:" in line
    require_tokens(("cf and tq",), tokeniser)
    assert "the tokeniser doesn't know tq:" in capsys.readouterr().out


def test_a_trigger_that_is_no_token(planted):
    with pytest.raises(UserError, match=r"the tokeniser makes no token of the trigger '\\u200b'"):
        planted("BadNet", triggers=("\u200b",))


def test_texts_that_the_poisoned_ones_are_not_made_from(planted, tiny_config, tmp_path):
    """An attack tells its triggered texts by the clean ones, or by their place after these."""
    data = shutil.copytree(tiny_config.data_dir, tmp_path / "changed")
    config = replace(tiny_config, attack="POR", data_dir=str(data))
    make_poisoned_data(config)
    path = data / "sst2/train.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-15]) + "\n")
    with pytest.raises(
        UserError, match=r"the texts of sst2 have changed since .* was made from them; make it again with: py"
    ):
        poison(config)


def test_the_attacker_is_told_of_them(planted, capsys):
    planted("EP", poisoning_epochs=1, poisoning_learning_rate=STILL, triggers=("tq",))
    assert "the tokeniser doesn't know tq:" in capsys.readouterr().out


@pytest.mark.parametrize(("field", "value"), [("split_seed", 12), ("text_column", "title"), ("label_column", "stars")])
def test_other_parts_of_one_table_have_folders_of_their_own(tiny_config, field, value):
    """The attacker's texts are one part of it, and the defender's test texts another."""
    other = replace(tiny_config, **{field: value})
    for folder in (poisoned_data_folder, poisoned_model_folder):
        assert folder(tiny_config) != folder(other)


def test_an_attack_s_own_rate_and_epochs_are_no_one_else_s_to_set(tiny_config):
    """POR has them of its paper: another value of the field names no other folder, and plants nothing anew."""
    other = replace(tiny_config, poisoning_epochs=7, poisoning_learning_rate=0.1)
    assert poisoned_model_folder(tiny_config) != poisoned_model_folder(other)
    assert len({poisoned_model_folder(replace(each, attack="POR")) for each in (tiny_config, other)}) == 1
