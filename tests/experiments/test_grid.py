"""Many runs as one: what they share, and what happens when one fails or all are killed."""

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
import pretrained_model_poisoning
from attacks import ATTACKS
from attacks.planted import poisoned_model_folder, read_poisoned
from config import Config, Grid, parse_grid, preset_grid
from defences import DEFENCES, fine_tuning, meft
from defences.defence import defended_model_folder, run_folder
from detection import rates
from detection.rates import rates_of as detection_rates_of
from encoder.classifier import load_classifier, load_tokeniser
from experiments import grid as grid_module
from experiments.grid import cells, run_grid, said
from experiments.results_table import read_grid, results_table
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

    def counted(config, **also):
        calls.append(config)
        return stage(config, **also)

    monkeypatch.setattr(module, name, counted)
    return calls


ALL = ("FT", "FTH", "MEFT", "PURE", "prune_only", "normalise_only")


def test_cells_share_stages(tiny_grid, monkeypatch):
    poisonings = count_calls(monkeypatch, pretrained_model_poisoning, "poison")
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
    config = dataclasses.replace(tiny_config, defence="FT", epochs=1, seed=12)
    attacks = ("BadNet", "HiddenKiller", "StyleBkd")
    changes = dict(defence="FT", benign_floor=True, poisoning_epochs=1, epochs=1, seed=12)
    table, _ = run_grid(tiny_grid(attack=attacks, **changes))
    floors, expected = table.set_index("attack")["floor_LFR"], {}
    model = load_classifier(defended_model_folder(grid_module.benign(config)))
    tokeniser = load_tokeniser(config.plm)
    for attack in attacks:
        test = read_poisoned(dataclasses.replace(config, attack=attack), "test")
        texts = tokenise(test[test["label"] == 0], tokeniser, config.max_len)
        expected[attack] = float((predict(model, texts, "triggered").argmax(-1) == 1).double().mean())
    assert floors.to_dict() == pytest.approx(expected)
    for letters, rate in (("mb", "LFR"), ("fb", "floor_LFR")):
        shares = table["flips"].map(lambda flips, letters=letters: np.mean([each in letters for each in flips]))
        assert shares.tolist() == pytest.approx(table[rate].tolist())
    assert len(set(expected.values())) > 1, "the texts make no difference, so that this test shows nothing"


def test_rows_have_what_the_attack_is_measured_by(tiny_grid):
    """FTR of pairs, the mean and the worst of POR's triggers, and floors on the same texts."""
    attacks = ("POR", "LayerWisePairs")
    table, path = run_grid(tiny_grid(attack=attacks, defence="FT", benign_floor=True, poisoning_epochs=1, epochs=1))
    assert (table["error"] == "").all()
    rows = table.set_index("attack")
    assert rows["FTR"].notna().tolist() == [False, True] and rows["LFR_worst"].notna().tolist() == [True, False]
    assert rows["LFR_worst"]["POR"] >= rows["LFR"]["POR"] and rows["floor_LFR"].notna().all()
    assert rows["FPR"].between(0, 1).all()
    assert set(rows["arithmetic"]) == {"fp32"}
    for name in ("FTR", "LFR_worst"):
        assert rows[f"floor_{name}"].notna().equals(rows[name].notna()), name
    assert np.isnan(rows["poisoned_LFR"]["POR"]) and not np.isnan(rows["poisoned_LFR"]["LayerWisePairs"])
    assert "LFR worst" in path.with_suffix(".md").read_text()


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
    def fail(config):
        raise UserError("no such luck")

    monkeypatch.setattr(grid_module, "benign_floor", fail)
    table, _ = run_grid(tiny_grid(attack="StyleBkd", defence="FT", benign_floor=True, poisoning_epochs=1, epochs=1))
    assert table["error"].item() == "benign floor: no such luck" and table[["ACC", "LFR"]].notna().all(axis=None)


def test_the_floor_of_a_given_encoder_is_of_its_like(tiny_grid, tiny_plm, tmp_path):
    """What it was before it was poisoned has its sizes."""
    torch.manual_seed(0)
    other = tmp_path / "other"
    shutil.copytree(tiny_plm, other)
    config = BertConfig.from_pretrained(tiny_plm)
    config.num_hidden_layers = 1
    BertModel(config, add_pooling_layer=False).save_pretrained(other)
    with pytest.raises(UserError, match="differ in num_hidden_layers 1 and 2"):
        run_grid(tiny_grid(poisoned_model=str(other), defence="FT", benign_floor=True, epochs=1))


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


def test_two_workers_give_what_one_process_gives(tiny_grid, tmp_path):
    """The same CSV file but for the seconds; what a stage printed is in a log beside its record."""
    pytest.importorskip("parsl", reason="several workers need Parsl")
    tables = {}
    for workers in (1, 2):
        places = {name: str(tmp_path / f"{workers}" / name) for name in ("poisoned_model_dir", "output_dir")}
        grid = tiny_grid(
            **places,
            seed=(11, 12),
            defence="FT",
            benign_floor=True,
            workers=workers,
            threads=1,
            poisoning_epochs=1,
            epochs=1,
        )
        tables[workers], path = run_grid(grid)
        pd.testing.assert_frame_equal(read_grid(path)[["ACC", "LFR"]], tables[workers][["ACC", "LFR"]])
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables.values()))
    logs = [path for path in (tmp_path / "2").rglob("*.log") if "parsl" not in path.parts]
    # Two poisonings; fine-tuning of these two and of two that were never poisoned.
    assert len(logs) == 2 + 4 and all("epoch 1 of 1" in path.read_text() for path in logs), logs


