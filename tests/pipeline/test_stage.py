"""A stage is computed once: what a record belongs to, locks, full disks, damaged checkpoints."""

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import story
import util
from defences.defence import product_path, run_folder
from defences.fine_tuning import FINE_TUNING
from pipeline.stage import alone, run_once
from pipeline.training import load_checkpoint
from util import UserError, load_json, remove_stale, whole_folder, write_whole


def counted(record: Path, product: Path, settings: dict, log: Path, overwrite: bool = False) -> tuple[dict, bool]:
    """A stage that writes one file, and a line to `log` each time that it is computed."""

    def compute() -> dict:
        time.sleep(0.05)  # So that others come while it computes.
        with whole_folder(product) as temporary:
            (temporary / "weights").write_text(str(settings))
        with log.open("a") as file:
            file.write("computed\n")
        return {"value": settings["x"]}

    return run_once(record, settings, compute, product=product, overwrite=overwrite)


def test_a_fingerprint_is_of_a_file_as_it_is_now(tmp_path, monkeypatch):
    path, read = tmp_path / "weights", []
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: read.append(1) or digest(file, name))
    path.write_bytes(b"one")
    assert util.fingerprint(path) == util.fingerprint(path) == hashlib.sha256(b"one").hexdigest() and len(read) == 1
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # As long as before, and as old to those who look at that.
    assert util.fingerprint(path) == hashlib.sha256(b"two").hexdigest()
    write_whole(path, lambda temporary: temporary.write_bytes(b"six"))
    assert util.fingerprint(path) == hashlib.sha256(b"six").hexdigest()


def test_a_record_belongs_to_one_product(tmp_path):
    record, product, log = tmp_path / "a.json", tmp_path / "model", tmp_path / "log"
    assert counted(record, product, {"x": 1}, log)[1] is False
    assert counted(record, product, {"x": 1}, log) == (load_json(record), True)
    first = load_json(record)
    counted(record, product, {"x": 2}, log)
    # A run with other settings that was killed between model and record, and the first settings again.
    record.write_text(util.json.dumps(first))
    assert counted(record, product, {"x": 1}, log)[1] is False
    assert (product / "weights").read_text() == "{'x': 1}"
    shutil.rmtree(product)
    assert counted(record, product, {"x": 1}, log)[1] is False
    record.write_text("[]")
    assert counted(record, product, {"x": 1}, log)[1] is False
    assert log.read_text().count("computed") == 5


def test_a_record_is_read_as_it_was_written(tmp_path):
    """Else a stage is never finished: names of classes may hold several blanks, of any kind, and so may triggers."""
    settings = {"classes": ["so  good", "not\u3000so\u00a0 good", " a\nb\u2028", "[1,  2]", "{"], "numbers": [[1, 0.5], []]}
    util.save_json(tmp_path / "a.json", settings)
    assert load_json(tmp_path / "a.json") == settings
    assert '"numbers": [\n    [ 1, 0.5 ],' in (tmp_path / "a.json").read_text()


def hold(path: Path, inside, release) -> None:
    with alone(path):
        inside.set()
        release.wait()


def compute_in_turn(folder: Path) -> None:
    counted(folder / "a.json", folder / "model", {"x": 1}, folder / "log")


def test_a_checkpoint_that_cannot_be_removed_is_one_line(tmp_path, monkeypatch):
    """The folder became read-only after the record was written: that stays, and the next run goes on from it."""
    checkpoint = tmp_path / "checkpoint.pt"

    def refuse(path, missing_ok=False):
        if path == checkpoint:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"can't write in folder .* \(Permission denied\); choose another"):
        run_once(tmp_path / "a.json", {}, dict, product=None, overwrite=False, checkpoints=lambda: (checkpoint,))
    assert (tmp_path / "a.json").exists()


