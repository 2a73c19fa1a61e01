"""The processes of a stage as workers of Ray Train, so that a cluster that exists can be used as it is.

    --launcher "ray"                       two workers on this machine's processors
    --launcher "ray --workers 8 --gpu --address auto"

    python -m recipes.engine.ray_workers [--workers N] [--gpu] [--address ADDRESS] FOLDER

Each worker is what torchrun would start (`worker.py`), inside of a TorchTrainer, which tells it which one it is and
opens the group. All machines of the cluster must share the run's folder and have demitasse installed.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.runs.processes import search_path

INSTALL = "expected Ray Train; install it with pip install 'demitasse[ray]'"


def main() -> None:
    """Run the request in a folder on workers of a cluster; exits with 1 where one of them failed."""
    parser = argparse.ArgumentParser(prog="ray", description="Options of --launcher ray.")
    parser.add_argument("--workers", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--gpu", action="store_true", help="a GPU each")
    parser.add_argument("--address", help="of the cluster, such as auto; left out: a cluster on this machine alone")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    try:
        import ray
        from ray.train import ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        sys.exit(f"error: {INSTALL}")
    variables = {"PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"}
    ray.init(address=asked.address, runtime_env={"env_vars": variables}, log_to_driver=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"folder": str(asked.folder.absolute())},
        scaling_config=ScalingConfig(num_workers=asked.workers, use_gpu=asked.gpu),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if asked.gpu else "gloo"),
    )
    try:
        trainer.fit()
    except Exception as error:  # the workers have told what went wrong; Ray wraps that in errors of its own
        sys.exit(f"error: {error}".splitlines()[0])
    finally:
        ray.shutdown()


def _work(config: Mapping[str, Any]) -> None:
    from recipes.engine.worker import work

    code = work(Path(config["folder"]))
    if code:
        raise RuntimeError(f"a worker ended with {code}")


if __name__ == "__main__":
    main()
