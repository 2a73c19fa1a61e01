"""Dimensions have the names by which other programs tell what they are.

    input_ids, position_ids      batch_size, sequence_length
    attention_mask               batch_size, past_sequence_length + sequence_length
    past_key_values.N.key        batch_size, heads, past_sequence_length, width       .value alike
    present.N.key                batch_size, heads, past_sequence_length + sequence_length, width
    logits                       batch_size, sequence_length, vocabulary

They are optimum's names, which computes an output's shape from them. transformers.js makes its empty cache of the
inputs' dimensions: batch_size is the batch, any other name is 0.
"""

import onnx_ir as ir

from export.passes.context import GraphPass

BATCH, TOKENS, PAST = "batch_size", "sequence_length", "past_sequence_length"
ALL = f"{PAST} + {TOKENS}"
NAMES: dict[str, tuple[str | None, ...]] = {
    "input_ids": (BATCH, TOKENS),
    "position_ids": (BATCH, TOKENS),
    "attention_mask": (BATCH, ALL),
    "past_key_values": (BATCH, None, PAST, None),
    "present": (BATCH, None, ALL, None),
    "logits": (BATCH, TOKENS, None),
}
"""By the name of an input or output, up to its first dot; None: a number, which stays."""


class NameDimensions(GraphPass):
    """Rename the dimensions of inputs and outputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_rename(value) for value in (*model.graph.inputs, *model.graph.outputs)]
        return ir.passes.PassResult(model, modified=any(changed))


def _rename(value: ir.Value) -> bool:
    names = NAMES.get((value.name or "").partition(".")[0])
    before = value.shape
    if names is None or before is None or len(before) != len(names):
        return False
    value.shape = ir.Shape([size if isinstance(size, int) else name for size, name in zip(before, names, strict=True)])
    return value.shape != before
