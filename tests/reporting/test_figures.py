"""The figures of a report show the numbers they are given."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.text import Text

from config import preset_config
from experiments.results_table import aggregate
from reporting.figures import save_figures
from reporting.grid_figures import distance_figure, field_figure, grid_figure, pareto_figure
from reporting.run_figures import (
    attention_figure,
    layers_figure,
    training_figure,
    trajectory_figure,
    variance_figure,
)


def heat_maps(figure) -> list[np.ndarray]:
    """The numbers of a figure's heat maps, colour bars left out."""
    found = [(ax, ax.collections[0].get_array()) for ax in figure.axes if ax.get_label() != "<colorbar>"]
    return [np.asarray(values).reshape(int(max(ax.get_ylim())), -1) for ax, values in found]


def lines_of(ax) -> list[np.ndarray]:
    return [line.get_xydata() for line in ax.get_lines()]


def test_variance_figure_shows_its_numbers():
    rng = np.random.default_rng(0)
    clean, triggered = rng.random((2, 3, 5)) / 100
    figure = variance_figure(clean, triggered, {0: [1, 4], 1: [], 2: [0]})
    for shown, expected in zip(heat_maps(figure), (clean, triggered, triggered - clean), strict=True):
        np.testing.assert_allclose(shown, 1000 * expected)
    scales = [ax.collections[0].get_clim() for ax in figure.axes[:3]]
    assert scales[0] == scales[1] and scales[0][0] == 0  # Two maps that are compared have one scale,
    assert scales[2][0] == -scales[2][1]  # and white is no change.
    for ax in figure.axes[:3]:
        np.testing.assert_array_equal(ax.collections[1].get_offsets(), [[1.5, 0.5], [4.5, 0.5], [0.5, 2.5]])
    alone = variance_figure(clean, None, {0: [], 1: [], 2: []})
    np.testing.assert_allclose(heat_maps(alone), [1000 * clean])
    assert all(len(ax.collections) == 1 for ax in alone.axes[:1])


STEPS = [
    {"action": "prune", "heads": [[0, 1], [1, 2]], "pruned": 2, "accuracy": 0.9},
    {"action": "prune", "heads": [[1, 0], [0, 3]], "pruned": 4, "accuracy": 0.8},
    {"action": "restore", "heads": [[0, 3]], "pruned": 3, "accuracy": 0.86},
]


def test_trajectory_figure_shows_its_numbers():
    figure = trajectory_figure(0.91, STEPS, 0.85, [1.0, 0.7, 0.4, 0.5], 872, 912)
    for ax, values in zip(figure.axes, ([0.91, 0.9, 0.8, 0.86], [1.0, 0.7, 0.4, 0.5]), strict=True):
        groups, back, restored, end = lines_of(ax)[:4]
        np.testing.assert_array_equal(groups, [[0, values[0]], [2, values[1]], [4, values[2]]])
        np.testing.assert_array_equal(back, [[4, values[2]], [3, values[3]]])
        np.testing.assert_array_equal(restored, [[3, values[3]]])
        np.testing.assert_array_equal(end, [[3, values[3]]])
    assert list(figure.axes[0].get_lines()[4].get_ydata()) == [0.85, 0.85]
    assert "n = 872" in figure.axes[0].get_ylabel() and "n = 912" in figure.axes[1].get_ylabel()
    low, high = figure.axes[0].get_ylim()
    assert low < 0.8 and high > 0.91
    assert len(trajectory_figure(0.91, STEPS, 0.85, None, 872, None).axes) == 1


def test_attention_figure_shows_its_numbers():
    rows = dict(zip(("before", "after"), np.random.default_rng(0).random((2, 3, 5)), strict=True))
    tokens = ["[CLS]", "bad", "b", "##b", "[SEP]"]
    figure = attention_figure(tokens, [False, False, True, True, False], rows)
    for shown, expected in zip(heat_maps(figure), rows.values(), strict=True):
        np.testing.assert_array_equal(shown, expected)
    panels = figure.axes[:2]
    assert [ax.get_title() for ax in panels] == list(rows)
    assert panels[0].collections[0].get_clim() == panels[1].collections[0].get_clim()
    assert [label.get_text() for label in panels[1].get_xticklabels()] == tokens
    for ax in panels:
        (outline,) = ax.patches
        assert (outline.get_x(), outline.get_width(), outline.get_height()) == (2, 2, 3)
    assert [label.get_fontweight() for label in panels[1].get_xticklabels()].count("bold") == 2


