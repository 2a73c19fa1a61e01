"""What is stored of a teacher: the plan that it is stored under, and the files that it is stored in.

    <root>/<key>/00000.safetensors ...    shards of `shard_rows` rows of T tokens, about 16 MB at most:
        ids      uint16 [J], int32 [J] over 65,536 tokens     tokens kept (`logit_sampling.py`), position after position
        p        float16 [J]                                  what each stands for
        counts   uint8 or uint16 [rows, P]                    how many of J belong to each position
        starts   int64 [rows + 1]                             where each row begins in J
        entropy  float32 [rows, P]   or   rest float16 [rows, P]

float16 costs a probability up to 0.05 % of itself, 1/draws included; below 6e-8 a probability becomes 0.

The key is the sha256 of all that the content depends on: the teacher's files, the rows, temperature, method, seed,
precision, layout. No student enters it. Batch and device do not either: they alter the last digits.

A file is written under a name of its own, flushed to the disk and renamed, so that one that exists is complete.

    N rows    T tokens    P = T - 1 predicted positions    J tokens kept    R rows of a shard
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from compress.digests import digest_of, seed_of
from compress.distillation.logit_sampling import METHODS, Method, SampledLogits
from compress.stage import StageError
from compress.training.losses import Head

FORMAT = 1
SHARD_BYTES = 2**24
MOST = 2**16 - 2
"""Tokens per position that `counts` can tell."""
TEMPORARY = ".tmp"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is stored and how it is laid out: all that the key is made of."""

    teacher: str
    """Digest of its files."""
    rows: str
    """Digest of the rows: type, shape and bytes."""
    count: int
    """N."""
    length: int
    """T."""
    vocabulary: int
    temperature: float
    method: str
    """By name in METHODS."""
    amount: int
    """Draws, or k."""
    seed: int | None
    """None where nothing is drawn."""
    precision: str
    """Of the teacher's forward pass, such as "float32" or "bfloat16 autocast"."""
    shard_rows: int
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        teacher: PreTrainedModel,
        rows_NT: NDArray[np.int64],
        *,
        teacher_digest: str,
        method: Mapping[str, int],
        temperature: float,
        seed: int,
    ) -> "Plan":
        """The plan of what `teacher` says of `rows_NT`.

        Raises:
            StageError: `method` is not one entry of METHODS with an amount of 1 to MOST.
        """
        name, amount = next(iter(method.items()), ("", 0))
        if len(method) != 1 or name not in METHODS or not 1 <= amount <= MOST:
            raise StageError(
                f"distill: stored teacher: expected one of {', '.join(METHODS)} with a number of tokens from 1 to "
                f"{MOST}, such as {{sampled: 50}}, got {dict(method)}"
            )
        count, length = rows_NT.shape
        vocabulary = len(Head.of(teacher).weight_VD)
        digest = hashlib.sha256(f"{rows_NT.dtype.str} {rows_NT.shape} ".encode())
        digest.update(np.ascontiguousarray(rows_NT).data)
        most = (length - 1) * (min(amount, vocabulary) * (_ids_type(vocabulary).itemsize + 2) + 6)
        return cls(
            teacher=teacher_digest,
            rows=digest.hexdigest(),
            count=count,
            length=length,
            vocabulary=vocabulary,
            temperature=float(temperature),
            method=name,
            amount=amount,
            seed=seed if METHODS[name].draws else None,
            precision=_precision(teacher),
            shard_rows=max(1, SHARD_BYTES // most),
        )

    @property
    def key(self) -> str:
        """sha256 (hex) of the canonical JSON of all fields."""
        return digest_of(dataclasses.asdict(self))

    @property
    def how(self) -> Method:
        return METHODS[self.method]

    @property
    def shards(self) -> dict[str, slice]:
        """Name of each shard's file, and its rows."""
        starts = range(0, self.count, self.shard_rows)
        return {
            f"{number:05}.safetensors": slice(start, min(start + self.shard_rows, self.count))
            for number, start in enumerate(starts)
        }

    def offsets(self, rows: slice) -> Tensor:
        """The offsets [rows, P] at which a shard's positions are sampled: float64, by the seed and its first row."""
        generator = torch.Generator().manual_seed(seed_of(f"{self.seed}:{rows.start}"))
        return torch.rand(rows.stop - rows.start, self.length - 1, generator=generator, dtype=torch.float64)


class Shard:
    """A shard's tensors, mapped into memory and read row by row."""

    def __init__(self, file: Path, wanted: Plan, rows: slice) -> None:
        aside, shape_RP = wanted.how.aside, [rows.stop - rows.start, wanted.length - 1]
        try:
            tensors = safe_open(file, framework="numpy")
            self.starts: list[int] = tensors.get_tensor("starts").tolist()
            self.ids, self.p, self.counts, self.aside = map(tensors.get_slice, ("ids", "p", "counts", aside))
        except (SafetensorError, OSError) as error:
            raise broken(file, f"cannot be read ({error})") from error
        self.kept = self.starts[-1]
        found = [each.get_shape() for each in (self.ids, self.p, self.counts, self.aside)]
        if found != [[self.kept], [self.kept], shape_RP, shape_RP] or len(self.starts) != shape_RP[0] + 1:
            raise broken(file, f"expected {shape_RP} positions, got tensors of {found}")

    def row(self, row: int) -> tuple[NDArray[Any], ...]:
        """(ids_J, p_J, counts_P, aside_P)"""
        here = slice(self.starts[row], self.starts[row + 1])
        return self.ids[here], self.p[here], self.counts[row], self.aside[row]


def shard_tensors(pieces: Iterable[SampledLogits], wanted: Plan, rows: slice) -> dict[str, NDArray[Any]]:
    """The tensors of a shard."""
    shape_RP = rows.stop - rows.start, wanted.length - 1
    types: tuple[np.dtype[Any], ...] = (
        _ids_type(wanted.vocabulary),
        np.dtype(np.float16),
        np.dtype(np.uint8 if wanted.amount < 255 else np.uint16),
        np.dtype(np.float32 if wanted.how.aside == "entropy" else np.float16),
    )
    narrow = [
        [
            tensor.cpu().numpy().astype(dtype)
            for tensor, dtype in zip((kept.ids_J, kept.p_J, kept.counts_N, kept.aside_N), types, strict=True)
        ]
        for kept in pieces
    ]
    ids_J, p_J, counts_N, aside_N = (np.concatenate(parts) for parts in zip(*narrow, strict=True))
    counts_RP = counts_N.reshape(shape_RP)
    starts = np.concatenate([[0], counts_RP.sum(1, dtype=np.int64).cumsum()])
    return {"ids": ids_J, "p": p_J, "counts": counts_RP, "starts": starts, wanted.how.aside: aside_N.reshape(shape_RP)}


def _ids_type(vocabulary: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)


def _precision(teacher: PreTrainedModel) -> str:
    device = teacher.device.type
    if torch.is_autocast_enabled(device):
        return f"{torch.get_autocast_dtype(device)} autocast".removeprefix("torch.")
    return str(teacher.dtype).removeprefix("torch.")


def write_once(file: Path, content: bytes) -> None:
    """Put a file in its place, complete and on the disk; where another was first, that one stays."""
    temporary = file.with_name(f"{file.name}.{uuid4().hex}{TEMPORARY}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    with suppress(FileNotFoundError):  # swept by one who was done with the whole store, and so with this file
        if file.exists():
            temporary.unlink()
        else:
            temporary.replace(file)
    descriptor = os.open(file.parent, os.O_RDONLY)
    with suppress(OSError):  # not every file system can flush a folder
        os.fsync(descriptor)
    os.close(descriptor)


def broken(file: Path, what: str) -> StageError:
    return StageError(f"{file}: {what}; delete the folder {file.parent} and run again to store the teacher anew")
