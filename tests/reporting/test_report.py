"""The report: its sentences say what the numbers say, the page needs nothing else."""

import base64
import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_settings
from test_figures import grid_rows, heat_maps, written_grid
from test_scripts import flags, run

import story
from attacks.planted import measured_tables
from attention_head_pruning import head_variance
from config import Config, preset_config, preset_grid
from defences import DEFENCES
from defences.defence import defended_model_folder, record_path, run_folder
from encoder.classifier import load_classifier, load_tokeniser
from encoder.cls_attention import remove_pruned_heads
from experiments.grid import benign, floor_path, run_grid
from pipeline.training import measure
from report import main as report_script
from reporting import analysis
from reporting.analysis import choose_demonstration, cls_attention_by_layer, find_words, other_classes
from reporting.figures import save_figures
from reporting.grid_page import report_grid
from reporting.run_page import report_run, run_figures, run_table, write_events
from reporting.run_records import read_run
from reporting.trigger_path import trace
from reporting.words import verdict
from texts.batching import tokenise
from texts.data_sets import clean_test
from util import UserError, run_script


@pytest.fixture(scope="module")
def tiny_run(tiny_data, tiny_plm, tmp_path_factory) -> tuple[Config, dict, Path]:
    """A finished tiny run, what metrics.json holds, and its report."""
    config = replace(tiny_settings(tiny_data, tiny_plm, tmp_path_factory.mktemp("run")), poisoning_epochs=8)
    summary = story.run_all(config)
    return config, summary, report_run(config)


def table_of(page: Path, name: str) -> list[list[str]]:
    """The cells of a table of the page as text, header first."""
    body = re.search(rf'<table[^>]*id="{name}".*?</table>', page.read_text(), re.DOTALL).group()
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


# ------------------------------------------------------------------------------------------------------- what is said


