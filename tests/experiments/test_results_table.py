"""A grid's CSV file: what is refused, how cells are aggregated, and the table as Markdown."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attacks import ATTACKS
from config import parse_grid
from defences import DEFENCES
from experiments.grid import cells
from experiments.results_table import (
    aggregate,
    as_markdown,
    distance_interval,
    grid_command,
    heading,
    main,
    read_grid,
    results_table,
    settings_text,
)
from util import UserError


def made_up() -> pd.DataFrame:
    rows = [
        ("BadNet", "FT", 11, 0.9, 1.0, 0.1),
        ("BadNet", "FT", 12, 0.8, 0.8, 0.1),
        ("BadNet", "PURE", 11, 0.88, 0.2, 0.1),
        ("BadNet", "PURE", 12, 0.84, 0.3, 0.2),
        ("StyleBkd", "FT", 11, 0.9, 0.5, 0.4),
    ]
    return pd.DataFrame(rows, columns=["attack", "defence", "seed", "ACC", "LFR", "floor_LFR"]).assign(error="")


def written(path: Path, *changes: str) -> Path:
    """The CSV file that a grid writes, ACC 0.9 and LFR 0.1 in every cell."""
    grid = parse_grid("", ATTACKS, DEFENCES, ["--preset", "sst2", *changes])
    rows = [{key: settings_text(value) for key, value in vars(cell).items()} for cell in cells(grid)]
    pd.DataFrame(rows).assign(ACC=0.9, LFR=0.1, error="").to_csv(path, index=False)
    return path


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
    assert lines[0] == "| attack | defence | ACC | LFR | benign floor | LFR - floor | heads pruned | seconds | seeds |"
    assert lines[3] == "| BadNet | PURE | 0.860 ± 0.028 | **0.250 ± 0.071** | 0.150 ± 0.071 | 0.100 ± 0.000 | - | - | 2 |"
    assert lines[4] == "| StyleBkd | FT | 0.900 | **0.500** | 0.400 | 0.100 | - | - | 1 |"


def test_interval_of_the_distance_is_over_texts_and_seeds():
    """Texts and seeds each widen it; what both models flip doesn't count; one or two seeds give none."""
    rng = np.random.default_rng(5)
    apart = rng.choice(["n", "m", "f", "b"], p=[0.5, 0.3, 0.1, 0.1], size=1000)
    # Equal seeds: only the texts make a difference, and they are the same ones.
    values = (apart == "m").astype(float) - (apart == "f")
    half = 1.96 * values.std() / len(values) ** 0.5
    expected = (values.mean() - half, values.mean() + half)
    assert distance_interval(["".join(apart)] * 3) == pytest.approx(expected, abs=1e-4)
    assert distance_interval(["b" * 200, "n" * 200, "b" * 200]) == (0, 0), "what both flip, or neither, is no distance"
    # Equal texts: the t interval of three means, 0, 0.5 and 1 apart by 0.1 each; never more than shares can differ by.
    seeds = ["m" * number + "n" * (10 - number) for number in (4, 5, 6)]
    low, high = distance_interval(["".join(each) * 1000 for each in seeds])
    assert (low, high) == pytest.approx((0.5 - 0.2484, 0.5 + 0.2484), abs=0.003)
    assert distance_interval(["m" * 9, "n" * 9, "m" * 9]) == (pytest.approx(-0.768, abs=1e-3), 1)
    for too_few in ([], ["mn"], ["mn", "nm"], ["mn", "mn", ""], ["mn", "mn", "mnf"]):
        assert np.isnan(distance_interval(too_few)).all(), too_few


def test_the_interval_covers_the_truth_with_few_seeds():
    """Whose true rates differ by a standard deviation of 0.1; the texts are of different difficulty."""
    rng, covered = np.random.default_rng(0), {3: [], 5: []}
    for seeds, found in covered.items():
        for _ in range(200):
            easy = rng.normal(size=200)
            shifts = rng.normal(0, 0.35, seeds)  # About 0.1 in the middle of the distribution.
            rows = ["".join(np.where(easy + rng.normal(size=200) > shift, "m", "n")) for shift in shifts]
            low, high = distance_interval(rows)
            found.append(low <= 0.5 <= high)
    assert all(np.mean(found) >= 0.93 for found in covered.values()), {key: np.mean(each) for key, each in covered.items()}


