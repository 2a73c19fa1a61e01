"""A teacher that is run once: what it said of every training row on disk, for as many students and passes as wanted.

    produce    every rank writes its shards                     <root>/<key>/00000.safetensors ... (`teacher_shards.py`)
    finish     one writes the index: the store is complete      <root>/<key>/index.json: of each shard bytes and sha256
    targets    rows are read back in any order, as often as wanted

A killed production goes on behind the shards that are there, whoever wrote them. Offsets are drawn per shard, so that
any number of ranks writes the same bytes as one. Position t of a row is the prediction of token t + 1, so the last has
none. A row's sample is the same in every pass: unbiased over the seeds, not fresh noise each time.

    N rows    T tokens    P = T - 1 predicted positions    J tokens kept, K the most of them at one position

Not covered: removing stores that are of no use any more, teachers that change their logits after the head.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoints.json_file import read_object
from compress.digests import SEALED_LIMIT, digest_file
from compress.distillation.logit_sampling import SampledLogits
from compress.distillation.teacher_shards import TEMPORARY, Plan, Shard, broken, shard_tensors, write_once
from compress.stage import Progress, StageError, StageMetadata, Task
from compress.training.losses import CHUNK_BYTES, DenseTarget, Head, SparseTarget

INDEX = "index.json"


def produce(
    teacher: PreTrainedModel,
    rows_NT: NDArray[np.int64],
    wanted: Plan,
    folder: Path,
    *,
    batch: int,
    progress: Progress,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write those of every `world`-th shard that are not there yet, `batch` rows through the teacher at a time.

    Raises:
        StageError: the teacher's logits are not finite.
    """
    if teacher.training:
        raise ValueError("expected a teacher in evaluation mode: its dropout would be stored")
    folder.mkdir(parents=True, exist_ok=True)
    mine = dict(list(wanted.shards.items())[rank::world])
    tokens = {name: (rows.stop - rows.start) * wanted.length for name, rows in mine.items()}
    done = sum(tokens[name] for name in mine if (folder / name).exists())
    with progress.task("teacher", total=sum(tokens.values()), done=done) as task, torch.inference_mode():
        pace = _Pace(task)
        for name, rows in mine.items():
            if not (folder / name).exists():
                pieces = _said(teacher, torch.tensor(rows_NT[rows]), wanted, wanted.offsets(rows), batch, pace)
                write_once(folder / name, save(shard_tensors(pieces, wanted, rows)))


def finish(wanted: Plan, folder: Path) -> None:
    """Write the index, once every rank has written its shards.

    Raises:
        StageError: a shard is missing or is not what the plan says.
    """
    if not (folder / INDEX).exists():
        write_once(folder / INDEX, _index(wanted, folder))
    for left in folder.glob(f"*{TEMPORARY}"):  # of killed producers; one that still writes finds all files there
        left.unlink(missing_ok=True)


