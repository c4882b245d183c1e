"""A SLURM cluster of this one machine, for the test of `engines/slurm.py`; it listens on the loopback address only.

    python tests/experiments/slurm_node.py start FOLDER   # prints the line that points sbatch and the others there
    python tests/experiments/slurm_node.py stop FOLDER

Needs root and Debian's packages slurm-wlm and munge; all its files are in FOLDER.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# As many CPUs as two jobs of engines/slurm.py ask for, whatever this machine has.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can't be a cluster here; empty if there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=search_path())]
    if absent:
        return f"needs SLURM (apt-get install slurm-wlm munge): no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "needs root: slurmd runs jobs as their users"


def search_path() -> str:
    """The daemons are where a user's PATH may not reach."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def start(folder: Path, cpus: int = 16, port: int = 36817) -> dict[str, str]:
    """Start the daemons; they take as long to be ready as `sinfo` is asked to wait for.

    Returns:
        Environment variables that point SLURM's commands to this cluster.
    """
    host = os.uname().nodename
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, port=port, node_port=port + 1, folder=folder, cpus=cpus))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = {"SLURM_CONF": str(configuration)}
    files = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    options = [f"--{name}={folder / path}" for name, path in files.items()]
    for command in (
        ["munged", "--force", *options, f"--log-file={folder / 'munged.log'}"],
        ["slurmctld", "-c"],
        ["slurmd", "-N", host],
    ):
        subprocess.run(
            command, env={**os.environ, **environment, "PATH": search_path()}, check=True, stdin=subprocess.DEVNULL
        )
    return environment


def stop(folder: Path) -> None:
    """End the daemons."""
    for name in ("slurmd", "slurmctld", "munged"):
        file = folder / f"{name}.pid"
        if file.exists():
            os.kill(int(file.read_text()), signal.SIGTERM)


if __name__ == "__main__":
    action, folder = sys.argv[1:]
    if why := missing():
        sys.exit(why)
    if action == "start":
        for variable, value in start(Path(folder).absolute()).items():
            print(f"export {variable}={value}")
    else:
        stop(Path(folder).absolute())