def test_layers_figure_shows_its_numbers():
    figure = layers_figure([0.002, 0.001, 0.004], [0.3, 1.0, 0.0])
    heights = [[bar.get_height() for bar in ax.patches] for ax in figure.axes]
    np.testing.assert_allclose(heights, [[2, 1, 4], [0.3, 1, 0]])


def test_training_figure_shows_its_numbers():
    losses = {"cross_entropy": [0.7, 0.5, 0.4, 0.2], "attention_penalty": [0.3, 0.2, 0.2, 0.1]}
    histories = {
        "fine-tuning": {"losses": {"cross_entropy": [0.6, 0.3]}, "seconds": [1.0]},
        "PURE": {"losses": losses, "seconds": [1.0, 1.0]},
    }
    before = json.dumps(histories)
    figure = training_figure(histories)
    assert json.dumps(histories) == before
    raw = [[line.get_xydata() for line in ax.get_lines() if line.get_label() == "_each step"] for ax in figure.axes]
    np.testing.assert_array_equal(raw[0], [[[1, 0.6], [2, 0.3]]])
    expected = [[1.0, 0.7, 0.6, 0.3], *losses.values()]
    np.testing.assert_allclose([curve[:, 1] for curve in raw[1]], expected)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["loss", "cross entropy", "attention penalty"]
    boundary = [line.get_xdata()[0] for line in figure.axes[1].get_lines() if line.get_xydata().shape == (2, 2)]
    assert 2 in boundary


def grid_rows() -> pd.DataFrame:
    """Two attacks, two defences, three seeds, one of which is missing, and floors for one attack."""
    rows = [
        {"attack": attack, "defence": defence, "seed": seed, "error": "", "ACC": 0.9 - at / 100, "LFR": lfr - at / 10}
        | {"floor_LFR": 0.1 + at / 100 if attack == "BadNet" else np.nan, "heads_pruned": 3}
        for attack, defence, lfr in (
            ("BadNet", "FT", 1.0),
            ("BadNet", "PURE", 0.3),
            ("StyleBkd", "FT", 0.8),
            ("StyleBkd", "PURE", 0.7),
        )
        for at, seed in enumerate((11, 12, 13))
    ]
    rows[-1] |= {"ACC": np.nan, "LFR": np.nan, "error": "broken"}
    return pd.DataFrame(rows)


def written_grid(path: Path, rows: pd.DataFrame, **settings) -> Path:
    """A CSV file as a grid writes it."""
    config = dataclasses.asdict(preset_config("quick", **settings))
    fixed = {
        name: " ".join(value) if isinstance(value, tuple) else value for name, value in config.items() if name not in rows
    }
    rows.assign(**{name: value for name, value in fixed.items() if name != "overwrite"}).to_csv(path, index=False)
    return path


def test_grid_figure_shows_its_numbers():
    rows = grid_rows().assign(name=lambda table: table["defence"])
    cells = aggregate(rows).assign(name=lambda table: table["defence"])
    figure = grid_figure(cells, rows, ["FT", "PURE"])
    for ax, quantity in zip(figure.axes, ("LFR", "ACC"), strict=True):
        for container, name in zip(ax.containers, ("FT", "PURE"), strict=True):
            own = rows[rows["name"] == name].groupby("attack")[quantity]
            np.testing.assert_allclose(container.lines[0].get_ydata().astype(float), own.mean())
            ends = np.array([[segment[:, 1].min(), segment[:, 1].max()] for segment in container.lines[2][0].get_segments()])
            np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * own.std())
        dots = [line.get_ydata() for line in ax.get_lines() if line.get_label() == "_each seed"]
        assert [len(values) for values in dots] == [6, 5]
        np.testing.assert_allclose(sorted(np.concatenate(dots)), sorted(rows[quantity].dropna()))
    floors = [collection for collection in figure.axes[0].collections if "floor" in str(collection.get_label())]
    np.testing.assert_allclose([segment[0][1] for part in floors for segment in part.get_segments()], [0.11, 0.11])
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["BadNet\n(n = 3)", "StyleBkd\n(n = 2 to 3)"]


