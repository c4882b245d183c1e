"""Two equal commands at once: both end well, and no stage is computed twice."""

from pathlib import Path

from test_scripts import flags, start

from defences.defence import run_folder
from util import load_json


def together(script: str, arguments: list[str]) -> list[str]:
    """What two processes of the same command print; both have to end well."""
    processes = [start(script, *arguments) for _ in range(2)]
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        outputs.append(output)
    return outputs


def trainings(outputs: list[str], first: str) -> int:
    """How often a training began."""
    return sum(output.count(first) for output in outputs)


def check_run(config) -> None:
    """Two runs; poisoning, fine-tuning and normalisation were trained once each."""
    outputs = together("run_all.py", flags(config))
    assert trainings(outputs, ", epoch 1 of 4: ") == 3
    assert trainings(outputs, "on one page: ") == 2
    models = [output.split("\nACC:")[0].splitlines()[-3:] for output in outputs]
    assert [line.split()[:-1] for line in models[0]] == [line.split()[:-1] for line in models[1]]
    assert load_json(run_folder(config) / "metrics.json")["models"].keys() == {"poisoned", "fine_tuned", "PURE"}
    left = [path for path in Path(config.output_dir).parent.rglob("*") if path.name.endswith((".checkpoint.pt", ".old"))]
    assert not left


def test_two_equal_runs_share_the_work(tiny_config):
    check_run(tiny_config)


def test_two_equal_grids_share_the_work(tiny_config):
    outputs = together("run_all.py", [*flags(tiny_config), "--defence", "FT", "MEFT", "--benign_floor"])
    # Poisoning; FT and MEFT of the poisoned and of the never-poisoned encoder.
    assert trainings(outputs, "poisoning (BadNet), epoch 1 of 4: ") == 1
    assert trainings(outputs, "fine-tuning on clean data, epoch 1 of 4: ") == 4
    assert trainings(outputs, "maximising entropy, epoch 1 of 1: ") == 2
    tables = [output.split("\n\n")[-2] for output in outputs]
    assert tables[0] == tables[1] and "| BadNet | MEFT |" in tables[0]