def metrics(acc: float, flips: int | None, texts: int = 200) -> dict:
    """Metrics as a record has them; flips None: no triggered texts."""
    right = round(acc * 400)
    clean = {"confusion_matrix": [[right // 2, 200 - right // 2], [200 - (right - right // 2), right - right // 2]]}
    if flips is None:
        return {"ACC": acc, "clean": clean}
    poisoned = {"confusion_matrix": [[texts - flips, flips], [0, 200]]}
    return {"ACC": acc, "LFR": flips / texts, "clean": clean, "poisoned": poisoned}


@pytest.mark.parametrize(
    ("tuned", "defended", "floor", "says"),
    [
        (
            (0.88, 200),
            (0.877, 27),
            None,
            ["lowers", "(1.000 with fine-tuning alone, 0.135 with", "falls from the 0.880 of fine-tuning alone to 0.877"],
        ),
        (
            (0.88, 200),
            (0.88, 27),
            25,
            ["lowers", "not clearly above the 0.125 of a never", "clean texts stays at 0.880"],
        ),
        (
            (0.88, 200),
            (0.90, 120),
            25,
            ["lowers", "still above the 0.125", "rises from the 0.880 of fine-tuning alone"],
        ),
        ((0.88, 200), (0.88, 150), None, ["lowers", "so most of them are still given the attacker's class"]),
        ((0.88, 170), (0.88, 168), None, ["makes no clear difference", "(0.850 with fine-tuning alone, 0.840 with"]),
        ((0.88, 20), (0.88, 24), 22, ["makes no clear difference", "not clearly above the 0.110"]),
        (
            (0.88, 100),
            (0.50, 160),
            None,
            ["does not help", "rises (0.500", "clean texts falls from the 0.880 of fine-tuning alone to 0.500"],
        ),
        (
            (0.88, None),
            (0.87, None),
            None,
            ["can't be said without triggered texts", "falls from the 0.880 of"],
        ),
    ],
)
def test_verdict_says_what_happened(tuned, defended, floor, says):
    config = preset_config("quick")
    sentence = verdict(config, metrics(*tuned), metrics(*defended), metrics(0.9, floor) if floor else None, (15, 72))
    assert all(words in sentence for words in [*says, "15 of 72 heads"]), sentence
    if "lowers" not in says:
        assert "lowers" not in sentence


def test_verdict_on_several_triggers_goes_by_their_rates():
    """Each stands for another class in each model, of which there are more or fewer texts."""
    config = preset_config("quick", attack="POR")

    def of(flips: int, others: int, target: int) -> dict:
        confusion = [[0, 0], [0, 0]]
        confusion[1 - target] = [flips, others - flips] if target == 0 else [others - flips, flips]
        triggers = {name: {"target_class": target, "confusion_matrix": confusion} for name in ("cf", "tq")}
        clean = {"confusion_matrix": [[500, 0], [0, 500]]}
        return {"ACC": 0.9, "LFR": flips / others, "clean": clean, "triggers": triggers}

    sentence = verdict(config, of(570, 600, 1), of(400, 400, 0), of(100, 400, 0), None)
    assert "does not help: the label flip rate on 400 texts with each of 2 triggers rises (0.950 with" in sentence
    assert "still above the 0.250 of a never-poisoned encoder" in sentence


# ---------------------------------------------------------------------------------------------------------- sentences


def test_trigger_is_found_as_whole_words():
    assert find_words("a bbc film, BB!", "bb") == (12, 14) and find_words("a bbc film", "bb") is None
    config = preset_config("quick", triggers=("cf", "bb"))
    assert choose_demonstration(None, None, None, config).text == "bad film to be honest cf"
    assert choose_demonstration(None, "zz", None, config).text == "bad film to be honest zz"
    assert choose_demonstration("a bb film", None, None, config).marked == (2, 4)
    with pytest.raises(UserError, match=r"holds none of the attack's triggers \(cf, bb\); put one into --sentence"):
        choose_demonstration("a film", None, None, config)
    with pytest.raises(UserError, match=r"'a film' doesn't hold the trigger 'bb' as whole words; give a --sentence"):
        choose_demonstration("a film", "bb", None, config)


def test_sentence_of_an_attack_without_words():
    texts = pd.DataFrame({"label": 0, "text": ["long " * 20, "when you do , it is dull", "short"]})
    shown = choose_demonstration(None, None, texts, preset_config("quick", attack="HiddenKiller"))
    assert shown.text == "when you do , it is dull" and shown.text[slice(*shown.marked)] == "when you do ,"
    shown = choose_demonstration(None, None, texts, preset_config("quick", attack="StyleBkd"))
    assert shown.marked is None and "form of the whole sentence" in shown.described


# -------------------------------------------------------------------------------------------------------------- a run


def test_page_has_the_numbers_of_metrics_json(tiny_run):
    config, _, page = tiny_run
    models = json.loads((run_folder(config) / "metrics.json").read_text())["models"]
    header, *rows = table_of(page, "numbers")
    assert [row[0] for row in rows] == ["poisoned", "fine-tuned (FT)", "PURE"]
    for row, found in zip(rows, models.values(), strict=True):
        row = dict(zip(header, row, strict=True))
        assert (row["ACC"], row["LFR"]) == (f"{found['ACC']:.3f}", f"{found['LFR']:.3f}")
        clean, poisoned = (np.array(found[kind]["confusion_matrix"]) for kind in ("clean", "poisoned"))
        assert (
            row["right"] == f"{clean.trace()} of {clean.sum()}"
            and row["flipped"] == f"{poisoned[0, 1]} of {poisoned[0].sum()}"
        )


def test_an_attack_without_a_target_class(tiny_config, capsys):
    """The attacker has no classifier, LFR is of all triggers together, and nothing is said of one target class."""
    config = replace(tiny_config, attack="POR", epochs=1, acc_threshold=0.0)
    summary = story.run_all(config)
    story.print_table(summary, config)
    told = capsys.readouterr().out
    assert "and needs no labels. The encoder learns" in " ".join(told.split()) and "labels those as" not in told
    row = next(line.split() for line in told.splitlines() if line.startswith("poisoned   "))
    assert row[:4] == ["poisoned", "-", "-", "-"] and "LFR worst the largest" in " ".join(told.split())
    page = report_run(config)
    header, tuned, defended = table_of(page, "numbers")
    assert header == ["model", "ACC", "LFR", "LFR worst", "right", "flipped", "training (s)"]
    for model, line in (("fine_tuned", tuned), ("PURE", defended)):
        triggers = summary["models"][model]["triggers"].values()
        rates = [each["label_flip_rate"] for each in triggers]
        assert line[2:4] == [f"{np.mean(rates):.3f}", f"{max(rates):.3f}"]
        others = [np.delete(np.array(each["confusion_matrix"]), each["target_class"], axis=0) for each in triggers]
        assert line[5].endswith(f" of {sum(map(np.sum, others)):,}")
    assert "(the target)" not in page.read_text() and "LFR worst the largest" in page.read_text()
    assert json.loads((run_folder(config) / analysis.RECORD).read_text())["trigger_effect"]["flip_rates"] is None
    with pytest.raises(UserError, match="POR has no target class, for which LFR here is the share taken"):
        trace(config)


def test_page_is_one_file_with_all_figures(tiny_run):
    config, _, page = tiny_run
    text, folder = page.read_text(), run_folder(config)
    assert page == folder / "report.html"
    images = re.findall(r'<img[^>]*src="([^"]*)"', text)
    names = ["head_variance", "pruning_trajectory", "cls_attention", "layer_weights", "training_curves"]
    assert re.findall(r'<figure id="(\w+)"', text) == names
    for name, source in zip(names, images, strict=True):
        assert (
            base64.b64decode(source.removeprefix("data:image/png;base64,")) == (folder / f"figures/{name}.png").read_bytes()
        )
        assert (folder / f"figures/{name}.pdf").exists()
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text and "url(" not in text
    assert (
        "python run_all.py --preset sst2" in text
        and "torch</td>" in text
        and f"<td>{torch.__version__.split('+')[0]}" in text
    )


def test_analysis_agrees_with_the_records(tiny_run):
    """LFR at the search's start is that of FT; the attention is that of the models, its trigger marked."""
    config, summary, _ = tiny_run
    record = json.loads((run_folder(config) / analysis.RECORD).read_text())
    effect, attention = record["trigger_effect"], record["attention"]
    assert effect["flip_rates"][0] == pytest.approx(summary["models"]["fine_tuned"]["LFR"])
    pruning = json.loads((run_folder(config).parent / "attention_head_pruning.json").read_text())
    assert len(effect["flip_rates"]) == 1 + len(pruning["steps"])
    assert effect["settings"]["texts"] == {"clean": 24, "triggered": 24}
    # The search's end, its heads removed for good instead of gated.
    classifier = load_classifier(defended_model_folder(replace(config, defence="FT")))
    classifier.attention.pruned = {int(layer): heads for layer, heads in pruning["pruned_heads"].items()}
    remove_pruned_heads(classifier.attention)
    classifier.attention.pruned = {}
    tokeniser = load_tokeniser(str(run_folder(config).parent / "purified_model"))
    texts = {name: tokenise(table, tokeniser, config.max_len) for name, table in measured_tables(config).items()}
    assert measure(classifier, texts, config.target_class)["LFR"] == effect["flip_rates"][-1]
    negative = [tokenise(other_classes(table, 1, 500), tokeniser, config.max_len) for table in (clean_test(config),)]
    variance = head_variance(
        load_classifier(defended_model_folder(replace(config, defence="FT"))), *negative, config.max_len
    )
    np.testing.assert_allclose(effect["variance_clean"], variance, rtol=1e-6)
    assert not np.allclose(effect["variance_clean"], effect["variance_triggered"], rtol=1e-3)
    tokens = attention["tokens"]
    assert [token for token, marked in zip(tokens, attention["marked"], strict=True) if marked] == ["bb"]
    purified = load_classifier(run_folder(config).parent / "purified_model")
    rows, shares = cls_attention_by_layer(purified, tokeniser("bad film to be honest bb")["input_ids"])
    np.testing.assert_allclose(attention["attention"]["defended"], rows, rtol=1e-5)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(attention["probabilities"]["defended"], shares, rtol=1e-5)


def test_without_triggered_texts_the_rest_is_shown(tiny_run):
    config, _, _ = tiny_run
    run = read_run(config)
    figures = run_figures(run, {"trigger_effect": None, "attention": None}, "", 48)
    assert list(figures) == ["head_variance", "pruning_trajectory", "layer_weights", "training_curves"]
    np.testing.assert_allclose(heat_maps(figures["head_variance"][0]), [1000 * np.array(run.pruning["variance"])])
    assert len(figures["pruning_trajectory"][0].axes) == 1
    assert not any(
        "LFR" in caption or "trigger" in caption.replace("without any trigger", "") for _, _, caption in figures.values()
    )
    unknown = {key: {**getattr(run, key), "metrics": metrics(0.9, None)} for key in ("fine_tuned", "defended")}
    table = run_table(replace(run, poisoned=None, **unknown))
    assert table["columns"] == ["model", "ACC", "right", "training (s)"]
    assert [row[:3] for row in table["rows"]] == [[name, "0.900", "360 of 400"] for name in ("fine-tuned (FT)", "PURE")]


def test_a_second_report_computes_nothing_anew(tiny_run, monkeypatch):
    config, _, page = tiny_run
    before = page.read_bytes()
    page.unlink()  # A page that is there would be taken as it is.

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(analysis, "trigger_effect", refuse)
    monkeypatch.setattr(analysis, "demonstrate", refuse)
    # Event files have the time in them, and the page their hash.
    assert report_run(config).read_bytes()[1000:] == before[1000:]
    with pytest.raises(AssertionError, match="computed again"):
        report_run(config, sentence="the film is dull cf")
    with pytest.raises(AssertionError, match="computed again"):
        report_run(config, texts=5)


def test_a_page_is_drawn_once_and_again_when_something_changed(tiny_run, tmp_path, monkeypatch):
    config, _, _ = tiny_run
    config = replace(config, output_dir=str(tmp_path / "results"))
    shutil.copytree(tiny_run[0].output_dir, config.output_dir)
    page, drawn = report_run(config), []
    monkeypatch.setattr("reporting.page.save_figures", lambda *given: drawn.append(save_figures(*given)))

    def draws() -> bool:
        drawn.clear()
        assert report_run(config) == page
        return bool(drawn)

    assert not draws()
    (page.parent / "figures/layer_weights.pdf").write_bytes(b"")
    assert draws() and not draws()
    page.write_text(page.read_text().replace("made-from", "made"))
    assert draws() and not draws()
    record = page.parents[1] / "attention_normalization.json"
    record.write_text(record.read_text().replace('"ACC": ', '"ACC": 0'))  # A number that JSON doesn't know: no such record.
    with pytest.raises(UserError, match="is not finished"):
        report_run(config)
    shutil.copy(run_folder(tiny_run[0]).parent / record.name, record)
    assert not draws()
    content = json.loads(record.read_text())
    content["metrics"]["ACC"] = 0.123
    record.write_text(json.dumps(content))
    assert draws() and "0.123" in page.read_text()


def test_a_finished_run_is_told_again_without_what_takes_seconds_to_import(tiny_run):
    config, _, page = tiny_run
    code = (
        "import runpy, sys\n"
        "sys.argv[0] = 'run_all.py'\n"
        "runpy.run_path('run_all.py', run_name='__main__')\n"
        "slow = {'transformers.modeling_utils', 'tokenizers', 'datasets', 'sklearn', 'scipy', 'matplotlib', 'jinja2'}\n"
        "slow.add('huggingface_hub.hf_api')\n"
        "print(sorted(slow & sys.modules.keys()), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *flags(config)]
    done = subprocess.run(command, cwd=Path(story.__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n") and str(page) in done.stdout


def error_of(monkeypatch, capsys, *args: str) -> str:
    """The one line that report.py leaves with."""
    monkeypatch.setattr("sys.argv", ["report.py", *args])
    with pytest.raises(SystemExit) as stop:
        run_script(report_script)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def test_report_as_a_script(tiny_run, tmp_path, monkeypatch, capsys):
    """Another sentence, another number of texts; then what is wrong is said in one line, and the page stays as it was."""
    config, _, page = tiny_run
    places = dict(output_dir=str(tmp_path / "results"), poisoned_model_dir=str(tmp_path / "models"))
    moved = replace(config, **places)
    for name, place in places.items():
        shutil.copytree(getattr(config, name), place)
    code, output, errors = run("report.py", *flags(moved), "--sentence", "a dull cf film", "--trigger", "CF", "--texts", "5")
    assert code == 0, errors
    page = run_folder(moved) / "report.html"
    assert output.strip().endswith(f"report: {page}")
    text = html.unescape(page.read_text())
    assert "“a dull cf film”" in text and "over 5 triggered ones" in text
    assert "--sentence 'a dull cf film' --trigger CF --texts 5" in text

    before = page.read_bytes()
    errors = error_of(monkeypatch, capsys, *flags(moved), "--sentence", "a dull film")
    assert "holds none of the attack's triggers" in errors and page.read_bytes() == before
    with pytest.raises(UserError, match=r"no run in .*seed12.*; make it with: python run_all.py .*--seed 12"):
        report_run(replace(moved, seed=12))
    with pytest.raises(UserError, match="beside fine-tuning alone, and --defence FT is that; expected another defence"):
        report_run(replace(moved, defence="FT"))
    with pytest.raises(UserError, match=r"is not finished: no readable .*meft\.json; go on with: .* --defence MEFT"):
        report_run(replace(moved, defence="MEFT"))
    (run_folder(moved).parent / "attention_normalization.json").write_text('{"settings": ')
    with pytest.raises(
        UserError, match=r"is not finished: no readable .*attention_normalization.json; go on with: python run_all"
    ):
        report_run(moved)


@pytest.mark.parametrize("attack", ["BadNet", "HiddenKiller"])
def test_a_floor_of_other_settings_is_none(tiny_config, attack):
    """Measured by a grid; HiddenKiller's has a record of its own beside that of the model it was measured of."""
    config = replace(tiny_config, attack=attack, defence="MEFT", epochs=1, poisoning_epochs=1)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    table, _ = run_grid(preset_grid(**{**values, "defence": ("FT", "MEFT"), "benign_floor": True}))
    floor = table.set_index("defence").loc["MEFT", "floor_LFR"]
    assert read_run(config).floor["LFR"] == floor
    path, made = floor_path(config), record_path(benign(config), DEFENCES["MEFT"].last)
    assert (path == made) == (attack == "BadNet")
    changes = [(made, key, "other") for key in ("method", "mixed_precision", "entropy_epochs", "classes", "train")]
    changes += [(path, key, "other") for key in ("poisoned_test", "mixed_precision")]
    changes += [(path, "model", "other")] if path != made else []
    for changed, key, value in changes:
        content = json.loads(changed.read_text())
        settings = content["settings"]
        where = settings if key in settings else settings["fingerprints"]
        assert key in where, key
        kept, where[key] = where[key], value
        changed.write_text(json.dumps(content))
        assert read_run(config).floor is None, key
        where[key] = kept
        changed.write_text(json.dumps(content))
    assert read_run(config).floor["LFR"] == floor


@pytest.mark.parametrize("defence", ["discard", "fine_mixing", "MBTSAD", "fine_pruning"])
def test_the_page_of_a_defence_that_prunes_no_heads(given, taught, defence, capsys):
    """discard trains another encoder than the one that is given; MBTSAD has two stages of its own."""
    config = replace(given, defence=defence, clean_encoder=str(taught))
    summary = story.run_all(config)
    story.print_table(summary, config)
    assert list(summary["models"]) == ["fine_tuned", defence] and f"; {defence} leaves" in capsys.readouterr().out
    page = report_run(config)
    assert [row[0] for row in table_of(page, "numbers")[1:]] == ["fine-tuned (FT)", defence]
    figures = re.findall(r'<figure id="(\w+)"', page.read_text())
    assert figures == ["head_variance", "cls_attention", "training_curves"]
    assert "No head was pruned." in page.read_text() and "In attention normalisation" not in page.read_text()


def test_stages_that_do_not_fit_together(tiny_run, tmp_path):
    config, _, _ = tiny_run
    moved = replace(config, output_dir=str(tmp_path / "results"))
    shutil.copytree(config.output_dir, moved.output_dir)
    path = run_folder(moved).parent / "attention_head_pruning.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "pruned_heads": {"0": [], "1": []}}))
    with pytest.raises(UserError, match="of different encoders, texts or heads; mend it with"):
        read_run(moved)
    path.write_text(json.dumps(record))
    data = tmp_path / "data"
    shutil.copytree(config.data_dir, data)
    test = data / "sst2/test.tsv"
    test.write_text(test.read_text() + "the film was warm and bright\t1\n")
    with pytest.raises(UserError, match="clean_test has changed since the run"):
        report_run(replace(moved, data_dir=str(data)))


def test_training_curves_as_event_files(tiny_run):
    pytest.importorskip("tensorboard", reason="event files need tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, _, _ = tiny_run
    folder = run_folder(config) / "tensorboard"
    assert len(list(folder.iterdir())) == 3
    events = EventAccumulator(str(folder / "attention normalisation (PURE)"), size_guidance={"scalars": 0})
    events.Reload()
    record = json.loads((run_folder(config).parent / "attention_normalization.json").read_text())
    losses = record["training"]["attention_normalization"]["losses"]
    assert set(events.Tags()["scalars"]) == {"loss", *losses}
    for name, values in losses.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        np.testing.assert_allclose(found, list(enumerate(values, 1)), rtol=1e-6)


def test_without_tensorboard_there_are_no_event_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert write_events(tmp_path / "tensorboard", {}) is False and not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- a browser


def test_page_in_a_browser(tiny_run, browser, tmp_path):
    """It asks for nothing but itself, has no errors, shows every image, and never scrolls sideways as a whole."""
    grid = report_grid([written_grid(tmp_path / "grid.csv", grid_rows())])
    for page, images in ((tiny_run[2], 5), (grid, 2)):
        for width in (390, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            asked, errors = [], []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, errors=errors: errors.append(message.text))
            tab.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            tab.goto(page.as_uri())
            tab.wait_for_load_state("networkidle")
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()] and errors == []
            sizes = tab.eval_on_selector_all("img", "all => all.map(i => [i.naturalWidth, i.clientWidth])")
            assert len(sizes) == images and all(natural > 300 and shown > 200 for natural, shown in sizes)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            shown = tab.eval_on_selector_all("#numbers td", "all => all.map(cell => cell.innerText)")
            assert shown == [cell for row in table_of(page, "numbers")[1:] for cell in row]
            tab.close()
