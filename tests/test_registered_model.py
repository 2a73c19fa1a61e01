"""A bundle registered with MLflow: what opens it there, and a real server that keeps it, loads it and serves it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from finished_runs import finish
from ruamel.yaml import YAML

from compress.errors import DemitasseError
from export.runtime.text_model import PARAMETERS, _load_pyfunc
from recipes.engine.registered_model import LOADER, describe_model
from recipes.engine.tracking_server import LONGEST_CARD, card_of, log_report, tags_of
from recipes.formats.text_generation import GenerationRequest, generate_text

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["The old house", "She went"]


def generated(bundle: Path, prompt: str, tokens: int) -> str:
    request = GenerationRequest(bundle=bundle, prompt=prompt, tokens=tokens, sampling={}, provider=None, threads=1)
    return "".join(generate_text(request)).removesuffix("\n")


def test_prompts_in_a_table_or_a_list_give_the_texts_that_generate_gives(int8_bundle: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas makes the tables that MLflow hands over")
    model = _load_pyfunc(str(int8_bundle))
    expected = [generated(int8_bundle, prompt, 8) for prompt in PROMPTS]
    assert model.predict(PROMPTS, {"max_new_tokens": 8}) == expected
    assert model.predict(pandas.DataFrame({"prompt": PROMPTS}), {"max_new_tokens": 8}) == expected
    assert model.predict(PROMPTS[0], {"max_new_tokens": 8}) == expected[:1]
    with pytest.raises(DemitasseError, match="expected one column of prompts, got a, b"):
        model.predict(pandas.DataFrame({"a": PROMPTS, "b": PROMPTS}))
    with pytest.raises(DemitasseError, match="0 < top_p <= 1"):
        model.predict(PROMPTS, {"top_p": 2.0})
    with pytest.raises(DemitasseError, match="got tokens"):
        model.predict(PROMPTS, {"tokens": 3})


def test_the_flavor_names_what_opens_the_bundle(int8_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: its version is part of what is written")
    assert describe_model(int8_bundle, tmp_path, run_id="7")
    flavor = YAML(typ="safe").load((tmp_path / "MLmodel").read_text())
    assert flavor["flavors"]["python_function"]["loader_module"] == LOADER == _load_pyfunc.__module__
    assert {param["name"] for param in json.loads(flavor["signature"]["params"])} == set(PARAMETERS)
    assert not describe_model(tmp_path, tmp_path, run_id="7")


def test_the_tags_tell_every_gate_and_the_card_is_no_longer_than_is_kept(tmp_path: Path) -> None:
    report = finish(tmp_path / "run")
    assert tags_of(report) == {
        "verdict": "PASS",
        "artifact": report.final.key,
        "gate.perplexity": "PASS",
        "gate.weight_bytes": "PASS",
        "gate.decode_latency": "PASS",
    }
    card = card_of(report)
    assert card.startswith("# example")
    assert len(card) <= LONGEST_CARD
    long = report.model_copy(update={"name": "long " * LONGEST_CARD})
    assert len(card_of(long)) <= LONGEST_CARD


@dataclass(frozen=True)
class Server:
    port: int

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(*command: object, port: int, log: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """A server in a process group of its own, once it answers."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            list(map(str, command)), stdout=stream, stderr=stream, env=dict(environment), start_new_session=True
        )
    try:
        until = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except (URLError, OSError):
                time.sleep(0.5)
        else:
            pytest.fail(f"{command}: did not start: {log.read_text(errors='replace')[-2000:]}")
        yield Server(port)
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.thorough
@pytest.mark.alone
def test_what_is_registered_on_a_real_server_is_loaded_and_served(int8_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: nothing to log to")
    pytest.importorskip("flask", reason="only MLflow's client is installed: the whole of it has the server")
    report, expected = finish(tmp_path / "run"), [generated(int8_bundle, prompt, 8) for prompt in PROMPTS]
    port, place = free_port(), tmp_path / "server"
    place.mkdir()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # uvicorn is beside Python
    environment = os.environ | {
        "PATH": programs,
        "PYTHONPATH": paths,
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
    }
    kept = ["--backend-store-uri", f"sqlite:///{place}/kept.db", "--artifacts-destination", place / "files"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 1, *kept]
    with running(*command, port=port, log=tmp_path / "server.log", environment=environment) as server:
        logged = log_report(report, [], bundle=int8_bundle, register_as="small", tracking_uri=server.uri)
        assert logged.version == "1"
        from mlflow import MlflowClient

        version = MlflowClient(server.uri).get_model_version("small", "1")
        assert version.tags == tags_of(report)
        assert version.description == card_of(report)
        code = (
            "import json, sys, mlflow.pyfunc; model = mlflow.pyfunc.load_model('models:/small/1'); "
            "print(json.dumps(model.predict(json.loads(sys.argv[1]), params={'max_new_tokens': 8})))"
        )
        loaded = subprocess.run(
            [sys.executable, "-c", code, json.dumps(PROMPTS)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        assert json.loads(loaded.stdout.splitlines()[-1]) == expected
        other = free_port()
        serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/small/1", "--env-manager", "local"]
        with running(*serve, "-p", other, port=other, log=tmp_path / "serve.log", environment=environment):
            asked = json.dumps({"inputs": PROMPTS, "params": {"max_new_tokens": 8}}).encode()
            told = Request(f"http://127.0.0.1:{other}/invocations", asked, {"Content-Type": "application/json"})
            with urlopen(told, timeout=120) as answer:
                assert json.loads(answer.read())["predictions"] == expected
