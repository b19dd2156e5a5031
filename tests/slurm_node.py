"""A SLURM cluster of this one machine, in a folder of its own: `slurmctld`, `slurmd` and `munged` of the distribution.

Debian: apt-get install --no-install-recommends slurmd slurmctld slurm-client munge. Root is needed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=3000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def can_start() -> bool:
    """Whether this machine has all that it takes, and is in no cluster."""
    return os.getuid() == 0 and all(map(_found, (*DAEMONS, "srun"))) and not _state()


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """While the body runs, srun, sbatch and squeue of this process and its children mean this cluster."""
    host = os.uname().nodename.partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    devices = [folder / f"gpu{number}" for number in range(2)]
    for device in devices:
        os.mknod(device, 0o020666, os.makedev(1, 3))  # as /dev/null
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, cores=os.cpu_count()))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-1] Flags=nvidia_gpu_env\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    folder.chmod(0o755)
    own = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _start("munged", "--force", f"--socket={folder}/munge.socket", *own)
        _start("slurmctld", "-i")
        _start("slurmd")
        end = time.monotonic() + 60
        while _state() != "idle":
            if time.monotonic() > end:
                raise TimeoutError((folder / "slurmctld.log").read_text()[-2000:])
            time.sleep(0.2)
        yield
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
        del os.environ["SLURM_CONF"]


def restart_agent(folder: Path) -> None:
    """kill -9 of slurmd, which is then started again."""
    os.kill(int((folder / "slurmd.pid").read_text()), signal.SIGKILL)
    _start("slurmd")


def _start(daemon: str, *arguments: str) -> None:
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # which it would keep open
    subprocess.run([_found(daemon) or daemon, *arguments], check=True, **output)


def _state() -> str:
    listed = subprocess.run(["sinfo", "--noheader", "--format=%T"], text=True, capture_output=True)
    return listed.stdout.strip()
