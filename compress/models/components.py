"""Which part of a model a tensor belongs to, told by its name, and what the weights of each part take.

    embeddings   tokens and learned positions; a head that is tied to them is counted here, once
    attention    queries, keys, values, output, with their biases
    mlp          the two or three matrices of a feed-forward layer, experts and their routers too
    norms        gains and biases of the normalizations, of queries and keys too
    head         the matrix that gives the scores, where it is not tied
    other        whatever has another name: tables of rotations, constants of a graph

Names are those of transformers' decoders (GPT-2, Llama, Qwen, Mistral, OPT, GPT-NeoX, GPT-Neo, Phi, Gemma), and those
that an exported graph makes of them. Not covered: a family that names its layers otherwise falls under `other`.
"""

import re
from collections.abc import Iterable

from compress.models.families import PARTS

Held = tuple[str, str, int]
"""Name of a tensor, kind of number ("float", "int8", "scales"), bytes."""


def part_of(name: str) -> str:
    """The part that a tensor of this name belongs to."""
    return next(part for part, pattern in PARTS.items() if re.search(pattern, name))


def bytes_by_part(held: Iterable[Held]) -> dict[str, dict[str, int]]:
    """Part -> kind of number -> bytes."""
    found: dict[str, dict[str, int]] = {}
    for name, number, size in held:
        sizes = found.setdefault(part_of(name), {})
        sizes[number] = sizes.get(number, 0) + size
    return found