def _index(wanted: Plan, folder: Path) -> bytes:
    shards: dict[str, dict[str, Any]] = {}
    kept = 0
    for name, rows in wanted.shards.items():
        kept += Shard(folder / name, wanted, rows).kept
        shards[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest_file(folder / name)}
    index = {
        "plan": dataclasses.asdict(wanted),
        "shards": shards,
        "positions": wanted.count * (wanted.length - 1),
        "kept": kept,
        "bytes": sum(entry["bytes"] for entry in shards.values()),
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


class StoredTeacher:
    """A complete store, open for reading.

    Raises:
        StageError: it is not what the plan says, or was changed since it was written.
    """

    def __init__(self, folder: Path, wanted: Plan, *, reused: bool = False, hashes: bool = True) -> None:
        self.folder, self.plan, self.reused = folder, wanted, reused
        self.index = _read_index(folder, wanted)
        for name, entry in self.index["shards"].items():
            _check(folder / name, entry, hashes)
        self._shards = [Shard(folder / name, wanted, rows) for name, rows in wanted.shards.items()]

    @classmethod
    def obtain(
        cls,
        teacher: PreTrainedModel,
        rows_NT: NDArray[np.int64],
        *,
        root: Path,
        teacher_digest: str,
        method: Mapping[str, int],
        temperature: float,
        seed: int,
        batch: int,
        progress: Progress,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] | None = None,
    ) -> "StoredTeacher":
        """What this teacher said of these rows, from below `root`; the teacher is run only where that is not there yet.

        Args:
            teacher: ends in one linear head over its last hidden states; in evaluation mode.
            rows_NT: token ids, int64.
            teacher_digest: of the files that the teacher was loaded from.
            method: {"sampled": draws} or {"top_k": k}.
            batch: rows through the teacher at a time; with the device it alters the last digits, and no key.
            rank, world: this process and how many share the work; all of them must call this.
            barrier: returns once every process has called it; needed where `world` is above 1.

        Raises:
            StageError: `method` is none, the teacher's logits are not finite, or what is stored is broken.
        """
        if world > 1 and barrier is None:
            raise ValueError(f"expected a barrier for {world} processes, got none")
        wanted = Plan.of(
            teacher, rows_NT, teacher_digest=teacher_digest, method=method, temperature=temperature, seed=seed
        )
        folder = root / wanted.key
        reused = (folder / INDEX).exists()
        if not reused:
            produce(teacher, rows_NT, wanted, folder, batch=batch, progress=progress, rank=rank, world=world)
        wait = barrier or (lambda: None)
        wait()
        if rank == 0:
            finish(wanted, folder)
        wait()
        return cls(folder, wanted, reused=reused, hashes=rank == 0 and reused)

    def targets(self, rows_B: Tensor) -> SparseTarget:
        """What the teacher said at the B * P positions of rows B (int64), row after row; on the CPU."""
        read = [self._row(row) for row in rows_B.tolist()]
        ids_J, p_J, counts_BP, aside_BP = (np.concatenate(parts) for parts in zip(*read, strict=True))
        there_NK = np.arange(max(1, counts_BP.max())) < counts_BP[:, None]
        ids_NK, p_NK = np.zeros(there_NK.shape, np.int64), np.zeros(there_NK.shape, np.float32)
        ids_NK[there_NK], p_NK[there_NK] = ids_J, p_J
        aside_N = torch.from_numpy(aside_BP.astype(np.float32))
        kept = torch.from_numpy(ids_NK), torch.from_numpy(p_NK)
        return SparseTarget(*kept, **{f"{self.plan.how.aside}_N": aside_N})

    def metadata(self) -> StageMetadata:
        """What a report says of it."""
        positions, size = self.index["positions"], self.index["bytes"]
        return {
            "key": self.plan.key,
            "method": {self.plan.method: self.plan.amount},
            "bias": self.plan.how.bias,
            "reused": self.reused,
            "positions": positions,
            "bytes": size,
            "bytes_per_token": size / positions,
            "kept_per_token": self.index["kept"] / positions,
        }

    def _row(self, row: int) -> tuple[NDArray[Any], ...]:
        if not 0 <= row < self.plan.count:
            raise IndexError(f"{self.folder}: expected a row below {self.plan.count}, got {row}")
        return self._shards[row // self.plan.shard_rows].row(row % self.plan.shard_rows)


class _Pace:
    """Tells a task how far the teacher is and how fast."""

    def __init__(self, task: Task) -> None:
        self.task, self.since, self.tokens = task, time.monotonic(), 0

    def advance(self, tokens: int) -> None:
        self.tokens += tokens
        self.task.advance(tokens, f"{self.tokens / max(time.monotonic() - self.since, 1e-9):,.0f} tokens/s")


def _said(
    teacher: PreTrainedModel, ids_RT: Tensor, wanted: Plan, offsets_RP: Tensor, batch: int, pace: _Pace
) -> Iterator[SampledLogits]:
    """What is kept of rows R, piece by piece; the head is taken to some positions at a time."""
    head, most = Head.of(teacher), CHUNK_BYTES.get(teacher.device.type, CHUNK_BYTES["cuda"])
    size = max(1, most // (4 * wanted.vocabulary))
    for ids_BT, offsets_BP in zip(ids_RT.split(batch), offsets_RP.split(batch), strict=True):
        hidden_BTD = teacher.base_model(input_ids=ids_BT.to(teacher.device), use_cache=False).last_hidden_state
        pieces = zip(hidden_BTD[:, :-1].flatten(0, 1).split(size), offsets_BP.flatten().split(size), strict=True)
        for hidden_ND, offsets_N in pieces:
            log_p_NV = DenseTarget(hidden_ND, head).log_p(wanted.temperature)
            kept = wanted.how.keep(log_p_NV, wanted.amount, offsets_N)
            if not kept.aside_N.isfinite().all():
                raise StageError(
                    f"distill: expected finite logits of the teacher, got NaN or infinity in {wanted.precision}; "
                    "run it in another precision, such as float32"
                )
            yield kept
        pace.advance(ids_BT.numel())


def _read_index(folder: Path, wanted: Plan) -> dict[str, Any]:
    try:
        index: dict[str, Any] = read_object(folder / INDEX, limit=SEALED_LIMIT)
        fits = index["plan"] == dataclasses.asdict(wanted) and list(index["shards"]) == list(wanted.shards)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise broken(folder / INDEX, f"cannot be read ({error})") from error
    if not fits:
        raise broken(folder / INDEX, "says other than what it is stored under")
    return index


def _check(file: Path, entry: Mapping[str, Any], hashes: bool) -> None:
    if not file.is_file():
        raise broken(file, "is missing")
    if file.stat().st_size != entry["bytes"]:
        raise broken(file, f"expected {entry['bytes']} bytes, got {file.stat().st_size}")
    if hashes and digest_file(file) != entry["sha256"]:
        raise broken(file, f"was changed: expected sha256 {entry['sha256'][:12]}...")
