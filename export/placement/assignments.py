"""Where ONNX Runtime itself puts a graph's nodes, as a session on CUDA tells once it has been opened.

    python -m export.placement.assignments ASKED.json TOLD.json

Both files hold a list, of `Asked` and of `Told` as JSON. It is a module to run and not a function to call because the
CUDA libraries that a session finds, or the stand-ins for them (`stub_libraries`), are those that the process has known
since it started.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.placement import stub_libraries

CUDA = "CUDAExecutionProvider"
COPIES = ("MemcpyFromHost", "MemcpyToHost")
LEVELS = {True: "ORT_ENABLE_ALL", False: "ORT_DISABLE_ALL"}
FATAL_ONLY = 4


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A graph whose placement is asked for."""

    model: str
    """File with the graph; its weights lie beside it."""
    optimize: bool = True
    settings: dict[str, str] = field(default_factory=dict)
    """Of the CUDA provider, such as {"enable_cuda_graph": "1"}."""
    keys: dict[str, str] = field(default_factory=dict)
    """Session configuration entries."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the session said. Nodes are (name, operator)."""

    error: str = ""
    """Why it did not open; all else is then empty."""
    cuda: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    copies: int = 0
    """Nodes that copy between devices."""
    inputs_on_host: list[str] = field(default_factory=list)
    outputs_on_host: list[str] = field(default_factory=list)


def ask(libraries: Path, questions: list[Asked], *, architecture: int = stub_libraries.ARCHITECTURE) -> list[Told]:
    """The answers of a child that finds the CUDA libraries in the folder `libraries`."""
    with TemporaryDirectory() as scratch:
        asked, told = Path(scratch) / "asked.json", Path(scratch) / "told.json"
        asked.write_text(json.dumps([asdict(question) for question in questions]), encoding="utf-8")
        stub_libraries.run_module(libraries, __name__, asked, told, architecture=architecture)
        return [_read(answer) for answer in json.loads(told.read_text(encoding="utf-8"))]


def _read(answer: dict[str, Any]) -> Told:
    nodes = {key: [tuple(node) for node in answer[key]] for key in ("cuda", "elsewhere")}
    return Told(**(answer | nodes))


def open_and_tell(asked: Asked) -> Told:
    """Open a session in this process; what it says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[asked.optimize])
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in asked.keys.items():
        options.add_session_config_entry(key, value)
    with TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        try:
            session = onnxruntime.InferenceSession(asked.model, options, providers=[(CUDA, asked.settings)])
        except Exception as error:  # of a dozen classes, without a base of their own
            return Told(error=str(error))
        return _tell(session, Path(options.optimized_model_filepath))


def _tell(session: Any, optimized: Path) -> Told:
    import onnx

    nodes: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name == CUDA] += [(node.name, node.op_type) for node in part.get_nodes()]
    graph = onnx.load(optimized, load_external_data=False).graph
    return Told(
        cuda=nodes[True],
        elsewhere=nodes[False],
        copies=sum(node.op_type in COPIES for node in graph.node),
        inputs_on_host=_on_host(session.get_inputs(), session.get_input_memory_infos()),
        outputs_on_host=_on_host(session.get_outputs(), session.get_output_memory_infos()),
    )


def _on_host(values: list[Any], places: list[Any]) -> list[str]:
    return [value.name for value, place in zip(values, places, strict=True) if place.name.startswith("Cpu")]


if __name__ == "__main__":
    questions = [Asked(**question) for question in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
    answers = [asdict(open_and_tell(question)) for question in questions]
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
