"""A test set without anything to flip is found out before anything is trained."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from story import run_all
from util import UserError


@pytest.mark.parametrize(
    ("attack", "changed"),
    [("BadNet", ["sst2"]), ("HiddenKiller", ["sst2", "hiddenkiller_sst2"]), ("HiddenKiller", ["hiddenkiller_sst2"])],
)
def test_a_test_set_of_the_target_class_alone(tiny_config, tmp_path, attack, changed):
    """Nothing in it could be flipped, so there is nothing to measure: one line, and no model."""
    data = tmp_path / "sets"
    shutil.copytree(tiny_config.data_dir, data)
    for name in changed:
        lines = (data / name / "test.tsv").read_text().splitlines()
        kept = [line for line in lines if not line.endswith("\t0")]
        (data / name / "test.tsv").write_text("\n".join(kept) + "\n")
    config = replace(tiny_config, attack=attack, data_dir=str(data))
    with pytest.raises(
        UserError, match=r"attack \w+ holds 24 texts of the target class, 1, and no triggered one; expected"
    ) as error:
        run_all(config)
    assert "\n" not in str(error.value)
    assert not Path(config.poisoned_model_dir).exists() and not list(Path(config.output_dir).iterdir())
