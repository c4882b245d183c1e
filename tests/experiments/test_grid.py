"""Many runs as one: what they share, what happens when one fails or all are killed, and how they are aggregated."""

import dataclasses
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts import flags, run, start
from transformers import BertConfig, BertModel

import attention_head_pruning
from attacks import ATTACKS
from attacks.planted import poisoned_model_folder, read_poisoned
from config import Config, Grid, parse_grid, preset_grid
from defences import DEFENCES, defended_model_folder, fine_tuning, meft, run_folder
from encoder.classifier import load_classifier, load_tokeniser
from experiments import grid as grid_module
from experiments.grid import cells, run_grid
from experiments.results_table import aggregate, heading, read_grid, results_table, settings_text
from pipeline.training import predict
from texts.batching import tokenise
from util import UserError


@pytest.fixture
def tiny_grid(tiny_config):
    """A function that makes a grid of the tiny run, with some fields changed."""

    def make(**changes) -> Grid:
        values = {field.name: getattr(tiny_config, field.name) for field in dataclasses.fields(Config)}
        return preset_grid(**{**values, "defence": ("FT", "PURE"), **changes})

    return make


def count_calls(monkeypatch, module, name: str) -> list[Config]:
    """The configurations a stage is called with from now on."""
    calls, stage = [], getattr(module, name)

    def counted(config):
        calls.append(config)
        return stage(config)

    monkeypatch.setattr(module, name, counted)
    return calls


ALL = ("FT", "FTH", "MEFT", "PURE", "prune_only", "normalise_only")


def test_cells_share_stages(tiny_grid, monkeypatch):
    poisonings = count_calls(monkeypatch, grid_module, "poison")
    fine_tunings = count_calls(monkeypatch, fine_tuning, "fine_tune_clean")
    entropies = count_calls(monkeypatch, meft, "maximise_entropy_and_fine_tune")
    grid = tiny_grid(defence=ALL, seed=(11, 12), benign_floor=True, poisoning_epochs=1, epochs=1, acc_threshold=0.0)
    table, path = run_grid(grid)
    assert (table["error"] == "").all() and len(table) == 12
    assert len(poisonings) == 2
    # FT, FTH and MEFT, for two seeds, and again for the never-poisoned encoder.
    assert len(fine_tunings) + len(entropies) == 12
    for _, seed in table.groupby("seed"):
        rows = seed.set_index("defence")
        assert rows.loc["prune_only", "heads_pruned"] == rows.loc["PURE", "heads_pruned"] == 6
        assert (rows.loc[["FT", "FTH", "MEFT", "normalise_only"], "heads_pruned"] == 0).all()
        assert rows["poisoned_LFR"].nunique() == 1 and rows["floor_LFR"].notna().all()
    read = read_grid(path)
    np.testing.assert_array_equal(read[["ACC", "LFR", "floor_LFR"]], table[["ACC", "LFR", "floor_LFR"]])
    assert path.with_suffix(".md").read_text() == results_table(table) + "\n"


def test_benign_floor_of_every_kind_of_trigger_is_of_one_model(tiny_grid, monkeypatch):
    fine_tunings = count_calls(monkeypatch, fine_tuning, "fine_tune_clean")
    grid = tiny_grid(
        attack=("BadNet", "LayerWise", "HiddenKiller", "StyleBkd"),
        defence="FT",
        benign_floor=True,
        poisoning_epochs=1,
        epochs=1,
    )
    for _ in range(2):  # The second time from files.
        table, _ = run_grid(grid)
        floors = table.set_index("attack")["floor_LFR"]
        assert floors["BadNet"] == floors["LayerWise"] and floors.notna().all()
        assert table["floor_ACC"].nunique() == 1
    assert len({config.poisoned_model for config in fine_tunings}) == 2
    assert sum(config.poisoned_model is not None for config in fine_tunings) == 2


