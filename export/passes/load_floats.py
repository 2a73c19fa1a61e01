"""The float weights take their places; a tied one is placed once.

mobius folds what it left to be computed from weights (Transpose, Concat) as it places them. A weight that is missing,
or that the graph has no place for, is an error: the graph would run all the same, and be wrong.
"""

import onnx_ir as ir

from export.passes.context import GraphPass
from export.row_tracking import WeightError


class LoadFloats(GraphPass):
    """Every initializer gets its value from the checkpoint."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        import mobius
        from onnx_ir.passes import common

        pruned = common.RemoveUnusedNodesPass()(model).modified
        floats, places = self.context.weights.floats, model.graph.initializers
        placed = {floats[name].data_ptr() for name in floats if name in places}
        lost = sorted(name for name, tensor in floats.items() if name not in places and tensor.data_ptr() not in placed)
        if lost:
            raise WeightError(f"weights that the graph has no place for: {', '.join(lost)}")
        mobius.apply_weights(model, {name: tensor for name, tensor in floats.items() if name in places})
        common.RemoveUnusedNodesPass()(model)
        empty = sorted(name for name, value in places.items() if value.const_value is None)
        if empty:
            raise WeightError(f"weights that the checkpoint does not have: {', '.join(empty)}")
        return ir.passes.PassResult(model, modified=pruned or bool(floats))
