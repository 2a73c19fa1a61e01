"""export: a checkpoint becomes an ONNX bundle that ONNX Runtime runs, proven to compute what the checkpoint computes.

build      mobius-onnx gives the decoder's graph from the config         graph.py
fill       our passes place the weights, int8 ones bit for bit           passes/, row_tracking.py
write      graph, data, tokenizer, configs for other programs            tokenizer_files.py, genai.py, hub_config.py
prove      int8 values, placement and parity, on the written files       coverage.py, provider.py, parity.py
seal       manifest.json, and README.md beside it                        bundle.py, readme.py
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.loading import load_float_model
from compress.stage import Silent, StageError, StageInput, StageMetadata, Task
from compress.text import check_ids, read_documents, tokenize
from export.bundle import DATA
from export.config import CACHE_ROWS, CACHE_TOKENS, LIBRARIES, ExportConfig
from export.coverage import CoverageError, check_carried, coverage
from export.external_data import GRAPH, read_graph
from export.float_reference import float_of
from export.genai import CONFIG, genai_config, write_json
from export.graph import Decoder, build_decoder
from export.hub_config import HUB_DATA, copy_for_hub, write_configs
from export.manifest import write_manifest
from export.parity import ROWS, ParityError, check_parity
from export.passes import PassContext, apply_passes
from export.passes.context import CacheRow
from export.provider import prove_placement
from export.readme import take_sample, write_readme
from export.row_tracking import WeightError
from export.runtime.batch import LOGITS_FROM, Ids
from export.runtime.gpu import gpus
from export.runtime.session import Provider, ProviderError, nearest
from export.self_test import run_self_test, write_golden_outputs
from export.tokenizer_files import write_tokenizer
from export.torch_reference import cached_rows, take_reference
from export.triton import bundle_place, write_config

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL = "model"
"""The name under which Triton serves a bundle."""
PLACES: dict[str, Callable[[Path], Path]] = {
    "bundle": lambda out: out,
    "triton": lambda out: bundle_place(out, MODEL),
    "transformers.js": lambda out: out / "onnx",
}
"""Layout -> where in the exported folder the bundle lies."""
STEPS = 6
CHARACTERS_PER_TOKEN = 20
"""No text has more, in any tokenizer that is worth the name."""


class UnprovenError(StageError):
    """A bundle was written and failed one of its proofs: it is refused."""

    exit_code = 4


def run(config: ExportConfig, given: StageInput) -> StageMetadata:
    """Export `given.source` into `given.out`.

    Raises:
        StageError: the architecture cannot be exported.
        UnprovenError: the bundle failed one of its proofs.
    """

    assert given.source is not None
    try:
        with given.progress.task("export", STEPS) as task:
            return _export(config, given, Checkpoint(given.source), task)
    except WeightError as error:
        raise StageError(f"{given.source}: cannot be exported: {error}") from error
    except (CoverageError, ParityError, ProviderError) as error:
        raise UnprovenError(f"{given.source}: the bundle is refused: {error}") from error
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UnprovenError(f"{given.source}: the bundle is refused: ONNX Runtime does not run it ({error})") from error


def _export(config: ExportConfig, given: StageInput, checkpoint: Checkpoint, task: Task) -> StageMetadata:
    bundle = PLACES[config.layout](given.out)
    bundle.mkdir(parents=True, exist_ok=True)
    built = build_bundle(config, checkpoint, bundle, task, cache_rows=_cache_rows(config, given, checkpoint))
    here = nearest(config.provider)
    placement = prove_placement(bundle, built.graph, config.provider)
    task.advance(note=f"placement: {placement['proven']}")
    parity = _check_parity(config, given, checkpoint, bundle, built)
    task.advance(note="parity holds")
    about = {
        "parameters": checkpoint.parameters,
        "nonzero_parameters": checkpoint.layout.count_nonzero(),
        "recipe": [*given.lineage, {"kind": "export", "knobs": config.model_dump(mode="json")}],
        "provider": config.provider,
        "knobs": config.model_dump(mode="json"),
        "passes": built.passes,
        "coverage": coverage(built.graph),
        "placement": placement,
        "arithmetic": _arithmetic(built.graph, config.provider),
        "parity": parity,
        "sample": take_sample(bundle, checkpoint.tokenizer, here),
        "libraries": _versions(),
    }
    write_manifest(bundle, about)
    if config.layout == "triton":
        write_config(given.out, MODEL, built.graph, config.provider)
    if config.layout == "transformers.js":
        copy_for_hub(bundle, given.out)
    write_readme(given.out)
    task.advance(note="sealed")
    sizes = {file.name: file.stat().st_size for file in sorted(bundle.iterdir())}
    return {key: about[key] for key in ("passes", "coverage", "placement", "arithmetic", "parity")} | {"bytes": sizes}


def _arithmetic(graph: "ModelProto", provider: Provider) -> dict[str, str]:
    """Where the graph's figures were proven, and where that is still to be done."""
    here = nearest(provider)
    proven = {"proven": f"{here} {float_of(graph)}"} | ({"device": gpus()[0].name} if here == "cuda" else {})
    return proven if here == provider else proven | {"pending": provider}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A bundle whose files are written and whose proofs are still to come."""

    context: int
    """Tokens that the model can read at once."""
    passes: list[str]
    """Those that changed something."""
    graph: "ModelProto"
    """As it was read from the written file."""


def build_bundle(
    config: ExportConfig,
    checkpoint: Checkpoint,
    out: Path,
    task: Task | None = None,
    *,
    cache_rows: "Callable[[], Iterator[CacheRow]] | None" = None,
) -> Built:
    """Write a checkpoint's graph, data, tokenizer and genai_config.json into the folder `out`: everything that runs.

    It is no artifact yet: nothing is proven but that the int8 values are the checkpoint's, and there is no manifest.

    Args:
        cache_rows: what PyTorch puts into its cache on calibration text, for a cache of 8 bits.

    Raises:
        StageError: the architecture cannot be exported.
        WeightError: its weights do not fit the graph.
        CoverageError: an int8 matrix did not arrive as it was.
    """

    task = task or Silent()
    decoder = build_decoder(checkpoint, config.provider)
    task.advance(note="graph built")
    context = PassContext(
        weights=decoder.weights,
        provider=config.provider,
        block_size=config.columns,
        accuracy_level=config.level,
        cache_rows=cache_rows,
    )
    passes = apply_passes(decoder.model, context)
    if config.layout == "triton":
        _offer_logits_from(decoder)
    task.advance(note="weights placed")
    graph = _write(decoder, context, checkpoint, out, HUB_DATA if config.layout == "transformers.js" else DATA)
    task.advance(note="written")
    return Built(context=decoder.architecture.max_position_embeddings, passes=passes, graph=graph)


def _offer_logits_from(decoder: Decoder) -> None:
    """Name `logits_from` among the graph's inputs: Triton knows optional ones, and sends whole logits over the wire."""
    graph = decoder.model.graph
    if LOGITS_FROM in graph.initializers:
        graph.inputs.append(graph.initializers[LOGITS_FROM])


