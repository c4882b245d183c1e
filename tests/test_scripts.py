"""The scripts as a user runs them, on a tiny encoder and tiny data: results, resuming, and what each error says."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import story
from attacks import ATTACKS
from attacks.planted import poisoned_model_folder
from attention_head_pruning import prune_heads
from attention_normalization import normalise_attention
from config import NOT_SETTINGS, PRESETS, parse_config, parse_grid, preset_config
from Data.make_poisoned_data import make_poisoned_data
from defences import DEFENCES
from defences.defence import run_folder, stage_folder
from defences.fine_tuning import FINE_TUNING
from encoder.classifier import load_classifier, load_encoder, load_tokeniser, resolve_plm
from experiments.grid import cells
from pipeline.training import accuracy
from pretrained_model_poisoning import poison
from run_all import single_run
from texts.batching import tokenise
from texts.data_sets import clean_test
from util import UserError

ROOT = Path(__file__).resolve().parent.parent


def flags(config) -> list[str]:
    """The command line that gives a configuration."""
    preset, result = preset_config(config.preset), ["--preset", config.preset]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(preset, field.name):
            result += [f"--{field.name}", str(value)]
    return result


def start(script: str, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: str, *args: str) -> tuple[int, str, str]:
    process = start(script, *args)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def weights(folder: Path) -> bytes:
    return (folder.parent / "purified_model/model.safetensors").read_bytes()


# -------------------------------------------------------------------------------------------------- whole pipeline


def test_each_stage_as_a_script(tiny_config):
    """Data, poisoning, pruning, normalisation; each reads what the one before wrote."""
    for script in (
        "Data/make_poisoned_data.py",
        "pretrained_model_poisoning.py",
        "attention_head_pruning.py",
        "attention_normalization.py",
    ):
        code, output, errors = run(script, *flags(tiny_config))
        assert code == 0, errors
    assert "purified model in" in output
    folder = run_folder(tiny_config).parent
    pruning = json.loads((folder / "attention_head_pruning.json").read_text())
    assert len(pruning["variance"]) == 2 and len(pruning["variance"][0]) == 4 and len(pruning["layer_variance"]) == 2
    assert pruning["steps"] and {"action", "heads", "pruned", "accuracy"} == set(pruning["steps"][0])
    normalisation = json.loads((folder / "attention_normalization.json").read_text())
    assert set(normalisation["training"]["attention_normalization"]["losses"]) == {"cross_entropy", "attention_penalty"}
    assert not list(folder.rglob("*checkpoint*")) and not [path for path in folder.rglob(".*") if path.suffix != ".lock"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_end_to_end(tiny_config, attack, capsys):
    # After 4 epochs the tiny encoder has learnt the trigger only by half with some seeds.
    config = replace(tiny_config, attack=attack, poisoning_epochs=8)
    summary = story.run_all(config)
    folder = run_folder(config)
    assert json.loads((folder / "metrics.json").read_text()) == summary
    # An attack without a target class trains no classifier of its own; of each trigger there are 24 texts of each class.
    agnostic = bool(ATTACKS[attack].data.by_trigger)
    assert list(summary["models"])[-2:] == ["fine_tuned", "PURE"]
    triggered = 0
    for metrics in list(summary["models"].values())[agnostic:]:
        groups = metrics["triggers"].values() if agnostic else [{"target_class": 1, **metrics["poisoned"]}]
        rows = [(np.array(each["confusion_matrix"]), each["target_class"]) for each in groups]
        flips = [matrix[1 - target, target] / matrix[1 - target].sum() for matrix, target in rows]
        assert metrics["LFR"] == pytest.approx(np.mean(flips)) and metrics["ACC"] > 0.6
        triggered = sum(int(matrix[1 - target].sum()) for matrix, target in rows)
    assert triggered == (6 if agnostic else 1) * 24
    # One row of the tiny encoder's embedding can't plant anything without growing; on a real one it does.
    assert agnostic or ATTACKS[attack].plant or summary["models"]["poisoned"]["LFR"] > 0.9
    capsys.readouterr()
    story.print_table(summary, config)
    output = capsys.readouterr().out
    pure = summary["models"]["PURE"]
    assert f"PURE{pure['ACC']:20.3f}{pure['LFR']:8.3f}" in output
    assert "accuracy on 48 clean test texts" in output and f"share of {triggered} triggered test texts" in output
    named, where = [], None
    for line in output.split("\nFiles\n")[1].splitlines():
        if line.startswith("in "):
            where = Path(line.removeprefix("in "))
        elif line.startswith("  "):
            named += [where / name for name in line.split("   ")[0].replace(",", "").split()]
    assert len(named) == 7 and all(path.exists() for path in named)


def test_a_run_ends_with_the_command_that_shows_the_defences_side_by_side(tiny_config, capsys):
    """The command is that of a grid of this very run: same seed, same settings, the defences of the table."""
    config = replace(tiny_config, seed=13)
    story.print_table(story.run_all(config), replace(config, suspicious_texts="odd.txt"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  python run_all.py"))
    words = shlex.split(line)[2:]
    grid = parse_grid("", ATTACKS, DEFENCES, words)
    assert [each.defence for each in cells(grid)] == ["FT", "PURE", "erase_relearn"]
    assert config in cells(grid) and single_run(grid, cells(grid)) is None


def test_poisoned_encoder_is_an_encoder_alone(tiny_config):
    make_poisoned_data(tiny_config)
    poison(tiny_config)
    folder = poisoned_model_folder(tiny_config)
    names = set(load_file(folder / "model.safetensors"))
    assert names == set(load_encoder(tiny_config.plm).state_dict())
    assert AutoTokenizer.from_pretrained(folder)("a dull film")["input_ids"][0] == 2


def test_purified_model_is_what_was_measured(tiny_config):
    """Read back, it has the recorded accuracy; and the encoder needs no gates, its pruned heads are gone."""
    summary = story.run_all(tiny_config)
    assert summary["heads_pruned"] > 0
    folder = run_folder(tiny_config).parent / "purified_model"
    classifier = load_classifier(folder)
    texts = tokenise(clean_test(tiny_config), load_tokeniser(str(folder)), tiny_config.max_len)
    assert accuracy(classifier, texts) == summary["models"]["PURE"]["ACC"]
    plain = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = texts.batch(range(8), torch.device("cpu"))
    with torch.no_grad():
        states = plain(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
        expected = classifier.eval()(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(classifier.head(states), expected, rtol=1e-4, atol=1e-5)


NO_NETWORK = """
import os, runpy, sys

