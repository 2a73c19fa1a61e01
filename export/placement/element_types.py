"""Types of tensors' elements, by the words of ONNX Runtime's listings: `tensor(float16)` is float16 here.

Sequences, maps and optional values keep their longer names, which no graph of ours has.
"""

BEGINNING, END = "tensor(", ")"
INTEGERS = ("int", "uint", "bool")
"""Beginnings of the types that shapes and positions are computed in."""


def shorter(listed: str) -> str:
    """`tensor(float16)` -> `float16`; anything else stays."""
    return listed.removeprefix(BEGINNING).removesuffix(END) if listed.startswith(BEGINNING) else listed


def element_type(number: int) -> str:
    """By the number that ONNX gives it: 10 -> `float16`."""
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(number).lower())


def element_number(kind: str) -> int:
    """The number that ONNX gives it: `float16` -> 10."""
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(kind.upper()))


def is_tensor(kind: str) -> bool:
    """Whether it is the type of an element, and not of a sequence or a map."""
    return "(" not in kind


def is_integer(kind: str) -> bool:
    """Whether shapes and positions may be of it."""
    return kind.startswith(INTEGERS)