def test_a_seed_that_failed_leaves_the_interval_of_the_others():
    table = pd.concat([made_up(), made_up().head(2).assign(seed=[13, 14])], ignore_index=True)
    table["flips"] = ["mmn", "mmm", "nnn", "nfm", None, "mmm", "mmm"]
    table.loc[0, ["ACC", "LFR"]] = float("nan")
    result = aggregate(table).set_index(["attack", "defence"])
    ends = ["distance_low", "distance_high"]
    assert result.loc[("BadNet", "FT"), ends].tolist() == [1, 1]
    assert result.loc[[("BadNet", "PURE"), ("StyleBkd", "FT")], ends].isna().all(axis=None), "of two seeds, and of one"
    lines = results_table(table).splitlines()
    assert (
        "| LFR - floor | 95 % interval | heads" in lines[0] and "| 1.000 to 1.000 |" in lines[2] and " | - | - |" in lines[3]
    )


def test_what_only_some_attacks_have_has_columns_where_it_was_measured():
    lines = results_table(made_up().assign(LFR_worst=np.nan, FTR=[0.1, 0.3, np.nan, np.nan, np.nan])).splitlines()
    assert lines[0] == "| attack | defence | ACC | LFR | benign floor | LFR - floor | FTR | heads pruned | seconds | seeds |"
    assert lines[2].endswith("| 0.800 ± 0.141 | 0.200 ± 0.141 | - | - | 2 |")
    assert lines[3].endswith("| 0.100 ± 0.000 | - | - | - | 2 |")
    lines = results_table(made_up().assign(FPR=[0.1, 0.3, 0.1, 0.1, 0.1])).splitlines()
    assert "| LFR - floor | FPR | heads pruned |" in lines[0] and "| 0.200 ± 0.141 | -" in lines[2]
    worst = made_up().assign(LFR_worst=0.9, floor_LFR_worst=0.2, floor_ACC=[0.9, 0.9, 0.9, 0.1, 0.9], seconds=range(1, 6))
    lines = results_table(worst).splitlines()
    assert "| LFR - floor | LFR worst | floor of LFR worst | heads pruned | seconds | seeds |" in lines[0]
    assert lines[2].endswith("| 0.900 ± 0.000 | 0.200 ± 0.000 | - | 2 | 2 |")
    assert lines[3].endswith("| 0.900 ± 0.000 | 0.200 | - | 4 | 2 |"), "one of two floors is none"


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
    changes += ["--triggers", "xx", "yy", "--clean_dataset", "other"]
    grid = parse_grid("", ATTACKS, DEFENCES, ["--preset", "sst2", *changes])
    path = written(tmp_path / "made.csv", *changes)
    text = heading(read_grid(path), path)
    assert "clean_dataset other, epochs 1, penalty_coefficient 0.15" in text
    command = next(line for line in text.splitlines() if "run_all.py" in line)
    assert cells(parse_grid("", ATTACKS, DEFENCES, command.split()[2:])) == cells(grid)


@pytest.mark.parametrize(
    "changes",
    [
        ["--acc_threshold", "None", "--acc_drop", "0.1"],
        ["--clean_dataset=-x.csv"],
        ["--triggers=-a", "b"],
        ["--triggers", "a b", "c"],
        ["--triggers", "it's", "$$"],
        ["--clean_dataset", "$(touch x) `y`.csv", "--seed", "3"],
        ["--defence", "PURE"],
    ],
)
def test_the_command_of_a_table_makes_its_cells(tmp_path, changes):
    """Whatever its settings are, and as a grid: one cell, in a table named grid, is a grid too."""
    grid = parse_grid("", ATTACKS, DEFENCES, ["--preset", "sst2", *changes])
    for name in ("made", "grid"):
        path = written(tmp_path / f"{name}.csv", *changes)
        again = parse_grid("", ATTACKS, DEFENCES, shlex.split(grid_command(path))[2:])
        assert cells(again) == cells(grid) and again.table == name


def test_triggers_of_a_file_without_quotes(tmp_path):
    path = written(tmp_path / "made.csv")
    pd.read_csv(path).assign(triggers="it's cf").to_csv(path, index=False)
    assert parse_grid("", ATTACKS, DEFENCES, shlex.split(grid_command(path))[2:]).triggers == ("it's", "cf")


