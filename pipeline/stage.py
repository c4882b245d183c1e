"""A stage is computed once: not again if it is finished, and not twice at a time."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import filelock

from util import fingerprint_folder, load_json, said_if_unwritable, save_json, unwritable


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within the block no other process is in a block of the same path; who comes second waits, and says so.

    The operating system frees the lock of a process that dies. The lock is a file beside `path`, which stays.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"  another process is at {path}; waiting for it to end", flush=True)
            lock.acquire()
    except OSError as error:
        raise unwritable(path.parent, error) from None
    try:
        yield
    finally:
        lock.release()


def run_once(
    record: Path,
    settings: dict,
    compute: Callable[[], dict],
    *,
    product: Path | None,
    overwrite: bool,
    checkpoints: Callable[[], Iterable[Path]] = tuple,
) -> tuple[dict, bool]:
    """The record of a stage, and whether it was there already.

    Args:
        record: its JSON file, beside the product or in it.
        settings: all that the result depends on; the record's entry `settings`.
        compute: writes the product and returns the record's other entries.
        product: folder that the stage writes, whose hash is the record's entry `product`; None: the record is all there is.
        overwrite: compute it whatever is there.
        checkpoints: names files that are needed no more once there is a record; called then.
    """
    with alone(product if product == record.parent else record):
        content = finished_stage(record, settings, product)
        there = content is not None and not overwrite
        if not there:
            content = {"settings": settings, **compute()}
            if product:
                content["product"] = fingerprint_folder(product, leaving_out=(record.name,))
            save_json(record, content)
            content = load_json(record)  # As the next one reads it: the numbers of layers are text, for example.
        for checkpoint in checkpoints():
            with said_if_unwritable(checkpoint.parent):
                checkpoint.unlink(missing_ok=True)
        return content, there


def finished_stage(record: Path, settings: dict, product: Path | None) -> dict | None:
    """The record of a finished stage; None when it has to run: other settings, or its product gone or another's."""
    content = load_json(record)
    if not isinstance(content, dict) or content.get("settings") != settings:
        return None
    if product and (
        not product.exists() or content.get("product") != fingerprint_folder(product, leaving_out=(record.name,))
    ):
        return None
    return content
