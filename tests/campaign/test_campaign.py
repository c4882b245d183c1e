"""A short version of each campaign, in a process of its own, since runs are forked from one that has computed nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("kills.py", ["--number", "10", "--only", "defence", "--seed", "3"]),
        ("inputs.py", ["--number", "45", "--seed", "3"]),
    ],
    ids=["kills", "inputs"],
)
def test_nothing_fails(script, arguments, tmp_path):
    if script == "inputs.py":
        pytest.importorskip("hypothesis", reason="needs Hypothesis (see requirements.txt)")
    command = [sys.executable, str(HERE / script), *arguments, "--table", "table.md"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("| ") and table.strip() in result.stdout


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`(tests/\S+?)::(\w+)`", (PROJECT / "docs/reliability.md").read_text())
    assert len(named) > 20
    for path, name in named:
        assert f"\ndef {name}(" in (PROJECT / path).read_text(), f"{path}::{name}"
