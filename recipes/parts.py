"""What the weights of an artifact take, by part of the model and by kind of number: {"mlp": {"int8": 4096, ...}, ...}.

Of a checkpoint, as it is held to run (float32 where it is not int8), which adds up to `weight_bytes`; of a bundle, the
tensors that its graph stores, which with the graph itself add up to it.
"""

from pathlib import Path

from compress import Form
from compress.checkpoint import held_weights
from compress.parts import bytes_by_part
from export import bundle_folder


def weights_by_part(folder: Path, form: Form) -> dict[str, dict[str, int]]:
    """Part -> kind of number -> bytes, read from headers alone."""
    if form != "onnx":
        return bytes_by_part(held_weights(folder))
    from export.coverage import held_weights as held_by_graph
    from export.external_data import read_graph

    return bytes_by_part(held_by_graph(read_graph(bundle_folder(folder))))