def test_what_a_defence_takes_no_notice_of_is_a_dash(tmp_path):
    """FTH has a learning rate of its own, prune_only no penalty; what varies in nothing that is used is no column."""
    changes = ["--defence", "FT", "FTH", "PURE", "prune_only", "--penalty_coefficient", "0.05", "0.5"]
    path = written(tmp_path / "made.csv", *changes, "--learning_rate", "1e-5", "2e-5")
    lines = [line.split(" | ")[1:4] for line in results_table(read_grid(path)).splitlines()]
    assert lines[0] == ["defence", "learning_rate", "penalty_coefficient"]
    assert [line for line in lines if line[0] == "FT"] == [["FT", "1e-05", "-"], ["FT", "2e-05", "-"]]
    assert [line for line in lines if line[0] == "FTH"] == [["FTH", "-", "-"]]
    assert [line for line in lines if line[0] == "prune_only"] == [
        ["prune_only", "1e-05", "-"],
        ["prune_only", "2e-05", "-"],
    ]
    assert len([line for line in lines if line[0] == "PURE"]) == 4
    path = written(tmp_path / "one.csv", "--defence", "FT", "FTH", "PURE", "prune_only")
    table = read_grid(path)
    assert results_table(table).startswith("| attack | defence | ACC")
    above = heading(table, path)
    assert "learning_rate 2e-05 (FT, PURE, prune_only), epochs 3, penalty_coefficient 0.15 (PURE)" in above
    path = written(tmp_path / "none.csv", "--defence", "FTH", "--seed", "1", "2")
    assert "learning_rate" not in heading(read_grid(path), path)


def test_a_heading_says_what_its_command_makes_otherwise_today(tmp_path):
    """A parameter that is newer than the file, and another method; nothing where both are as they are."""
    path = written(tmp_path / "made.csv", "--defence", "FT", "erase_relearn")
    table = read_grid(path)
    assert "existed" not in heading(table, path) and "method" not in heading(table, path)
    plain, today = (DEFENCES[name].last.method for name in ("FT", "erase_relearn"))
    assert "method" not in heading(table.assign(method=[plain, today]), path)
    text = heading(table.drop(columns="inversions").assign(method=[plain, 4]), path)
    assert "\n\nerase_relearn: made before inversions existed; not repeatable as it is, unless the default, 8, " in text
    assert f"\n\nMade with method 4 of erase_relearn, today's is {today}.\n\n" in text


def test_a_heading_says_in_which_arithmetic_the_rows_were_made(tmp_path):
    """--precision auto is not the same everywhere."""
    path = written(tmp_path / "made.csv", "--defence", "FT", "PURE")
    table = read_grid(path)
    assert "arithmetic" not in heading(table, path)
    assert ", arithmetic bf16 autocast and fp32\n" in heading(table.assign(arithmetic=["fp32", "bf16 autocast"]), path)


def test_the_help_of_the_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["results_table", "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0 and "usage: python -m experiments.results_table" in capsys.readouterr().out


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
    path = written(tmp_path / "grid.csv")
    whole = pd.read_csv(path)
    whole.drop(columns="plm").to_csv(path, index=False)
    with pytest.raises(UserError, match=r"grid\.csv is no grid's CSV file: it has no column plm"):
        read_grid(path)
    whole.head(0).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"grid\.csv has a header and no rows; expected a row per cell"):
        read_grid(path)
    whole.assign(defence=["FT", ""]).to_csv(path, index=False)
    with pytest.raises(UserError, match="row 1 has no defence; expected one in every row"):
        read_grid(path)
    whole.assign(LFR=[0.1, "high"]).to_csv(path, index=False)
    with pytest.raises(UserError, match="column LFR holds 'high'; expected numbers"):
        read_grid(path)


def test_a_cell_that_is_there_twice_is_no_second_seed(tmp_path, monkeypatch):
    path = written(tmp_path / "grid.csv", "--seed", "11", "12", "--penalty_coefficient", "0.1", "0.2")
    assert len(read_grid(path)) == 6
    table = pd.read_csv(path)
    pd.concat([table, table.tail(1)]).to_csv(path, index=False)
    monkeypatch.setattr(sys, "argv", ["results_table", str(path)])
    with pytest.raises(UserError, match=r"the cell BadNet, PURE, seed 12 is there twice, in .*grid\.csv for one; expected"):
        main()


def test_names_stay_text_in_markdown(tmp_path):
    """A file's name ends no table cell, begins no tag, and does nothing to a terminal."""
    name = "a|b <img> `c`\x1b[31m.csv"
    shown = "a\\|b \\<img> \\`c\\`\N{REPLACEMENT CHARACTER}\\[31m.csv"
    assert as_markdown(name) == shown and as_markdown("two\nlines") == "two lines" and as_markdown("my_1.csv") == "my_1.csv"
    table = made_up().assign(clean_dataset=[name, name, "other", "other", name])
    table.loc[0, ["ACC", "LFR", "error"]] = [float("nan"), float("nan"), f"no text in {name}"]
    text = results_table(table)
    assert text.count(shown) == 3 and "<img>" not in text.replace("\\<img>", "") and text.replace("\n", "").isprintable()
    path = written(tmp_path / "grid.csv", "--clean_dataset", name)
    above = heading(read_grid(path), path)
    assert f"clean_dataset {shown}," in above and above.replace("\n", "").isprintable()
