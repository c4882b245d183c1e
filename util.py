"""What every script shares: errors, seeds, device and precision, files that appear whole or not at all."""

import contextlib
import errno
import functools
import glob
import hashlib
import importlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Seconds to import, and a help text needs neither.
    import torch
    from accelerate import Accelerator

ARITHMETIC = {"bf16": "bf16 autocast", "no": "fp32"}
"""Names of accelerate's `mixed_precision` for people."""


SPIN_COUNT = "1000"
"""How often a thread of GNU's OpenMP, which torch has on Linux, looks for work before it sleeps. With OpenMP's own 300,000,
some milliseconds, a run of as many threads as cores crawls as soon as anything else computes there (docs/speed.md)."""

# Read when torch is loaded, so scripts import this module before it. What the user has asked for stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

SPACE_LEFT = 2**20
"""Bytes; a disk with fewer is full."""


class UserError(Exception):
    """Something the user can mend; its message is the one line they see."""


def named(where: str) -> object:
    """What "module:name" names."""
    module, name = where.split(":")
    return getattr(importlib.import_module(module), name)


class Table(Mapping):
    """Name to row. A row lies in a module of its own, which is imported when the row is asked for.

    Attributes:
        told: name to what the row stands for, in a few words.
    """

    def __init__(self, rows: dict[str, tuple[str, str]]) -> None:
        """
        Args:
            rows: name to those words, and to where the row is, "module:name".
        """
        self.told = {name: told for name, (told, _) in rows.items()}
        self.where = {name: where for name, (_, where) in rows.items()}

    def __getitem__(self, name: str) -> object:
        return named(self.where[name])

    def __contains__(self, name: object) -> bool:
        return name in self.where

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def first_line(error: Exception) -> str:
    """The first line of a library's error, for use in an error of our own."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: str) -> str:
    """A text as one line without control characters, which may do anything to a terminal; blanks stay as they are."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)


def quieten_libraries() -> None:
    """No reports and progress bars of the libraries that load models: what goes wrong is raised, and told in one line."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    disable_progress_bars()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")  # Where transformers, which takes seconds, comes later.
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        transformers_logging.disable_progress_bar()


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on standard error and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # Somebody reads only the beginning: run_all.py --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its exit.
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


def make_accelerator(device: str, precision: str) -> "Accelerator":
    """The accelerate front end for a device and an arithmetic, as `Config.device` and `Config.precision` name them.

    Raises:
        UserError: the device isn't there.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    chosen = choose_device(device)
    if precision == "auto":
        precision = "bf16" if has_native_bf16(chosen) else "fp32"
    # accelerate keeps one device per process and ignores later wishes; tests and grids change it.
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=chosen.type == "cpu")


def choose_device(device: str) -> "torch.device":
    """`auto` is CUDA, else MPS, else CPU; anything else must be there."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device} is no device; expected auto, cpu, mps, cuda or cuda:N") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise UserError(f"--device {device} isn't there: {count} CUDA devices found; try --device auto")
        return torch.device("cuda", chosen.index or 0)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps isn't there; try --device auto")
    if chosen.type not in ("cpu", "mps"):
        raise UserError(f"--device {device} is not supported; expected auto, cpu, mps, cuda or cuda:N")
    return chosen


def has_native_bf16(device: "torch.device") -> bool:
    """Whether bf16 matrix products run in hardware: they are slower than fp32 where they are emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def save_json(path: Path, content: dict) -> None:
    """Write JSON that a person can read (a list of numbers on one line), whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # A line's end is never part of a string, which has it as \n; blanks may be, several of them too.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\n *", " ", match.group()), text)
    write_whole(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def load_json(path: Path) -> dict | None:
    """A JSON file's content; None if it isn't there or isn't JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    Raises:
        UserError: the folder can't be written, or the disk is full.
    """
    with said_if_unwritable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            with said_if_unwritable(path.parent):
                write(temporary)
                to_disk(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Have a file's content on the disk before its name is: a power cut leaves the old file or the new one."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_stale(path: Path, older_than: float = 0) -> None:
    """Remove the halves that a killed run left beside `path`, if they were not touched for `older_than` seconds."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.*"):
        # Another run may remove the same, and what isn't a plain file or folder of this name is nobody's half.
        with contextlib.suppress(OSError):
            if half.suffix != ".lock" and time.time() - half.lstat().st_mtime >= older_than:
                shutil.rmtree(half) if half.is_dir() and not half.is_symlink() else half.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder to fill; it takes the place of `path` when the block ends without an exception."""
    with said_if_unwritable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path, older_than=3600)  # Younger ones may belong to another run that makes the same data.
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        with said_if_unwritable(path.parent):
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # safetensors leaves weights that their owner alone can read.
                    to_disk(file)
            with contextlib.suppress(FileNotFoundError):  # Where it was: nobody has to read while the old one is removed.
                path.rename(old)
            temporary.replace(path)
    finally:
        if old.exists() and not path.exists():  # Interrupted between the two.
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def said_if_unwritable(folder: Path) -> Iterator[None]:
    """Turn the error of a folder that can't be written, or of a full disk, into one for users.

    The libraries that write weights have errors of their own for a full disk, so that one is recognised by looking.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise unwritable(folder, error) from None
    except Exception as error:
        if shutil.disk_usage(folder).free < SPACE_LEFT:
            raise unwritable(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


def require_writable(*folders: str) -> None:
    """Find out before hours of training, and not after, whether their result can be kept."""
    for folder in folders:
        probe = Path(folder) / f".writable.{secrets.token_hex(8)}"  # Several runs, and machines, may share the folder.
        write_whole(probe, lambda temporary: None)
        probe.unlink(missing_ok=True)


def unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"can't write in folder {folder} ({error.strerror}); choose another with --output_dir, "
        "--poisoned_model_dir or --poisoned_data_dir"
    )


def fingerprint(path: Path) -> str:
    """SHA-256 of a file; one that is as it was isn't read again, since several stages of a run ask for the same weights."""
    state = path.stat()
    return digest(path.absolute(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def digest(path: Path, *state: int) -> str:
    """SHA-256 of a file in the state that `Path.stat` gives: the key by which it is kept."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_folder(folder: Path, leaving_out: tuple[str, ...] = ()) -> str:
    """SHA-256 of the names and contents of a folder's files, hidden ones and those named in `leaving_out` aside."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {str(path.relative_to(folder)): path for path in files if not path.name.startswith(".")}
    lines = [f"{name} {fingerprint(path)}" for name, path in named.items() if name not in leaving_out]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