def _write(decoder: Decoder, context: PassContext, checkpoint: Checkpoint, out: Path, data: str) -> "ModelProto":
    """Write the graph, its data, the tokenizer and the configs; the graph as it was written."""
    onnx_ir.save(decoder.model, out / GRAPH, external_data=data)
    write_configs(checkpoint, out, data)
    write_tokenizer(checkpoint.tokenizer, checkpoint.folder, out)
    write_json(out / CONFIG, genai_config(checkpoint, decoder.architecture, decoder.model, context.provider))
    table = context.weights.quantized
    placed = (("+".join(packed.modules), table.matrix(packed.rows)) for packed in context.packed.values())
    graph = read_graph(out)
    check_carried(graph, out, table.matrices, placed)
    return graph


def _cache_rows(
    config: ExportConfig, given: StageInput, checkpoint: Checkpoint
) -> "Callable[[], Iterator[CacheRow]] | None":
    """What PyTorch puts into its cache on CACHE_ROWS rows of calibration text, if that is to be kept in 8 bits."""
    if config.cache == "float":
        return None

    def rows() -> "Iterator[CacheRow]":
        tokens = min(CACHE_TOKENS, checkpoint.context or CACHE_TOKENS)
        ids = _parity_ids(given, checkpoint, CACHE_ROWS * tokens)
        yield from cached_rows(load_float_model(checkpoint), ids.reshape(CACHE_ROWS, tokens))

    return rows


def _check_parity(
    config: ExportConfig, given: StageInput, checkpoint: Checkpoint, bundle: Path, built: Built
) -> dict[str, Any]:
    tokens, context = min(config.parity_tokens, built.context), min(config.parity_context, built.context)
    ids = _parity_ids(given, checkpoint, max(tokens * ROWS, context))
    with TemporaryDirectory(dir=given.scratch) as scratch:
        reference = take_reference(
            lambda: load_float_model(checkpoint),
            ids[: tokens * ROWS].reshape(ROWS, tokens),
            ids[-context:],
            Path(scratch),
        )
        here = nearest(config.provider)
        figures = check_parity(bundle, built.graph, reference, here)
        write_golden_outputs(bundle, reference)
    return figures | {"longest": built.context, "self_test": run_self_test(bundle, here)}


def _parity_ids(given: StageInput, checkpoint: Checkpoint, count: int) -> Ids:
    """Tokens from the start of the calibration text; a text that is too short is repeated."""

    if given.calibration_text is None:
        raise StageError("export checks its bundle on real text: give `data.calibration` (--calibration-text)")
    texts, characters = [], 0
    for text in read_documents(given.calibration_text):
        texts.append(text[: count * CHARACTERS_PER_TOKEN])
        characters += len(texts[-1])
        if characters >= count * CHARACTERS_PER_TOKEN:
            break
    ids = np.resize(np.concatenate(tokenize(texts, checkpoint.tokenizer)), count).astype(np.int64)
    check_ids(ids, checkpoint.tokenizer, checkpoint.vocabulary)
    return ids


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime or onnxruntime-gpu: a machine has one of the two
            continue
    return found
