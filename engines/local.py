"""Workers on this machine: what `--workers N` uses, and a beginning for a configuration of your own.

    python run_all.py --attack BadNet StyleBkd --seed 11 12 13 --workers 2
    python run_all.py --attack BadNet StyleBkd --seed 11 12 13 --engine engines/local.py

docs/workers.md says when it pays; https://parsl.readthedocs.io has all the options.
"""

from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import LocalProvider


def config(workers: int = 2) -> Config:
    """One pool of worker processes; each keeps what it imported for the next task."""
    executor = HighThroughputExecutor(
        label="local",
        address="127.0.0.1",  # Nothing listens to the network,
        encrypted=True,  # and other users of this machine can't send us work.
        max_workers_per_node=workers,
        cores_per_worker=1e-3,  # No limit but the one above.
        heartbeat_period=2,  # Seconds until a killed worker is noticed.
        heartbeat_threshold=60,  # A busy machine may answer late.
        provider=LocalProvider(min_blocks=1, max_blocks=1),
        # A pool that dies is started again, unless three in a row do.
        block_error_handler=windowed_error_handler,
    )
    # Workers are started when the first period, in seconds, is over.
    return Config(executors=[executor], strategy_period=1, usage_tracking=0)