def test_a_floor_is_measured_on_the_attack_s_own_texts(tiny_grid, tiny_config):
    """Of HiddenKiller and StyleBkd by hand: the never-poisoned model, their triggered texts."""
    config = dataclasses.replace(tiny_config, defence="FT", epochs=2)
    attacks = ("BadNet", "HiddenKiller", "StyleBkd")
    table, _ = run_grid(tiny_grid(attack=attacks, defence="FT", benign_floor=True, poisoning_epochs=1, epochs=2))
    floors, expected = table.set_index("attack")["floor_LFR"], {}
    model = load_classifier(defended_model_folder(grid_module.benign(config)))
    tokeniser = load_tokeniser(config.plm)
    for attack in attacks:
        test = read_poisoned(dataclasses.replace(config, attack=attack), "test")
        texts = tokenise(test[test["label"] == 0], tokeniser, config.max_len)
        expected[attack] = float((predict(model, texts, "triggered").argmax(-1) == 1).double().mean())
    assert floors.to_dict() == pytest.approx(expected)
    assert len(set(expected.values())) > 1, "the texts make no difference, so that this test shows nothing"


def test_a_floor_on_other_clean_texts_is_another(tiny_grid, tmp_path):
    data = tmp_path / "own data"
    grid = tiny_grid(attack="HiddenKiller", defence="FT", benign_floor=True, poisoning_epochs=1, epochs=1)
    shutil.copytree(grid.data_dir, data)
    grid = dataclasses.replace(grid, data_dir=str(data))
    first, _ = run_grid(grid)
    test = data / "sst2/test.tsv"
    lines = test.read_text().splitlines()
    # Those of class 0 become texts of class 1's words: the accuracy on them falls for every model.
    ones = [line.split("\t")[0] for line in lines[1:] if line.endswith("\t1")]
    zeros = [f"{text}\t0" for text in ones]
    test.write_text("\n".join([lines[0], *[line for line in lines[1:] if line.endswith("\t1")], *zeros]) + "\n")
    second, _ = run_grid(grid)
    assert second["floor_ACC"].item() == pytest.approx(0.5) != first["floor_ACC"].item()
    assert second["ACC"].item() == pytest.approx(0.5)


def test_a_floor_that_fails_leaves_the_cell_s_own_numbers(tiny_grid, monkeypatch):
    def fail(config, record):
        raise UserError("no such luck")

    monkeypatch.setattr(grid_module, "benign_floor", fail)
    table, _ = run_grid(tiny_grid(defence="FT", benign_floor=True, poisoning_epochs=1, epochs=1))
    assert table["error"].item() == "benign floor: no such luck" and table[["ACC", "LFR"]].notna().all(axis=None)


def test_the_floor_of_a_given_encoder_is_of_its_like(tiny_grid, tiny_plm, tmp_path):
    """What it was before it was poisoned has its sizes."""
    torch.manual_seed(0)
    other = tmp_path / "other"
    shutil.copytree(tiny_plm, other)
    config = BertConfig.from_pretrained(tiny_plm)
    config.num_hidden_layers = 1
    BertModel(config, add_pooling_layer=False).save_pretrained(other)
    table, _ = run_grid(tiny_grid(poisoned_model=str(other), defence="FT", benign_floor=True, epochs=1))
    assert "differ in num_hidden_layers 1 and 2" in table["error"].item() and table["ACC"].notna().item()


def test_swept_parameters_share_what_does_not_depend_on_them(tiny_grid, monkeypatch):
    fine_tunings = count_calls(monkeypatch, fine_tuning, "fine_tune_clean")
    prunings = count_calls(monkeypatch, attention_head_pruning, "prune_heads")
    grid = tiny_grid(
        penalty_coefficient=(0.15, 0.3),
        learning_rate=(1e-2, 5e-3),
        pruning_criterion=("variance", "random"),
        poisoning_epochs=1,
        epochs=1,
        acc_threshold=0.0,
    )
    table, _ = run_grid(grid)
    assert len(table) == 2 + 8 and (table["error"] == "").all()
    assert len(fine_tunings) == 2 and len(prunings) == 4
    assert table[table["defence"] == "PURE"][["ACC", "LFR"]].notna().all(axis=None)


