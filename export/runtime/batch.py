"""Rows that share a run: their key-value cache, how much of it each has filled, and what is bound to the session.

The cache is allocated once and bound as input and output at the same time, so that GroupQueryAttention writes each
new key in place. A step's inputs and its logits are bound once too: ids and positions [B, 1], and a mask as long as
the cache, in which a step sets one more position per row. So a step costs the same Python work at any context, copies
nothing but its logits, and on CUDA always has the same addresses and shapes, which is what a CUDA graph needs.
There the likeliest token is chosen on the device, and the logits stay where they are until somebody asks for them.

Rows of unequal length are padded on the right, as GroupQueryAttention counts a row's tokens from the left: each later
token of a row overwrites what padding left in the cache. The graph takes rows that are padded on the left too, and
moves them (`export.passes.accept_left_padding`).

    B rows    T tokens    V vocabulary    C capacity of the cache in tokens
"""

import re
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from compress.errors import DemitasseError
from export.external_data import GRAPH, BundleIntegrityError

if TYPE_CHECKING:
    from onnxruntime import OrtValue

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Padding = Literal["left", "right"]
NUMPY_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}
LOGITS = "logits"
NEXT_IDS = "next_ids"
"""The likeliest token at each position: an output that `open_session` adds on CUDA, to choose on the device."""
LOGITS_FROM = "logits_from"
"""The first position whose logits are wanted, int64 [1]: a constant of the stored graph, 0, which `open_session`
makes an input that may be left out.
"""
TOKEN = "@"
"""Between a cache's name and the place of a token, where a graph has its tokens attend one by one."""
CAPTURES = count(1)
"""Numbers of CUDA graphs: a batch captures its own, since a graph is tied to the addresses it was captured with."""
NO_CAPTURE = "-1"


NO_ROOM = re.compile(r"bad_alloc|out of memory|[Ff]ailed to allocate")
"""How ONNX Runtime tells of memory that is not there, which is no fault of the graph's."""


def no_room(error: Exception) -> bool:
    """Whether memory was what lacked."""
    return isinstance(error, MemoryError) or NO_ROOM.search(str(error)) is not None


def shortened(error: Exception) -> str:
    """What ONNX Runtime says, in one line."""
    return " ".join(str(error).split())[:300]


class PromptError(DemitasseError):
    """A prompt cannot be run; the message says why and the way out."""


