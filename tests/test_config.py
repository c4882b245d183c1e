"""What the command line takes and refuses, before anything is run with it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import config
from attacks import ATTACKS
from config import Grid, parse_config, parse_grid
from defences import DEFENCES
from demo import Demo
from detection.__main__ import Detection
from util import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *[("--seed", value) for value in ("-1", "20240101")],
        *[("--split_seed", value) for value in ("-1", "4294967296")],
        *[(flag, value) for flag in ("--learning_rate", "--fth_learning_rate") for value in ("-1", "0", "nan", "inf")],
        *[("--poisoning_learning_rate", value) for value in ("-1", "0", "nan")],
        *[("--max_grad_norm", value) for value in ("-1", "0", "nan")],
        *[("--penalty_coefficient", value) for value in ("-1", "nan", "inf")],
        *[("--ripple_coefficient", value) for value in ("-1", "nan")],
        *[("--poisoning_max_len", value) for value in ("-5", "0", "1")],
        *[("--acc_threshold", value) for value in ("-0.1", "85", "nan")],
        *[("--classifier_dropout", value) for value in ("1.5", "nan")],
        *[(flag, "0") for flag in ("--epochs", "--batch_size", "--prune_step", "--entropy_epochs", "--poisoning_epochs")],
    ],
)
def test_numbers_that_make_no_sense_are_refused(flag, value):
    for parse in (parse_config, parse_grid):
        with pytest.raises(UserError, match=f"^{flag} .* is out of range; expected"):
            parse("", ATTACKS, DEFENCES, [flag, value])


def test_every_range_is_of_a_setting():
    """A name that none of them has is looked at nowhere."""
    settings = {field.name for kind in (Grid, Detection, Demo) for field in dataclasses.fields(kind)}
    assert {*config.AT_LEAST, *config.SHARES, *config.WEIGHTS, *config.RATES} <= settings


@pytest.mark.parametrize("words", [[""], ["cf", " "]])
def test_blank_triggers_plant_nothing(words):
    with pytest.raises(UserError, match="--triggers holds a blank word"):
        parse_config("", ATTACKS, DEFENCES, ["--triggers", *words])


@pytest.mark.parametrize("flag", ["--workers", "--threads"])
def test_workers_and_threads_are_at_least_one(flag):
    with pytest.raises(UserError, match=f"{flag} 0 is out of range"):
        parse_grid("", ATTACKS, DEFENCES, [flag, "0"])


@pytest.mark.parametrize("spelling", ["--poisoned_model", "--poisoned-model"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_flag_is_the_same_with_hyphens(spelling, joined):
    args = [f"{spelling}=x"] if joined else [spelling, "x"]
    config = parse_config("", ATTACKS, DEFENCES, [*args, "--clean-dataset", "my-own.csv"])
    assert (config.preset, config.attack, config.clean_dataset) == ("own", "none", "my-own.csv")


def test_help_says_what_each_attack_and_defence_does(capsys):
    with pytest.raises(SystemExit):
        parse_grid("", ATTACKS, DEFENCES, ["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, told in [*ATTACKS.told.items(), *DEFENCES.told.items()]:
        assert f"{name}: {told}." in shown
    source = (ROOT / "config.py").read_text()
    for first in ("Backdoor to plant; none: ", "What is done with the suspicious encoder."):
        assert first in shown and source.count(first) == 1, "a field is explained once, below itself"


def test_help_imports_nothing_that_takes_seconds():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['run_all.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('run_all.py', run_name='__main__')\n"
        "finally:\n"
        "    slow = {'torch', 'transformers', 'accelerate', 'datasets', 'sklearn', 'pandas'}\n"
        "    print(sorted(slow & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n") and "--penalty_coefficient" in done.stdout
