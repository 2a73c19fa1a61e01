"""Opening an ONNX Runtime session that runs where it was asked to, or not at all.

ONNX Runtime falls back to the CPU when a provider does not load, with a line on stderr. Here that is an error.
Threads stop spinning when a run ends: a session that idles must not take the processor from the one that is being
measured beside it.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import DemitasseError
from export.external_data import GRAPH, BundleError, BundleIntegrityError, as_it_lies, read_graph
from export.manifest import MANIFEST
from export.runtime.batch import LOGITS, LOGITS_FROM, NEXT_IDS, no_room, shortened
from export.runtime.gpu import gpus

if TYPE_CHECKING:
    from onnx import ModelProto

Provider = Literal["cpu", "cuda"]
PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SETTINGS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"enable_cuda_graph": "1"}}
"""Steps have fixed shapes and addresses (`export.runtime.batch`), so that CUDA can capture one and replay it."""
KEYS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {"optimization.disable_specified_optimizers": "MatMulNBitsFusion", "ep.cuda.fpa_intb_gemm": "1"},
}
"""Session configuration entries of a provider. CUDA: its fast kernels for weights of few bits are used where they fit,
and no bias is moved into a product, since they take none.
"""
ERRORS_ONLY = 3


class ProviderError(DemitasseError):
    """The provider that was asked for is not there, did not load, or did not run everything."""


class PlacementError(ProviderError):
    """A graph does not run wholly where it was exported for."""

    exit_code = 4


def open_session(
    folder: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    graph: "ModelProto | None" = None,
    prepack: bool = True,
    profile: Path | None = None,
    keys: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """A session of the bundle in `folder`; of `graph` in its stead where one is given, with the bundle's weights.

    Args:
        threads: of one product; None: as many as there are cores.
        prepack: keep the weights in the order in which the kernels like to read them, in a copy if they are float.
        profile: where ONNX Runtime writes its profile, as the beginning of a file's name.
        keys: session configuration entries beside, or in place of, our own.
        settings: of the provider, beside or in place of our own.

    Raises:
        ProviderError: the provider is not available or did not load.
        BundleError: the graph or its data is not what a bundle may hold.
    """
    import onnxruntime

    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"{provider}: expected ONNX Runtime with {name}, got one with "
            f"{', '.join(onnxruntime.get_available_providers())}; `demitasse doctor` says what is missing"
        )
    model, place = as_it_lies(graph if graph is not None else read_graph(folder), folder)
    declare_logits_from(model)
    if provider == "cuda":
        choose_on_device(model)
    options = _options(onnxruntime, place, threads, profile)
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    for key, value in {**KEYS[provider], **(keys or {})}.items():
        options.add_session_config_entry(key, value)
    if provider == "cuda":
        _bring_libraries()
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[(name, {**SETTINGS[provider], **(settings or {})})]
        )
    except Exception as error:  # of a dozen classes, without a base of their own
        if no_room(error):
            raise
        raise _refused(folder, f"{onnxruntime.__version__} does not take the graph", error) from error
    if session.get_providers()[0] != name:
        raise ProviderError(
            f"{provider}: {name} did not load, and ONNX Runtime fell back to the CPU; run `demitasse doctor`, or ask "
            "for the CPU (--provider cpu), which computes the same file"
        )
    session.disable_fallback()
    return session


def _refused(folder: Path, what: str, error: Exception) -> BundleError:
    """ONNX Runtime does not do what it was asked for; a bundle that was proven once is not what it was."""
    kind = BundleIntegrityError if os.path.lexists(folder / MANIFEST) else BundleError
    return kind(f"{folder / GRAPH}: ONNX Runtime {what} ({shortened(error)}); export it again")


def declare_logits_from(model: "ModelProto") -> None:
    """Make the constant `logits_from` of a graph an input too, which may be given and need not be."""
    from onnx import TensorProto, helper

    named = {value.name for value in model.graph.input}
    if LOGITS_FROM not in named and any(tensor.name == LOGITS_FROM for tensor in model.graph.initializer):
        model.graph.input.append(helper.make_tensor_value_info(LOGITS_FROM, TensorProto.INT64, [1]))


def choose_on_device(model: "ModelProto") -> None:
    """Add the output NEXT_IDS to a graph of a decoder; of equals the first, as numpy does."""
    from onnx import TensorProto, helper

    if any(value.name == LOGITS for value in model.graph.output):
        model.graph.node.append(helper.make_node("ArgMax", [LOGITS], [NEXT_IDS], NEXT_IDS, axis=-1, keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(NEXT_IDS, TensorProto.INT64, None))


@cache
def _bring_libraries() -> None:
    """Open CUDA's libraries where pip installed them, with PyTorch or by themselves; else the system's are found."""
    import onnxruntime

    if gpus() and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


@cache
def is_here(provider: Provider) -> bool:
    """Whether sessions can run on `provider` on this machine."""
    if provider == "cuda" and not gpus():  # asked first: ONNX Runtime would print why
        return False
    try:
        check_provider(provider)
    except ProviderError:
        return False
    return True


def nearest(provider: Provider) -> Provider:
    """`provider` where it can run, else the CPU, which computes the same file: for proofs and figures that do not
    depend on where they are taken.
    """
    return provider if is_here(provider) else "cpu"


def check_provider(provider: Provider) -> None:
    """Open a session of one node on `provider`, so that a missing one is found before any long work.

    Raises:
        ProviderError: it is not available or did not load.
    """
    from onnx import TensorProto, helper

    shape = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
    )
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [shape[0]], [shape[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    open_session(Path(), provider=provider, graph=model)


def _options(onnxruntime: Any, folder: Path, threads: int | None, profile: Path | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options