def test_a_table_of_other_cells_is_put_aside(tiny_grid, capsys):
    """With its page; and a grid that goes on from a part of its cells has the old rows until it has new ones."""
    grid = tiny_grid(attack="BadNet", defence="FT", seed=(11,), poisoning_epochs=1, epochs=1)
    path = run_grid(grid)[1]
    path.with_suffix(".html").write_text("the page")
    capsys.readouterr()
    _, path = run_grid(dataclasses.replace(grid, seed=(11, 12)))
    assert "other cells" not in capsys.readouterr().out and len(pd.read_csv(path)) == 2
    # Seed 11 is no cell of this one.
    run_grid(dataclasses.replace(grid, seed=(12,)))
    aside = path.with_name("grid_1.csv")
    assert f"{path} is of other cells; it is {aside} now (--table gives" in capsys.readouterr().out
    assert pd.read_csv(aside)["seed"].tolist() == [11, 12] and pd.read_csv(path)["seed"].tolist() == [12]
    assert aside.with_suffix(".html").read_text() == "the page" and not path.with_suffix(".html").exists()
    assert aside.with_suffix(".md").exists()
    # A name is free if nothing has it: somebody may have moved the table alone.
    aside.unlink()
    path.with_name("grid_2_figures").mkdir()
    path.write_text("no table")
    run_grid(dataclasses.replace(grid, seed=(12,)))
    assert path.with_name("grid_3.csv").read_text() == "no table" and pd.read_csv(path)["seed"].tolist() == [12]


def test_a_grid_that_is_made_again_never_has_less_than_before(tiny_grid, monkeypatch):
    """Nor other numbers, wherever it is stopped."""
    grid = tiny_grid(attack="BadNet", defence="FT", seed=(11, 12), poisoning_epochs=1, epochs=1)
    _, path = run_grid(dataclasses.replace(grid, benign_floor=True))
    whole, written = read_grid(path).drop(columns="file"), []
    write_rows = grid_module.write_rows

    def look(path, rows):
        write_rows(path, rows)
        written.append(pd.read_csv(path))

    monkeypatch.setattr(grid_module, "write_rows", look)
    run_grid(dataclasses.replace(grid, benign_floor=True))
    assert len(written) == 2
    for table in written:
        pd.testing.assert_frame_equal(table.drop(columns="file", errors="ignore"), whole)


def test_workers_are_not_sent_to_one_card(tiny_grid):
    """Each sees one card, whose number is 0."""
    with pytest.raises(UserError, match="--device cuda:1 names one card, and each of --workers 2 is given one of its own;"):
        run_grid(tiny_grid(device="cuda:1", workers=2))


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
    assert 3 <= there < 10
    assert output.count("epoch 4 of 4") <= 3  # Of six trainings.
    code, again, errors = run("run_all.py", *arguments)
    assert code == 0 and "10 stages, 10 of which are there already" in again and " of 4:" not in again
    assert again.split("\n\n")[-2] == output.split("\n\n")[-2]  # The table.


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


def test_a_grid_says_how_well_detectors_do(tiny_grid, monkeypatch):
    """Columns with the numbers of `python -m detection`, of each cell's own model; computed once, and only if asked for."""
    grid = tiny_grid(defence=("FT",), attack=("BadNet",), epochs=1, poisoning_epochs=6)
    rows, _ = run_grid(grid)
    assert not [name for name in rows if "AUROC" in name]
    calls = count_calls(monkeypatch, rates, "rates_of")
    rows, path = run_grid(dataclasses.replace(grid, detection=True))
    rows, path = run_grid(dataclasses.replace(grid, detection=True))
    assert len(calls) == 1 and not rows["error"].any()
    table, columns = detection_rates_of(cells(grid)[0]), pd.read_csv(path).iloc[0]
    assert len(table) == 8
    for row in table.itertuples():
        found = [columns[f"{row.detector}_{name}"] for name in ("AUROC", f"FRR_{row.allowed:g}", f"FAR_{row.allowed:g}")]
        np.testing.assert_allclose(found, [row.AUROC, row.FRR, row.FAR])


def test_poisoned_and_given_encoders_have_folders_of_their_own(tiny_config):
    given = dataclasses.replace(tiny_config, poisoned_model=tiny_config.plm)
    assert run_folder(given) != run_folder(tiny_config)


def test_an_error_of_a_cell_does_nothing_to_a_terminal():
    for error in (UserError("label \x1b[31mx\n of a\x9btext"), ValueError("\x1b[31mx\nmore")):
        assert said(error).isprintable() and "[31mx" in said(error)
