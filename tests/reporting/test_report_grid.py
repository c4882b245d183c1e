"""The page of a grid: its sentences, its table, its figures, and files that make no page."""

import html
import re

import numpy as np
import pandas as pd
import pytest
from test_figures import grid_rows, written_grid
from test_report import error_of, table_of

from defences import DEFENCES
from experiments.results_table import aggregate, grid_command
from reporting.grid_figures import pareto_figure
from reporting.grid_page import combine, report_grid, what_varied
from reporting.words import grid_verdict
from util import UserError


def test_grid_verdict_names_the_best_whoever_it_is():
    rows = grid_rows()
    rows.loc[rows["attack"] == "StyleBkd", "LFR"] = [0.1, 0.2, 0.3, 0.4, 0.5, np.nan]
    cells = aggregate(rows).assign(name=lambda table: table["defence"])
    badnet, stylebkd, failed = grid_verdict(cells, 1, 12)
    assert "BadNet: PURE leaves the lowest mean LFR of all, 0.200 (0.900 with fine-tuning alone, 0.110 with a" in badnet
    assert "StyleBkd: FT leaves the lowest mean LFR of all, 0.200, at an ACC of 0.890; 2 to 3 seeds each." in stylebkd
    assert failed == "1 of 12 cells failed."


def test_grid_verdict_passes_over_a_model_that_learned_nothing():
    rows = grid_rows()
    rows.loc[(rows["attack"] == "BadNet") & (rows["defence"] == "FT"), ["ACC", "LFR"]] = 0.5, 0.0
    badnet = grid_verdict(aggregate(rows).assign(name=lambda table: table["defence"]), 0, 12)[0]
    assert "BadNet: PURE leaves the lowest mean LFR of all that learnt the task, 0.200 (0.000 with fine-tuning" in badnet


def test_page_of_a_grid(tmp_path):
    rows = grid_rows()
    path = written_grid(tmp_path / "compare.csv", rows, epochs=4, triggers=("bb", "cf"))
    page = report_grid([path])
    header, *lines = table_of(page, "numbers")
    assert page == tmp_path / "compare.html" and len(lines) == 4
    line = dict(zip(header, lines[1], strict=True))
    lfr = rows["LFR"][3:6]
    assert line["LFR"] == f"{lfr.mean():.3f} ± {lfr.std():.3f}" and line["benign floor"] == "0.110 ± 0.010"
    header, *lines = table_of(page, "cells")
    assert [line[header.index("LFR")] for line in lines] == [*(f"{value:.3f}" for value in rows["LFR"][:-1]), "-"]
    assert lines[-1][header.index("error")] == "broken"
    text = html.unescape(page.read_text())
    expected = (
        "python run_all.py --preset quick --attack BadNet StyleBkd --seed 11 12 13 --triggers bb cf --epochs 4 "
        "--benign_floor --table compare"
    )
    assert expected in text and grid_command(path) == expected and "1 of 12 cells failed" in text
    assert (tmp_path / "compare_figures/grid.pdf").exists()


