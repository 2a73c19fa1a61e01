"""What lies beside a bundle that is registered, so that MLflow can open and serve it: its pyfunc flavor.

    model/MLmodel             the flavor: which code opens the bundle, and what goes in and out
    model/requirements.txt    that code, in this version, and the runtime it was proven on
    model/python_env.yaml     the same for `mlflow models serve` without --env-manager local
    model/bundle/             the bundle, every byte as it was proven

MLflow's own writer of such files needs pandas and imports the model; these are all that its reader wants.
"""

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from export.manifest import is_bundle
from export.runtime.text_model import PARAMETERS
from recipes.config.yaml_document import as_yaml

BUNDLE = "bundle"
LOADER = "export.runtime.text_model"
REQUIRES = ("demitasse", "onnxruntime-gpu", "onnxruntime", "tokenizers", "numpy")


def describe_model(bundle: Path, folder: Path, *, run_id: str) -> bool:
    """Write the files into `folder`; False where what ships is no bundle, which MLflow cannot open."""
    if not is_bundle(bundle):
        return False
    python, version = platform.python_version(), importlib.metadata.version("mlflow-skinny")
    flavor = {
        "loader_module": LOADER,
        "data": BUNDLE,
        "python_version": python,
        "env": {"virtualenv": "python_env.yaml"},
    }
    model = {
        "artifact_path": "model",
        "run_id": run_id,
        "model_uuid": uuid4().hex,
        "mlflow_version": version,
        "utc_time_created": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
        "flavors": {"python_function": flavor},
        "signature": _signature(),
    }
    environment = {"python": python, "dependencies": ["-r requirements.txt"]}
    (folder / "MLmodel").write_text(as_yaml(model), encoding="utf-8")
    (folder / "python_env.yaml").write_text(as_yaml(environment), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    return True


def _signature() -> dict[str, str]:
    params = [
        {"name": name, "type": "long" if isinstance(default, int) else "double", "default": default, "shape": None}
        for name, default in PARAMETERS.items()
    ]
    return {
        "inputs": json.dumps([{"type": "string", "required": True}]),  # a column of any name, or a list
        "outputs": json.dumps([{"type": "string", "required": True}]),
        "params": json.dumps(params),
    }


def _requirements() -> list[str]:
    found = []
    for name in REQUIRES:
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