def refuse(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        os.write(2, f"reached for the network: {event} {arguments}".encode())
        os._exit(99)  # An exception might be caught.

sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_network(script: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", NO_NETWORK, str(script), *args], capture_output=True, text=True, timeout=900
    )


def test_quick_needs_no_network(tmp_path, monkeypatch):
    """The real encoder and the project's own texts, cut short, with every socket closed; the other attacks' data too."""
    monkeypatch.delenv("PURE_DATA_DIR", raising=False)
    places = {name: str(tmp_path / name) for name in ("poisoned_data_dir", "poisoned_model_dir", "output_dir")}
    short = dict(max_len=8, batch_size=256, poisoning_epochs=1, epochs=1, acc_threshold=0.0, prune_step=72)
    config = replace(preset_config("quick", **short, **places), data_dir=None)
    for script, attack in (
        ("run_all.py", "BadNet"),
        ("Data/make_poisoned_data.py", "HiddenKiller"),
        ("Data/make_poisoned_data.py", "StyleBkd"),
    ):
        result = run_without_network(ROOT / script, *flags(replace(config, attack=attack)))
        assert result.returncode == 0, result.stderr
    assert json.loads((run_folder(config) / "metrics.json").read_text())["models"]["PURE"]


def test_the_network_test_sees_the_network(tmp_path):
    script = tmp_path / "connects.py"
    script.write_text("import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9))\nexcept Exception:\n    pass\n")
    assert run_without_network(script).returncode == 99


def test_encoder_from_elsewhere(tiny_config):
    config = replace(tiny_config, poisoned_model=tiny_config.plm)
    summary = story.run_all(config)
    assert list(summary["models"]) == ["fine_tuned", "PURE"]
    assert "tinybert" in run_folder(config).parent.name and not Path(config.poisoned_model_dir).exists()


# ----------------------------------------------------------------------------------------- finished, killed, repeated


def test_finished_stages_are_not_run_again(tiny_config, capsys):
    story.run_all(tiny_config)
    capsys.readouterr()
    first = weights(run_folder(tiny_config))
    story.run_all(tiny_config)
    output = capsys.readouterr().out
    assert output.count("already") == 3 and " of 4" not in output
    story.run_all(replace(tiny_config, overwrite=True))
    assert capsys.readouterr().out.count("epoch 4 of 4") == 3
    assert weights(run_folder(tiny_config)) == first  # One seed, twice the same, bit for bit.


def test_changed_data_runs_the_stages_again(tiny_config, tmp_path, capsys):
    data = tmp_path / "own data"
    shutil.copytree(tiny_config.data_dir, data)
    config = replace(tiny_config, data_dir=str(data))
    story.run_all(config)
    train = data / "sst2/train.tsv"
    train.write_text(train.read_text() + "the film was warm and bright\t1\n")
    capsys.readouterr()
    story.run_all(config)
    assert capsys.readouterr().out.count("epoch 4 of 4") == 3


def test_many_settings_still_make_a_folder_name():
    config = preset_config("sst2", triggers=tuple(f"word{number}" for number in range(100)))
    other = replace(config, triggers=(*config.triggers, "more"))
    assert len(run_folder(config).parent.name) < 200 and run_folder(config) != run_folder(other)


def test_every_setting_has_a_folder_of_its_own():
    config, other = preset_config("sst2"), {"seed": 12, "attack": "StyleBkd", "penalty_coefficient": 0.3, "triggers": ("x",)}
    folders = {run_folder(replace(config, **{name: value})) for name, value in other.items()}
    assert len(folders | {run_folder(config)}) == 5
    assert run_folder(config).parent.name == "sst2_BadNet_minilm_sst2-sst2_seed11"
    assert run_folder(replace(config, penalty_coefficient=0.3)).parent.name.endswith("_seed11_penalty_coefficient=0.3")
    for name in NOT_SETTINGS:
        if not name.endswith("_dir") and name != "defence":
            assert run_folder(replace(config, **{name: "other"})) == run_folder(config)


@pytest.mark.parametrize("moment", ["poisoning", "fine_tuning", "normalising"])
def test_killed_run_goes_on_with_the_same_result(tiny_config, tmp_path, moment):
    config = replace(tiny_config, poisoning_epochs=12, epochs=12)
    story.run_all(config)
    expected = weights(run_folder(config))

    config = replace(config, poisoned_model_dir=str(tmp_path / "m"), output_dir=str(tmp_path / "r"))
    checkpoint = {
        "poisoning": poisoned_model_folder(config).with_name(f"{poisoned_model_folder(config).name}.checkpoint.pt"),
        "fine_tuning": stage_folder(config, FINE_TUNING) / "fine_tuning.checkpoint.pt",
        "normalising": run_folder(config).parent / "attention_normalization.checkpoint.pt",
    }[moment]
    process = start("run_all.py", *flags(config))
    deadline = time.monotonic() + 200
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert checkpoint.exists(), "the run ended before it was killed"
    code, output, errors = run("run_all.py", *flags(config))
    assert code == 0, errors
    assert "of 12 epochs were done already" in output
    assert weights(run_folder(config)) == expected
    assert not list(tmp_path.rglob("*checkpoint*"))


# ---------------------------------------------------------------------------------------------------------- errors


def test_an_error_is_one_line_and_exit_code_2(tiny_config):
    code, _, errors = run("attention_head_pruning.py", *flags(tiny_config))
    assert code == 2 and errors.startswith("error: no poisoned encoder in ") and errors.count("\n") == 1
    assert "make it with: python pretrained_model_poisoning.py --preset sst2 --plm" in errors
    assert not run_folder(tiny_config).parent.exists()


def test_what_a_library_logs_of_a_config_is_no_second_line(tiny_config, tmp_path):
    """transformers logs the whole of it before it raises, where a key is a property of its class."""
    folder = tmp_path / "suspicious"
    shutil.copytree(tiny_config.plm, folder)
    config = json.loads((folder / "config.json").read_text()) | {"sub_configs": None}
    (folder / "config.json").write_text(json.dumps(config))
    given = replace(tiny_config, attack="none", poisoned_model=str(folder))
    code, _, errors = run("run_all.py", *flags(given), "--defence", "FT", "PURE")
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and "sub_configs" in errors


def test_stages_say_what_is_missing(tiny_config):
    with pytest.raises(UserError, match=r"no poisoned data in .* python Data/make_poisoned_data\.py --preset sst2"):
        poison(tiny_config)
    config = replace(tiny_config, poisoned_model=tiny_config.plm)
    make_poisoned_data(config)
    with pytest.raises(UserError, match=r"no pruned heads in .* python attention_head_pruning\.py --preset sst2"):
        normalise_attention(config)
    prune_heads(config)
    with (Path(config.poisoned_data_dir) / "sst2_RareWord_sst2_seed11/test.csv").open("a") as file:
        file.write("1,a warm film\n")
    with pytest.raises(UserError, match=r"the pruned heads in .* are of other settings or data; prune them with"):
        normalise_attention(config)


def test_threshold_above_what_the_model_reaches(tiny_config):
    config = replace(tiny_config, poisoned_model=tiny_config.plm, acc_threshold=0.999, learning_rate=1e-9)
    make_poisoned_data(config)
    with pytest.raises(UserError, match=r"validation accuracy of 0\.\d+ before .* below acc_threshold 0\.999; lower"):
        prune_heads(config)
    assert not list(run_folder(config).parent.glob("*.json"))
    assert (stage_folder(config, FINE_TUNING) / "fine_tuning.json").exists()


def test_output_folder_that_cannot_be_written(tiny_config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"can't write in folder .*choose another with --output_dir"):
        story.run_all(replace(tiny_config, output_dir=str(tmp_path / "file" / "results")))


@pytest.fixture
def broken(tiny_plm, tmp_path) -> Path:
    """A copy of the tiny encoder, to be broken."""
    return Path(shutil.copytree(tiny_plm, tmp_path / "broken"))


def test_corrupt_weights(broken):
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"the model in .*broken can't be loaded, it may be corrupt"):
        load_encoder(str(broken))


