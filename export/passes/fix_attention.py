"""Every layer's attention gets the scale and the window that transformers gives it.

    GroupQueryAttention(scale = s, local_window_size = w)      without w: a query sees all before it

mobius-onnx writes one scale for all layers (GPT-2 may divide it by the layer's number, Gemma 3 has its own), and one
window or none (GPT-Neo, Qwen, Gemma 2 and 3 have windows in some of their layers), and drops the masks that told them
apart. `local_window_size` counts the query itself, as transformers does.
"""

import onnx_ir as ir

from export.attention_facts import LAYERS, Layer, layer_of
from export.passes.context import GraphPass

WINDOW = "local_window_size"


class FixAttention(GraphPass):
    """Set `scale` and `local_window_size` of every GroupQueryAttention."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = model.meta[LAYERS]
        known = [(node, layer_of(node, layers)) for node in model.graph]
        changed = [_fix(node, layer) for node, layer in known if layer is not None]
        return ir.passes.PassResult(model, modified=any(changed))


def _fix(node: ir.Node, layer: Layer) -> bool:
    before = dict(node.attributes)
    if layer.scale is not None:
        node.attributes["scale"] = ir.AttrFloat32("scale", layer.scale)
    node.attributes.pop(WINDOW, None)
    if layer.window is not None:
        node.attributes[WINDOW] = ir.AttrInt64(WINDOW, layer.window)
    return dict(node.attributes) != before