class Batch:
    """Rows with a cache of `capacity` tokens each, on the device of the session's provider."""

    cache: "dict[str, OrtValue]"
    """The output "present.<layer>.key" or ".value" -> its memory (B, heads, C, width)."""
    last: "Binding"
    """What ran last."""

    def __init__(self, session: Any, rows: int, capacity: int, device: Literal["cpu", "cuda"]) -> None:
        self.session, self.rows, self.capacity, self.device = session, rows, capacity, device
        self.length_B: Ids = np.zeros(rows, dtype=np.int64)
        self.cache = dict(self._allocate())
        self._row_B = np.arange(rows)
        self._names = {value.name for value in session.get_inputs()}
        self._has_logits_from = any(value.name == LOGITS_FROM for value in session.get_overridable_initializers())
        logits, *others = session.get_outputs()
        odd = [value.name for value in others if value.name not in {NEXT_IDS, *self.cache}]
        if logits.name != LOGITS or odd:
            raise BundleIntegrityError(
                f"{GRAPH}: expected the outputs {LOGITS} and present.<layer>.key and .value of each layer's cache, got "
                f"{(odd or [logits.name])[0]!r}; export it again"
            )
        self._vocabulary, self._dtype = int(logits.shape[-1]), NUMPY_TYPES[logits.type]
        self._step = Binding(self, _blank(rows, 1, capacity), capture=True)
        self._check: Binding | None = None

    def _allocate(self) -> "Iterator[tuple[str, OrtValue]]":
        from onnxruntime import OrtValue

        for past in self.session.get_inputs():
            if past.name.startswith("past_key_values."):
                _, heads, _, width = past.shape
                empty = np.zeros((self.rows, heads, self.capacity, width), NUMPY_TYPES[past.type])
                yield (
                    past.name.replace("past_key_values.", "present."),
                    OrtValue.ortvalue_from_numpy(empty, self.device),
                )

    def rewind(self, length_B: Ids | int) -> "Batch":
        """Go back to where each row had `length_B` tokens; 0 forgets all. What was read before stays in the cache."""
        self.length_B[:] = length_B
        self._step.inputs["attention_mask"][:] = np.arange(self.capacity) < self.length_B[:, None]
        return self

    def feed(self, ids_BT: Ids, count_B: Ids, *, logits_from: int = 0, padding: Padding = "right") -> Floats:
        """Read the `count_B` tokens of each row into an empty cache.

        Args:
            padding: on which side of a row's tokens it is.

        Returns:
            Logits (B, T - logits_from, V) of the positions from `logits_from` on; those of padding are meaningless.
        """
        first = logits_from if self._has_logits_from else 0
        self._read(ids_BT, count_B, first, padding)
        return self.last.logits()[:, logits_from - first :]

    def read(self, ids_BT: Ids, count_B: Ids) -> None:
        """The same, padded on the right, for what comes after each row's last token: see `logits` and `likeliest`."""
        first = int(count_B.min()) - 1 if self._has_logits_from else 0
        self._read(ids_BT, count_B, first, "right")

    def _read(self, ids_BT: Ids, count_B: Ids, first: int, padding: Padding) -> None:
        tokens = ids_BT.shape[1]
        place_BT = np.arange(tokens) - (tokens - count_B[:, None]) * (padding == "left")
        inputs = {
            "input_ids": np.ascontiguousarray(ids_BT),
            "attention_mask": ((place_BT >= 0) & (place_BT < count_B[:, None])).astype(np.int64),
            "position_ids": np.maximum(place_BT, 0),
        }
        self.last = Binding(self, inputs, logits_from=first)
        self.last.run()
        self._place_B = (count_B if padding == "right" else np.full_like(count_B, tokens)) - 1 - first
        self.rewind(count_B)

    def step(self, next_B: Ids) -> Floats:
        """Append one token to each row: logits (B, V), overwritten by the next step.

        Raises:
            PromptError: a row's cache is full.
        """
        self.append(next_B)
        return self.last.logits()[:, 0]

    def append(self, next_B: Ids) -> None:
        """The same, for `logits` and `likeliest`.

        Raises:
            PromptError: a row's cache is full.
        """
        if int(self.length_B.max()) >= self.capacity:
            raise PromptError(
                f"the cache is full: it holds {self.capacity} tokens; reserve more, or shorten the prompt"
            )
        inputs = self._step.inputs
        inputs["input_ids"][:, 0] = next_B
        inputs["position_ids"][:, 0] = self.length_B
        inputs["attention_mask"][self._row_B, self.length_B] = 1
        self.length_B += 1
        self.last, self._place_B = self._step, np.zeros_like(self.length_B)
        self._step.run()

    def logits(self) -> Floats:
        """Logits (B, V) after each row's last token, once something was read or appended."""
        return self.last.logits()[self._row_B, self._place_B]

    def likeliest(self) -> Ids:
        """The likeliest token (B,) there, chosen where the logits are."""
        chosen_BT = self.last.chosen()
        if chosen_BT is None:
            next_B: Ids = self.logits().argmax(axis=-1)
            return next_B
        return chosen_BT[self._row_B, self._place_B]

    def check(self, next_T: Ids, session: Any) -> Floats:
        """Append several tokens to the only row: logits (T, V) after each, overwritten by the next check.

        `rewind` takes tokens back.

        Args:
            session: of the graph that `export.runtime.check_graph` makes for T tokens.

        Raises:
            PromptError: there are more rows, or the cache has no room.
        """
        length, tokens = int(self.length_B[0]), len(next_T)
        if self.rows != 1 or length + tokens > self.capacity:
            raise PromptError(
                f"expected one row with room for {tokens} tokens, got {self.rows} with {self.capacity - length}"
            )
        mask_BC = self._step.inputs["attention_mask"]
        if self._check is None:
            self._check = Binding(self, _blank(1, tokens, 0) | {"attention_mask": mask_BC}, session=session)
        inputs = self._check.inputs
        inputs["input_ids"][0] = next_T
        inputs["position_ids"][0] = np.arange(length, length + tokens)
        mask_BC[0, length : length + tokens] = 1
        self.length_B += tokens
        self._check.run()
        return self._check.logits()[0, :]