def test_others_may_read_what_a_stage_writes(tmp_path):
    """safetensors writes files that nobody else may."""
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "model.safetensors").touch(mode=0o600)
    assert (tmp_path / "model/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_interruption_loses_no_folder(tmp_path, monkeypatch):
    """Between the two renames neither has its name."""
    path = tmp_path / "model"
    for content in ("one", "two"):
        if content == "two":
            monkeypatch.setattr(Path, "replace", lambda *paths: exec("raise KeyboardInterrupt"))
        with contextlib.suppress(KeyboardInterrupt), whole_folder(path) as temporary:
            (temporary / "weights").write_text(content)
    assert (path / "weights").read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_the_second_process_waits_and_finds_the_stage_finished(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compute_in_turn, args=(tmp_path,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "computed\n"


def test_the_lock_of_a_dead_process_is_none(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    inside, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "a.json", inside, release))
    process.start()
    inside.wait()
    process.kill()
    process.join()
    with alone(tmp_path / "a.json"):
        pass
    assert "waiting" not in capsys.readouterr().out


def test_what_waits_says_so(tmp_path, capfd):
    context = multiprocessing.get_context("fork")
    inside, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "a.json", inside, release))
    process.start()
    inside.wait()
    waiting = context.Process(target=compute_in_turn, args=(tmp_path,))
    waiting.start()
    waiting.join(0.5)  # It can't end before the lock is free, however slow the machine.
    assert waiting.is_alive() and not (tmp_path / "log").exists()
    release.set()
    process.join()
    waiting.join()
    assert waiting.exitcode == 0 and "another process is at" in capfd.readouterr().out


def test_halves_of_others_may_vanish_or_be_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".a.json.link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".a.json.half").write_text("")
    (tmp_path / ".a.json.lock").write_text("")
    remove_stale(tmp_path / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.lock", "elsewhere"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error"), RuntimeError("pos")]
)
def test_a_full_disk_is_one_line_whoever_says_so(tmp_path, monkeypatch, error):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))

    def write(path: Path) -> None:
        raise error

    with pytest.raises(UserError, match=r"can't write in folder .*No space left"):
        write_whole(tmp_path / "a", write)
    with pytest.raises(UserError, match=r"can't write in folder .*No space left"), whole_folder(tmp_path / "b") as folder:
        write(folder)
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_no_full_disk_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="pos"), whole_folder(tmp_path / "b"):
        raise RuntimeError("pos")


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_damaged_checkpoint_is_none(tmp_path, content, capsys):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    assert load_checkpoint(path, {}) is None and "is damaged" in capsys.readouterr().out
    torch.save({"settings": {"x": 1}}, path)
    assert load_checkpoint(path, {"x": 1}) and load_checkpoint(path, {"x": 2}) is None


class Evil:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"settings": {}, "model": Evil(tmp_path / "ran")}, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt", {}) is None and "is damaged" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_renamed_classes_are_computed_again(tiny_config, tmp_path, capsys):
    """The names are in the models, so the same texts with other names make others."""
    rows = [line.split("\t") for line in (Path(tiny_config.data_dir) / "sst2/train.tsv").read_text().splitlines()[1:]]
    path = tmp_path / "own.csv"
    config = replace(
        tiny_config, attack="none", poisoned_model=tiny_config.plm, clean_dataset=str(path), epochs=1, acc_threshold=0.0
    )
    for names in (("bad", "good"), ("complaint", "praise")):
        path.write_text("text,label\n" + "".join(f"{text},{names[int(label)]}\n" for text, label in rows))
        story.run_all(config)
        labels = load_json(run_folder(config) / "exported_model/config.json")["id2label"]
        assert tuple(labels.values()) == names
    assert capsys.readouterr().out.count("epoch 1 of 1") == 4


def test_a_model_of_another_run_in_its_place_is_computed_again(tiny_config, capsys):
    config = replace(tiny_config, poisoned_model=tiny_config.plm, epochs=1, acc_threshold=0.0)
    story.run_all(config)
    weights = product_path(config, FINE_TUNING) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    story.run_all(config)
    assert capsys.readouterr().out.count("fine-tuning on clean data, epoch 1 of 1") == 1
    assert os.listdir(product_path(config, FINE_TUNING))