def test_a_failing_cell_does_not_stop_the_others(tiny_grid, tiny_config, monkeypatch, capsys):
    grid = tiny_grid(acc_threshold=0.999, learning_rate=1e-9, poisoning_epochs=1, epochs=1)
    table, path = run_grid(grid)
    errors = dict(zip(table["defence"], table["error"], strict=True))
    assert errors["FT"] == "" and "below acc_threshold 0.999" in errors["PURE"]
    text = path.with_suffix(".md").read_text()
    assert "0 (1 failed)" in text and "Failed: BadNet, PURE, seed 11: the fine-tuned model reaches" in text

    monkeypatch.setattr(fine_tuning, "fine_tune_clean", lambda config: 1 / 0)  # Nothing a user did.
    table, _ = run_grid(grid)
    assert table["error"].str.contains("ZeroDivisionError").all()


def test_a_failing_cell_shows_in_the_exit_code(tiny_config):
    config = dataclasses.replace(tiny_config, acc_threshold=0.999, learning_rate=1e-9, poisoning_epochs=1, epochs=1)
    code, output, errors = run("run_all.py", *flags(config), "--seed", "11", "12")
    assert code == 2 and "2 of 4 cells failed" in errors and "Failed: BadNet, PURE, seed 12" in output


def test_a_killed_grid_goes_on(tiny_config, tmp_path):
    arguments = [*flags(tiny_config), "--seed", "11", "12"]
    process = start("run_all.py", *arguments)
    second = poisoned_model_folder(dataclasses.replace(tiny_config, seed=12)) / "poisoning.json"
    deadline = time.monotonic() + 200
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    code, output, errors = run("run_all.py", *arguments)
    assert code == 0, errors
    there = int(output.split(" of which are there already")[0].split()[-1])
    assert 3 <= there < 8
    assert output.count("epoch 4 of 4") <= 3  # Of six trainings.
    code, again, errors = run("run_all.py", *arguments)
    assert code == 0 and "8 stages, 8 of which are there already" in again and " of 4:" not in again
    assert again.split("\n\n")[-2] == output.split("\n\n")[-2]  # The table.


# ------------------------------------------------------------------------------------------------------ aggregation


def made_up() -> pd.DataFrame:
    rows = [
        ("BadNet", "FT", 11, 0.9, 1.0, 0.1),
        ("BadNet", "FT", 12, 0.8, 0.8, 0.1),
        ("BadNet", "PURE", 11, 0.88, 0.2, 0.1),
        ("BadNet", "PURE", 12, 0.84, 0.3, 0.2),
        ("StyleBkd", "FT", 11, 0.9, 0.5, 0.4),
    ]
    return pd.DataFrame(rows, columns=["attack", "defence", "seed", "ACC", "LFR", "floor_LFR"]).assign(error="")


def test_aggregation():
    result = aggregate(made_up()).set_index(["attack", "defence"])
    pure = result.loc[("BadNet", "PURE")]
    assert pure["ACC"] == pytest.approx(0.86) and pure["ACC_std"] == pytest.approx(0.04 / 2**0.5)
    assert pure["LFR"] == pytest.approx(0.25) and pure["n"] == 2
    assert pure["distance"] == pytest.approx(0.1) and pure["distance_std"] == pytest.approx(0)
    assert pure["best"] and not result.loc[("BadNet", "FT"), "best"] and result.loc[("StyleBkd", "FT"), "best"]
    assert np.isnan(result.loc[("StyleBkd", "FT"), "LFR_std"])


def test_table_as_markdown():
    lines = results_table(made_up()).splitlines()
    assert lines[0] == "| attack | defence | ACC | LFR | benign floor | LFR - floor | heads pruned | seeds |"
    assert lines[3] == "| BadNet | PURE | 0.860 ± 0.028 | **0.250 ± 0.071** | 0.150 ± 0.071 | 0.100 ± 0.000 | - | 2 |"
    assert lines[4] == "| StyleBkd | FT | 0.900 | **0.500** | 0.400 | 0.100 | - | 1 |"


