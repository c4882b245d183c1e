"""A printed command, pasted into a shell, makes the run that printed it, whatever its files are named."""

import shlex

import pytest

from attacks import ATTACKS
from config import parse, parse_config, preset_config
from defences import DEFENCES
from pipeline.runs import command
from report import Report, preset_report
from reporting.run_page import report_command

EVIL = [
    "my news; rm -rf ~.csv",
    "$(touch x) `y` 'z' \"w\" \\.csv",
    "-x.csv",
    "--seed",
    "two  blanks\nand a line.csv",
    "~/*.csv",
]


@pytest.mark.parametrize("name", EVIL)
def test_a_command_is_read_back_as_it_was_meant(name):
    config = preset_config("quick", clean_dataset=name, poisoned_model=name, suspicious_texts=name, acc_threshold=None)
    python, script, *args = shlex.split(command("run_all.py", config))
    assert (python, script) == ("python", "run_all.py")
    assert parse_config("", ATTACKS, DEFENCES, args) == config


@pytest.mark.parametrize("triggers", [("-a", "b c", "$$"), ("x;y",), ("it's", "#")])
def test_triggers_in_a_command(triggers):
    config = preset_config("sst2", triggers=triggers)
    assert parse_config("", ATTACKS, DEFENCES, shlex.split(command("run_all.py", config))[2:]) == config


@pytest.mark.parametrize("sentence", ["it's; a `cf`  film", "- cf -"])
def test_command_of_a_report(sentence):
    words = shlex.split(report_command(preset_config("quick", clean_dataset=EVIL[0]), sentence, "cf", 5))
    options = parse(Report, preset_report, "", ATTACKS, DEFENCES, words[2:])
    assert (options.sentence, options.trigger, options.texts, options.clean_dataset) == (sentence, "cf", 5, EVIL[0])


def test_an_ordinary_command_stays_readable():
    config = preset_config("sst2", seed=12, learning_rate=1e-4, data_dir="some/folder", overwrite=True)
    assert command("run_all.py", config) == (
        "python run_all.py --preset sst2 --seed 12 --data_dir some/folder --learning_rate 0.0001"
    )
