"""The house: which room may import from which, and that nothing but the tables knows the names of attacks and defences."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import util
from attacks import ATTACKS
from defences import DEFENCES

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"util", "config"},
    {"encoder", "texts"},
    {"pipeline"},
    {"attacks", "defences"},
    {"Data", "pretrained_model_poisoning", "attention_head_pruning", "attention_normalization"},
    {"experiments", "detection", "reporting"},
    {"run_all", "story", "report", "export", "predict", "benchmark", "scan", "demo"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    """Every Python file of the project but its tests."""
    files = [path.relative_to(ROOT) for path in ROOT.glob("*.py")]
    files += [path.relative_to(ROOT) for room in FLOOR for path in (ROOT / room).rglob("*.py")]
    return sorted(files)


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_no_import_runs_upwards():
    files = modules()
    assert len(files) > 40
    for path in files:
        room = path.parts[0].removesuffix(".py")
        for name in imported(path) & FLOOR.keys():
            # PURE's second step reads what its first wrote; two attacks share their data. Neither runs up.
            assert FLOOR[name] <= FLOOR[room], f"{path} imports {name}, which is on a floor above"


def test_the_root_holds_the_scripts_and_what_all_share():
    assert len(list(ROOT.glob("*.py"))) <= 13
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_names_of_attacks_and_defences_stand_in_the_tables_alone():
    """No branch on a name: no comparison with one outside the rooms of attacks and defences."""
    names = {*ATTACKS, *DEFENCES}
    for path in modules():
        if path.parts[0] in ("attacks", "defences"):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Compare):
                compared = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} & names
                assert compared <= {"FT"}, f"{path}, line {node.lineno} branches on {compared}"


FIRST_THING_TORCH_SEES = """
import importlib, os, sys

class BeforeTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, BeforeTorch())
for module in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(module)
        import torch  # Later, in a function.
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_script_says_how_threads_wait_before_torch_is_loaded():
    files = [path for path in modules() if '__name__ == "__main__"' in (ROOT / path).read_text()]
    files.remove(Path("predict.py"))  # Which needs nothing of this project.
    scripts = [str(path.with_suffix("")).replace("/", ".") for path in files]
    assert len(scripts) > 15

    def seen(modules: list[str], **wish: str) -> list[str]:
        free = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        command = [sys.executable, "-c", FIRST_THING_TORCH_SEES, *modules]
        done = subprocess.run(command, cwd=ROOT, env=free | wish, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert dict(zip(scripts, seen(scripts), strict=True)) == dict.fromkeys(scripts, util.SPIN_COUNT)
    assert seen(scripts[:1], GOMP_SPINCOUNT="7") == ["7"]
    assert seen(scripts[:1], OMP_WAIT_POLICY="PASSIVE") == ["None"]


def test_every_file_of_the_project_is_in_a_room():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    rooms = {Path(name).parts[0].removesuffix(".py") for name in listed}
    assert rooms <= {*FLOOR, "tests", "engines"}