def test_a_floor_that_learned_nothing_is_none():
    """One of two seeds: the mean is the other's, and below the table stands which is left out."""
    table = made_up().assign(floor_ACC=[0.88, 0.79, 0.85, 0.5, 0.88])
    pure = aggregate(table).set_index(["attack", "defence"]).loc[("BadNet", "PURE")]
    assert pure["floor_LFR"] == pytest.approx(0.1) and pure["distance"] == pytest.approx(0.1)
    assert results_table(table).splitlines()[-1] == (
        "No benign floor: BadNet, PURE, seed 12: the never-poisoned encoder came out at an ACC of 0.500, where the poisoned "
        "one has 0.840."
    )
    assert "No benign floor" not in results_table(made_up())


def test_a_model_that_learned_nothing_is_not_the_best():
    table = made_up()
    table.loc[len(table)] = ["BadNet", "MEFT", 11, 0.5, 0.0, 0.1, ""]
    result = aggregate(table).set_index(["attack", "defence"])["best"]
    assert result["BadNet", "PURE"] and not result["BadNet", "MEFT"]


def test_heading_has_the_command_that_makes_the_rows(tmp_path):
    changes = ["--attack", "BadNet", "StyleBkd", "--seed", "11", "12", "--learning_rate", "2e-5", "1e-4", "--epochs", "1"]
    grid = parse_grid(
        "", ATTACKS, DEFENCES, ["--preset", "sst2", *changes, "--triggers", "xx", "yy", "--clean_dataset", "other"]
    )
    rows = [{key: settings_text(value) for key, value in vars(cell).items()} for cell in cells(grid)]
    path = tmp_path / "made.csv"
    pd.DataFrame(rows).assign(ACC=0.9, LFR=0.1, error="").to_csv(path, index=False)
    text = heading(read_grid(path), path)
    assert "clean_dataset other, epochs 1, penalty_coefficient 0.15" in text
    command = next(line for line in text.splitlines() if "run_all.py" in line)
    assert cells(parse_grid("", ATTACKS, DEFENCES, command.split()[2:])) == cells(grid)


def test_pareto_front():
    rows = [(2e-5, 0.9, 0.5), (5e-5, 0.88, 0.3), (1e-4, 0.87, 0.4), (3e-4, 0.9, 0.5)]
    table = pd.DataFrame(rows, columns=["learning_rate", "ACC", "LFR"]).assign(
        attack="BadNet", defence="FT", seed=11, error=""
    )
    assert aggregate(table)["front"].tolist() == [True, True, False, True]
    starred = [line.split("|")[5].strip().endswith("*") for line in results_table(table).splitlines()[2:]]
    assert starred == [True, True, False, True]


def test_a_cell_without_numbers_is_never_on_the_front():
    table = made_up().assign(learning_rate=[1, 2, 1, 2, 1])
    table.loc[0, ["ACC", "LFR"]] = float("nan")
    table.loc[0, "error"] = "broke"
    result = aggregate(table)
    assert not result["front"].iloc[0] and result["failed"].iloc[0] == 1 and result["n"].iloc[0] == 0


def test_files_that_are_no_grid(tmp_path):
    with pytest.raises(UserError, match=r"can't read .*nosuch\.csv"):
        read_grid(tmp_path / "nosuch.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column attack"):
        read_grid(tmp_path / "other.csv")


# ---------------------------------------------------------------------------------------------------- configuration


def test_grid_from_the_command_line():
    grid = parse_grid(
        "", ATTACKS, DEFENCES, ["--attack", "BadNet", "StyleBkd", "--seed", "11", "12", "--defence", "FT", "PURE"]
    )
    assert len(cells(grid)) == 8 and len(set(cells(grid))) == 8
    assert cells(parse_grid("", ATTACKS, DEFENCES, []))[1] == dataclasses.replace(
        cells(preset_grid("quick"))[0], defence="PURE"
    )
    with pytest.raises(UserError, match="--seed is empty"):
        parse_grid("", ATTACKS, DEFENCES, ["--seed"])
    with pytest.raises(UserError, match="--acc_threshold 85"):
        parse_grid("", ATTACKS, DEFENCES, ["--acc_threshold", "85"])


def test_poisoned_and_given_encoders_have_folders_of_their_own(tiny_config):
    given = dataclasses.replace(tiny_config, poisoned_model=tiny_config.plm)
    assert run_folder(given) != run_folder(tiny_config)