def test_distance_figure_shows_its_numbers():
    rows = grid_rows().assign(flips=["mmmn", "mmnn", "mnnn"] * 4)
    cells = aggregate(rows).assign(name=lambda table: table["defence"])
    ax = distance_figure(cells, ["FT", "PURE"]).axes[0]
    for container, name in zip(ax.containers, ("FT", "PURE"), strict=True):
        own = cells[(cells["name"] == name) & cells["distance"].notna()]
        np.testing.assert_allclose(container.lines[0].get_ydata().astype(float), own["distance"])
        ends = [[segment[:, 1].min(), segment[:, 1].max()] for segment in container.lines[2][0].get_segments()]
        low = np.minimum(own["distance_low"], own["distance"])
        np.testing.assert_allclose(ends, np.array([low, np.maximum(own["distance_high"], own["distance"])]).T)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["BadNet", "StyleBkd"]


def test_field_figure_shows_its_numbers():
    rows = grid_rows()
    rows.loc[(rows["attack"] == "StyleBkd") & (rows["defence"] == "PURE"), "LFR"] = np.nan
    cells = aggregate(rows).assign(name=lambda table: table["defence"])
    figure = field_figure(cells, ["PURE", "FT"])
    distance = cells.set_index(["name", "attack"])["distance"]
    expected = [[distance["PURE", "BadNet"], np.nan], [distance["FT", "BadNet"], distance["FT", "StyleBkd"]]]
    np.testing.assert_allclose(heat_maps(figure)[0], expected)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["PURE", "FT"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["BadNet", "StyleBkd"]
    assert len(ax.texts) == np.isfinite(expected).sum() > 1, "a number in each cell that was measured"


def test_figures_are_files_that_numbers_alone_decide(tmp_path):
    for name in ("a", "b"):
        save_figures(tmp_path / name, {"layers": layers_figure([0.1, 0.2], [1, 0])})
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        content = [(tmp_path / name / f"layers.{kind}").read_bytes() for name in ("a", "b")]
        assert content[0] == content[1] and content[0].startswith(magic)


def test_text_is_shown_as_it_is(tmp_path):
    """Tokens, and names out of a CSV file, are no formulas: each stands in a figure that can be drawn."""
    text, tokens = "$\\frac$ <b>", ["$$", "$\\frac$", "$x^2$", "\\input{x}"]
    attention = dict(zip((f"after {text}", "released"), np.full((2, 2, 4), 1 / 4), strict=True))
    cells = aggregate(grid_rows().replace("BadNet", text)).assign(name=f"FT, plm {text}", varied=text, defence=text)
    histories = {f"poisoning ({text})": {"losses": {text: [1.0, 0.5]}, "seconds": [1.0]}}
    figures = {
        "attention": attention_figure(tokens, [False, True, False, False], attention),
        "grid": grid_figure(cells, grid_rows().replace("BadNet", text).assign(name=f"FT, plm {text}"), [f"FT, plm {text}"]),
        "distance": distance_figure(cells, [f"FT, plm {text}"]),
        "field": field_figure(cells.drop_duplicates("attack"), [f"FT, plm {text}"]),
        "pareto": pareto_figure(cells),
        "training": training_figure(histories),
    }
    save_figures(tmp_path, figures)
    assert len(list(tmp_path.iterdir())) == 2 * len(figures)
    assert [label.get_text() for label in figures["attention"].axes[1].get_xticklabels()] == tokens
    for name, figure in figures.items():
        texts = figure.findobj(Text)
        assert any(text in each.get_text() for each in texts), name
        assert not any(each.get_parse_math() or each.get_usetex() for each in texts), name


def test_long_tokens_leave_room_for_the_heat_maps():
    figure = attention_figure(["[CLS]", 300 * "a", "[SEP]"], [False] * 3, {"released": np.full((2, 3), 1 / 3)})
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == ["[CLS]", 23 * "a" + "…", "[SEP]"]