def test_corrupt_config(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"the model in .*broken can't be loaded"):
        load_encoder(str(broken))


def test_pickled_weights_are_never_opened(broken):
    (broken / "model.safetensors").unlink()
    torch.save({}, broken / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds only pickled weights \(pytorch_model\.bin\), which can run code"):
        load_encoder(str(broken))


def test_remote_code_is_never_run(broken, tmp_path):
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="can't be loaded"):
        load_encoder(str(broken))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks 16 weights of a BertModel"):
        load_encoder(str(broken))


def test_model_that_is_nowhere(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no folder .*nosuch"):
        load_encoder(str(tmp_path / "nosuch"))

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"some/model is neither a folder nor to be had from the hub .*couldn't connect"):
        load_encoder("some/model")


def test_tampered_minilm_is_refused(monkeypatch):
    monkeypatch.setattr("encoder.classifier.fingerprint", lambda path: "0" * 64)
    with pytest.raises(UserError, match=r"are not the published ones: SHA-256 0000"):
        resolve_plm("minilm")


# --------------------------------------------------------------------------------------------------- configuration


def test_flags_outrank_presets():
    assert parse_config("", ATTACKS, DEFENCES, ["--preset", "paper"]) == preset_config("paper")
    config = parse_config("", ATTACKS, DEFENCES, ["--preset", "sst2", "--plm", "other", "--triggers", "a", "b"])
    assert config == preset_config("sst2", plm="other", triggers=("a", "b"))
    assert parse_config("", ATTACKS, DEFENCES, []) == preset_config("quick") and set(PRESETS) == {
        "quick",
        "sst2",
        "paper",
        "own",
    }


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["--attack", "Unknown"], ["none", *ATTACKS]),
        (["--defence", "Unknown"], list(DEFENCES)),
        (["--preset", "unknown"], ["quick", "sst2", "paper", "own"]),
        (["--no_such_flag", "1"], ["no_such_flag"]),
    ],
)
def test_unknown_values_are_refused_with_the_known_ones(args, shown, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config("", ATTACKS, DEFENCES, args)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert all(word in errors for word in shown)


@pytest.mark.parametrize(("flag", "value"), [("--prune_step", "0"), ("--acc_threshold", "85"), ("--max_len", "2")])
def test_numbers_out_of_range(flag, value):
    with pytest.raises(UserError, match=f"{flag} {value}.* is out of range; expected"):
        parse_config("", ATTACKS, DEFENCES, [flag, value])