def _blank(rows: int, tokens: int, mask: int) -> dict[str, Ids]:
    shapes = {"input_ids": tokens, "attention_mask": mask, "position_ids": tokens}
    return {name: np.zeros((rows, length), dtype=np.int64) for name, length in shapes.items()}


class Binding:
    """Runs of one shape over a batch's cache: the inputs as arrays to be written to, and the logits that come back."""

    def __init__(
        self,
        batch: Batch,
        inputs: dict[str, Ids],
        *,
        logits_from: int = 0,
        capture: bool = False,
        session: Any = None,
    ) -> None:
        from onnxruntime import OrtValue, RunOptions

        self.inputs = inputs
        self._session, self._device = session or batch.session, batch.device
        self._binding = self._session.io_binding()
        self._values = {
            name: OrtValue.ortvalue_from_numpy(array, batch.device)
            for name, array in inputs.items()
            if name in batch._names
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        if logits_from:
            self._binding.bind_ortvalue_input(LOGITS_FROM, OrtValue.ortvalue_from_numpy(np.asarray([logits_from])))
        for present, value in batch.cache.items():
            self._binding.bind_ortvalue_input(present.replace("present.", "past_key_values."), value)
        rows, tokens = inputs["input_ids"].shape
        outputs = [value.name for value in self._session.get_outputs()][1:]
        self._next: OrtValue | None = None
        if NEXT_IDS in outputs:
            outputs.remove(NEXT_IDS)
            blank_BT = np.zeros((rows, tokens - logits_from), dtype=np.int64)
            self._next = OrtValue.ortvalue_from_numpy(blank_BT, batch.device)
            self._binding.bind_ortvalue_output(NEXT_IDS, self._next)
        for name in outputs:
            self._binding.bind_ortvalue_output(name, batch.cache[name.partition(TOKEN)[0]])
        logits_BTV = np.empty((rows, tokens - logits_from, batch._vocabulary), dtype=batch._dtype)
        self._host_BTV = logits_BTV
        self._logits = OrtValue.ortvalue_from_numpy(logits_BTV, batch.device)
        self._binding.bind_ortvalue_output(LOGITS, self._logits)
        self._options = RunOptions()
        if batch.device == "cuda":
            self._options.add_run_config_entry("gpu_graph_id", str(next(CAPTURES)) if capture else NO_CAPTURE)

    def run(self) -> None:
        """Run the graph on what the inputs hold.

        Raises:
            BundleIntegrityError: ONNX Runtime cannot carry the graph out, as it could when it was proven.
        """
        if self._device == "cuda":
            for name, value in self._values.items():
                value.update_inplace(self.inputs[name])
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # of a dozen classes, without a base of their own
            if no_room(error):
                raise
            raise BundleIntegrityError(
                f"{GRAPH}: ONNX Runtime cannot run it ({shortened(error)}); export it again"
            ) from error

    def logits(self) -> Floats:
        """Logits (B, T, V) on the host, in float32."""
        logits_BTV = self._logits.numpy() if self._device == "cuda" else self._host_BTV
        return logits_BTV.astype(np.float32, copy=False)

    def chosen(self) -> Ids | None:
        """The likeliest token (B, T) at each position; None where the graph does not choose it."""
        return None if self._next is None else self._next.numpy()
