"""Where something was computed: versions and hardware, for the records."""

import importlib.metadata
import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from util import UserError

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "pandas", "scikit-learn")


def environment(device: torch.device) -> dict[str, str | int]:
    """What a result may depend on by rounding alone: name of processor or card, threads, operating system, versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # A version that was put there by hand.
            versions[package] = "unknown"
    card = {"card": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "device": device.type,
        **card,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def processor_name() -> str:
    """As the operating system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def in_own_process(function: Callable, *arguments: object) -> object:
    """What a function returns in a process that begins anew, whose peak memory is its own.

    Raises:
        UserError: the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            what = ", ".join(str(argument) for argument in arguments if not callable(argument))
            raise UserError(
                f"the process that measured {what} was killed, out of memory perhaps; choose smaller sizes"
            ) from None


def main_memory_peak() -> int:
    """Bytes of main memory that this process has held at most."""
    import resource  # Windows has none.

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
