"""A launcher of two processes: launch_two.py torch|slurm COMMAND...

They are told which they are as torchrun would (with an address to meet at) or as srun would (without one). When one
fails, the other is ended, and its exit code is the launcher's.
"""

import os
import socket
import subprocess
import sys
import time

WORLD = 2


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def variables(way: str, rank: int, port: int) -> dict[str, str]:
    """What process `rank` is told."""
    if way == "slurm":
        return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(WORLD), "SLURM_LOCALID": str(rank)}
    size = {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), **size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def main() -> int:
    way, *command = sys.argv[1:]
    port = free_port()
    started = [
        subprocess.Popen(command, env=os.environ | variables(way, rank, port) | {"OMP_NUM_THREADS": "1"})
        for rank in range(WORLD)
    ]
    while any(process.poll() is None for process in started):
        failed = [process for process in started if process.poll()]
        if failed:
            time.sleep(0.5)
            for process in started:
                process.kill()
            return failed[0].returncode
        time.sleep(0.02)
    return max(abs(process.returncode) for process in started)


if __name__ == "__main__":
    sys.exit(main())
