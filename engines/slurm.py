"""Workers as SLURM jobs, one per job: start `run_all.py` on the login node, within tmux or screen, and let it stand.

    python run_all.py --attack BadNet StyleBkd --seed 11 12 13 --engine engines/slurm.py

Jobs are asked for when there are tasks for them, and given back when there are none. The project's folder and the folders
of data, models and results must be on a file system that the nodes share. What to change first stands at the top;
docs/workers.md says more. For another batch system put its provider in place of SLURM's: https://parsl.readthedocs.io lists
them.
"""

from parsl import Config
from parsl.addresses import address_by_hostname
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import SlurmProvider

JOBS = 2  # At once.
CORES = 8  # Of each job; its worker computes with as many threads.
HOURS = 8
PARTITION = None  # That of the cluster's choice.
GPUS = None  # A number per job: 1 where there are any, for a worker has one.
OPTIONS = ""  # More lines for sbatch, as "#SBATCH --mem=16G".
ADDRESS = None  # Of the login node, as the compute nodes reach it; None: what its name stands for.
SETUP = ""  # Shell commands before a worker starts, as "module load cuda": for what the login node's environment lacks.


def config() -> Config:
    """One pool of one worker per job."""
    executor = HighThroughputExecutor(
        label="slurm",
        address=ADDRESS or address_by_hostname(),
        max_workers_per_node=1,
        cores_per_worker=CORES,
        heartbeat_period=15,
        # Seconds until a job that vanished is given up, and its task starts again in another.
        heartbeat_threshold=120,
        # A job whose time is nearly up gets no new task, and ends.
        drain_period=max(HOURS * 3600 - 3600, 60),
        # A job that fails is replaced, unless three in a row do.
        block_error_handler=windowed_error_handler,
        provider=SlurmProvider(
            partition=PARTITION,
            cores_per_node=CORES,
            gpus_per_node=GPUS,
            walltime=f"{HOURS}:00:00",
            exclusive=False,
            scheduler_options=OPTIONS,
            worker_init=SETUP,
            init_blocks=0,
            min_blocks=0,
            max_blocks=JOBS,
        ),
    )
    return Config(executors=[executor], strategy="htex_auto_scale", max_idletime=300, usage_tracking=0)
