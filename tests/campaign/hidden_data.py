"""Tensors of an ONNX file that lie in other files, wherever ONNX lets one say so: `verify` and `generate` refuse a
bundle whose graph reads outside of what its manifest lists, and never read it.

The manifest is written anew after every change, so that only the graph can tell.
"""

import shutil
from pathlib import Path
from random import Random
from typing import Any

from attempt import BROKEN, INVALID, REFUSED, Finding, command
from campaign import Case
from mutated_bundles import sealed_again
from tiny import bundle

WHERES = (
    "initializer",
    "sparse values",
    "sparse indices",
    "attribute",
    "attribute list",
    "sparse attribute",
    "subgraph initializer",
    "subgraph attribute",
    "function node",
    "function default",
    "training initialization",
    "training algorithm",
)
LOCATIONS = ("../secret", "/etc/hostname", "sub/../../secret", "sub/secret", "link", "", "unlisted")


class HiddenData:
    name, count, unit, alone = "hidden", 2 * len(WHERES) * len(LOCATIONS), "graphs", False

    def prepare(self, place: Path) -> None:
        self.given = bundle(place)

    def draw(self, random: Random) -> Case:
        return {
            "where": random.choice(WHERES),
            "location": random.choice(LOCATIONS),
            "way": random.choice(("verify", "verify", "generate")),
        }

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        import onnx

        folder = place / "bundle"
        shutil.copytree(self.given, folder)
        (place / "secret").write_bytes(bytes(64))
        (folder / "sub").mkdir()
        for file in (folder / "secret", folder / "sub" / "secret"):
            file.write_bytes(bytes(64))
        (folder / "link").symlink_to("../secret")
        (folder / "unlisted").write_bytes(bytes(64))
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        _hide(model, case["where"], _tensor(case["location"]))
        onnx.save(model, folder / "model.onnx")
        sealed_again(folder, only=("model.onnx", "secret", "sub/secret"))
        arguments = (
            ["verify", "bundle"] if case["way"] == "verify" else ["generate", "bundle", "It was", "--tokens", "2"]
        )
        return command(*arguments, place=place).findings((REFUSED, INVALID, BROKEN))


def _tensor(location: str) -> Any:
    import onnx

    tensor = onnx.TensorProto(name="hidden", dims=[4], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _sparse(values: Any = None, indices: Any = None) -> Any:
    import onnx
    from onnx import helper

    values = values or helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [4], [1.0] * 4)
    if indices is None:
        indices = helper.make_tensor("hidden_indices", onnx.TensorProto.INT64, [4], [0, 1, 2, 3])
    else:
        indices.data_type = onnx.TensorProto.INT64
    return helper.make_sparse_tensor(values, indices, [8])


def _constant(tensor: Any, name: str = "hidden_output", **others: Any) -> Any:
    from onnx import helper

    return helper.make_node("Constant", [], [name], **(others or {"value": tensor}))


def _branches(tensor: Any, *, inside: str) -> Any:
    """An If whose branches hold the tensor."""
    import onnx
    from onnx import helper

    output = [helper.make_tensor_value_info("hidden_out", onnx.TensorProto.FLOAT, [4])]
    if inside == "initializer":
        nodes, initializers = [helper.make_node("Identity", ["hidden"], ["hidden_out"])], [tensor]
    else:
        nodes, initializers = [_constant(tensor, "hidden_out")], []
    branch = helper.make_graph(nodes, "branch", [], output, initializer=initializers)
    return helper.make_node("If", ["hidden_condition"], ["hidden_if"], then_branch=branch, else_branch=branch)


def _function(tensor: Any, *, default: bool) -> Any:
    """A function that holds the tensor in a node, or as the default of an attribute."""
    from onnx import helper

    node = _constant(tensor) if not default else helper.make_node("Identity", ["x"], ["hidden_output"])
    function = helper.make_function(
        "hidden.domain", "Hidden", ["x"], ["hidden_output"], [node], [helper.make_opsetid("", 20)]
    )
    if default:
        function.attribute_proto.append(helper.make_attribute("hidden", tensor))
    return function


def _hide(model: Any, where: str, tensor: Any) -> None:
    import onnx
    from onnx import helper

    graph = model.graph
    if where == "initializer":
        graph.initializer.append(tensor)
    elif where.startswith("sparse ") and where != "sparse attribute":
        graph.sparse_initializer.append(_sparse(tensor) if where == "sparse values" else _sparse(None, tensor))
    elif where in ("attribute", "attribute list", "sparse attribute"):
        node = _constant(tensor) if where != "sparse attribute" else _constant(None, sparse_value=_sparse(tensor))
        if where == "attribute list":
            node.attribute.append(helper.make_attribute("hidden_list", [tensor]))
        graph.node.append(node)
    elif where.startswith("subgraph"):
        graph.initializer.append(helper.make_tensor("hidden_condition", onnx.TensorProto.BOOL, [], [True]))
        graph.node.append(_branches(tensor, inside=where.split()[1]))
    elif where.startswith("function"):
        model.functions.append(_function(tensor, default=where == "function default"))
        model.opset_import.append(helper.make_opsetid("hidden.domain", 1))
    else:
        training = model.training_info.add()
        part = training.initialization if where == "training initialization" else training.algorithm
        part.name = "training"
        part.initializer.append(tensor)