def test_pareto_figure_shows_its_numbers(tmp_path):
    rows = pd.DataFrame(
        [("BadNet", "FT", 2e-5, 0.9, 0.5), ("BadNet", "PURE", 2e-5, 0.88, 0.3), ("BadNet", "PURE", 1e-4, 0.87, 0.4)],
        columns=["attack", "defence", "learning_rate", "ACC", "LFR"],
    ).assign(seed=11, floor_LFR=[0.2, 0.1, 0.1], error="")
    cells = aggregate(rows).assign(varied=["a", "b", "c"])
    ax = pareto_figure(cells).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["FT"] == [[0.5, 0.9]] and lines["PURE"] == [[0.3, 0.88], [0.4, 0.87]]
    assert lines["Pareto front"] == [[0.3, 0.88], [0.5, 0.9]]
    assert lines["benign floor, lowest"][0][0] == 0.1 and [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    page = report_grid([written_grid(tmp_path / "sweep.csv", rows)])
    assert (tmp_path / "sweep_figures/pareto.pdf").exists() and "beside it: learning rate (" in page.read_text()


def test_the_pareto_legend_has_what_any_panel_has():
    rows = pd.DataFrame(
        [("BadNet", "FT", 0.9, 0.5), ("EP", "FT", 0.9, 0.5), ("EP", "PURE", 0.88, 0.3)],
        columns=["attack", "defence", "ACC", "LFR"],
    ).assign(seed=11, floor_LFR=[float("nan"), 0.2, 0.1], error="")
    figure = pareto_figure(aggregate(rows).assign(varied=["a", "b", "c"]))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(shown) == {"FT", "PURE", "Pareto front", "benign floor, lowest"} and len(shown) == 4


def test_a_file_without_a_setting_that_a_later_one_has(tmp_path):
    rows = grid_rows()
    paths = [tmp_path / "old.csv", tmp_path / "new.csv"]
    for path, seed in zip(paths, (11, 12), strict=True):
        written_grid(path, rows[rows["seed"] == seed].reset_index(drop=True))
    pd.read_csv(paths[0]).drop(columns="tokeniser").to_csv(paths[0], index=False)
    page = report_grid(paths).read_text()
    assert re.search(r"tokeniser\W.{0,40}not set", page, re.DOTALL)


def test_every_defence_has_a_mark_of_its_own():
    """All of them at once, with a parameter that varies."""
    rows = [(name, share, 0.9, 0.1 * at) for at, share in enumerate((0.3, 0.6)) for name in DEFENCES]
    table = pd.DataFrame(rows, columns=["defence", "mixing_share", "ACC", "LFR"])
    table = table.assign(attack="BadNet", seed=11, floor_LFR=0.1, error="")[
        lambda all_rows: (all_rows["mixing_share"] == 0.3) | (all_rows["defence"] == "fine_mixing")
    ]
    ax = pareto_figure(aggregate(table).assign(varied="x")).axes[0]
    looks = {line.get_label(): (line.get_marker(), line.get_color()) for line in ax.lines}
    assert {*DEFENCES} <= looks.keys() and len({looks[name] for name in DEFENCES}) == len(DEFENCES)


def test_a_grid_of_many_defences_has_a_heat_map(tmp_path):
    """Where the points of seven defences would stand too close to be told apart."""
    one = grid_rows()[lambda table: table["defence"] == "FT"]
    for number, drawn in ((6, "distance"), (7, "field")):
        rows = pd.concat([one.assign(defence=name) for name in list(DEFENCES)[:number]], ignore_index=True)
        page = report_grid([written_grid(tmp_path / f"{drawn}.csv", rows.assign(floor_LFR=0.1))])
        names = {path.stem for path in (tmp_path / f"{drawn}_figures").glob("*.png")}
        assert names == {"grid", drawn} and "LFR less that of a never-poisoned encoder" in page.read_text()


def test_cells_of_other_data_are_not_held_against_each_other(tmp_path):
    """The best and the front are of an attack on one data set, and the sentence names it."""
    rows = grid_rows()[lambda table: table["attack"] == "BadNet"].assign(learning_rate=2e-5)
    rows.loc[rows["defence"] == "FT", "ACC"] += 0.02
    other = rows.assign(clean_dataset="other", ACC=rows["ACC"] - 0.3, LFR=rows["LFR"] / 2)
    paths = [
        written_grid(tmp_path / "one.csv", rows.assign(clean_dataset="reviews")),
        written_grid(tmp_path / "two.csv", other),
    ]
    cells = aggregate(combine(paths))
    assert cells.groupby("clean_dataset")["best"].sum().tolist() == [1, 1]
    assert cells["front"].all(), "FT has the higher ACC, PURE the lower LFR, in both"
    lines = [line for line in pareto_figure(cells.assign(varied="")).axes[0].lines if line.get_label() == "Pareto front"]
    assert [len(line.get_xydata()) for line in lines] == [2, 2]
    sentences = grid_verdict(cells.assign(name=cells["defence"]), 0, 12)
    assert [sentence.split(":")[0] for sentence in sentences] == ["BadNet, reviews", "BadNet, other"]
    page = report_grid(paths).read_text()
    assert "BadNet, other: PURE, clean_dataset other leaves the lowest mean LFR of all" in page


def test_a_page_names_no_parameter_that_a_defence_does_not_use(tmp_path):
    rows = pd.concat(
        [
            grid_rows()[lambda table: (table["attack"] == "BadNet") & (table["defence"] == "FT")],
            *(
                grid_rows()[lambda table: (table["attack"] == "BadNet") & (table["defence"] == "PURE")].assign(
                    penalty_coefficient=penalty
                )
                for penalty in (0.05, 0.5)
            ),
        ]
    ).fillna({"penalty_coefficient": 0.05})
    page = report_grid([written_grid(tmp_path / "grid.csv", rows)])
    header, *lines = table_of(page, "numbers")
    assert [line[header.index("penalty_coefficient")] for line in lines] == ["-", "0.05", "0.5"]
    assert "PURE, penalty_coefficient 0.05" in page.read_text() and "FT, penalty" not in page.read_text()


def test_what_stands_beside_a_mark_is_what_the_defence_takes_notice_of():
    cell = pd.Series({"defence": "FT", "learning_rate": 2e-5, "penalty_coefficient": 0.15})
    assert what_varied(cell, ["learning_rate", "penalty_coefficient"]) == "2e-05"
    for name in ("PURE", "a defence of another version"):
        assert what_varied(cell.replace("FT", name), ["learning_rate", "penalty_coefficient"]) == "2e-05, 0.15"


def test_a_grid_in_several_files(tmp_path):
    rows = grid_rows()
    paths = [
        written_grid(tmp_path / f"{seed}.csv", rows[rows["seed"] == seed].reset_index(drop=True)) for seed in (11, 12, 13)
    ]
    assert table_of(report_grid(paths), "numbers") == table_of(
        report_grid([written_grid(tmp_path / "all.csv", rows)]), "numbers"
    )
    with pytest.raises(UserError, match=r"the cell BadNet, FT, seed 11 is there twice, in .*11.csv"):
        combine([paths[0], paths[0]])
    other = written_grid(tmp_path / "other.csv", rows[rows["seed"] == 12], epochs=9)
    with pytest.raises(UserError, match=r"the cells differ in epochs \(3, 9\)"):
        combine([paths[0], other])


def test_a_file_of_before_a_parameter_was_there_has_its_default(tmp_path):
    """Beside one that names it; else its rows would count as another setting."""
    rows = grid_rows()[lambda table: table["defence"] == "FT"].assign(defence="erase_relearn")
    new, old = (written_grid(tmp_path / f"{seed}.csv", rows[rows["seed"] == seed]) for seed in (11, 12))
    pd.read_csv(old).drop(columns="left_out").to_csv(old, index=False)
    assert set(aggregate(combine([new, old]))["n"]) == {2}


def test_files_that_are_no_grid(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    errors = error_of(monkeypatch, capsys, "--csv", str(tmp_path / "other.csv"))
    assert "is no grid's CSV file: it has no column attack" in errors
    assert list(tmp_path.iterdir()) == [tmp_path / "other.csv"]
    with pytest.raises(UserError, match=r"can't read .*nosuch.csv"):
        report_grid([tmp_path / "nosuch.csv"])
    path = written_grid(tmp_path / "wrong.csv", grid_rows().astype({"LFR": object}).replace({"LFR": {1.0: "high"}}))
    with pytest.raises(UserError, match=r"column LFR holds 'high'; expected numbers"):
        report_grid([path])


def test_a_grid_of_which_nothing_is_finished(tmp_path):
    rows = grid_rows().assign(error="broken").drop(columns=["ACC", "LFR", "floor_LFR", "heads_pruned"])
    text = report_grid([written_grid(tmp_path / "grid.csv", rows)]).read_text()
    assert "BadNet: no cell has finished." in text and "12 of 12 cells failed" in text and "<img" not in text


def test_names_stay_text_on_the_page(tmp_path):
    """Attacks, defences, files and errors of somebody else's CSV file are no tags and no formulas, and lose no letter."""
    evil = "<script>alert(1)</script> $\\frac$ *"
    rows = grid_rows().replace("BadNet", evil).replace("broken", f"broke in {evil}").assign(learning_rate=2e-5)
    rows["clean_dataset"] = ["sst2", "sst2", "sst2", *[evil] * 9]
    rows.loc[rows["seed"] == 12, "learning_rate"] = 1e-4
    page = report_grid([written_grid(tmp_path / "<b>.csv", rows)])
    text = page.read_text()
    assert "<script" not in text and "<b>.csv" not in text and f"broke in {evil}" in html.unescape(text)
    header, *lines = table_of(page, "numbers")
    assert {line[header.index("clean_dataset")] for line in lines} == {"sst2", evil}
    assert not any("*" in line[header.index("LFR")] for line in lines)
    assert (tmp_path / "<b>_figures/grid.pdf").exists() and (tmp_path / "<b>_figures/pareto.pdf").exists()
