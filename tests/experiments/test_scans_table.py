"""Scans of many encoders as one table."""

import json

import pytest

from experiments import scans_table
from util import UserError

FOUND = {"flips": 3, "norm": 0, "nearest": 1, "telling": 2}
RANKS = [{"word": "cf", "rank": 12}, {"word": "mn", "rank": 1}, {"word": "qxz", "rank": None}, {"word": "bb", "rank": 5000}]


def write(root, name: str, **scan) -> str:
    path = root / f"scan_{name}" / "scan.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"found": FOUND, "folder": [], "ranks": [], "seconds": {"a": 1.4, "b": 2.2}, **scan}))
    return str(path)


def test_a_row_for_each_scan(tmp_path, monkeypatch, capsys):
    """A word that the scan didn't try is in no place."""
    paths = [
        write(tmp_path, "planted", ranks=RANKS),
        write(tmp_path, "clean", folder=["odd"], found=dict.fromkeys(FOUND, 0)),
    ]
    monkeypatch.setattr("sys.argv", ["scans_table", *paths])
    scans_table.main()
    head, line, planted, clean = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[1:5] == list(scans_table.KINDS.values()) and line.count("---") == head.count("|") - 1
    assert planted == "| planted | 3 | 0 | 1 | 2 | 0 | mn 1, cf 12, bb 5,000 | 1 of 4 | 1 of 4 | 2 of 4 | 4 |"
    assert clean == "| clean | 0 | 0 | 0 | 0 | 1 |  |  |  |  | 4 |"


@pytest.mark.parametrize("args", [[], ["--help"], ["OTHER"]])
def test_what_is_no_scan(args, tmp_path, monkeypatch):
    other = tmp_path / "other.json"
    other.write_text("[1]")
    monkeypatch.setattr("sys.argv", ["scans_table", *(str(other) if arg == "OTHER" else arg for arg in args)])
    with pytest.raises(UserError, match=r"expected (a scan\.json|scan\.json files)"):
        scans_table.main()
