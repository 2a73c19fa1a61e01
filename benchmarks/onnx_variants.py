"""ONNX Runtime: our bundle, what torch.onnx.export gives, and onnxruntime-genai over its own or our folder.

    Demitasse      the bundle in our runtime; the cache is bound once and written in place
    TorchExport    the graph of torch.onnx.export (see torch_export.py), its cache an input and an output of each run,
                   concatenated by the graph; bound through IO binding, so that nothing else is copied
    Genai          a folder with genai_config.json in onnxruntime-genai's own runtime

All with the threads they are told, and, where the session is opened here, with ONNX Runtime's own setting that keeps
idle threads from spinning; onnxruntime-genai opens its own session, with its own defaults. It cannot rewind several
rows, so there each block of steps goes on from the last, a few tokens deeper in the context; and it stops at an
end-of-text token, so the vocabulary's last id stands in its place.

On CUDA both capture a step as a CUDA graph or not, as `cuda_graph` says. Both choose the next token on the GPU.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.worker import Ids, Logits
from export.runtime.model import BundleConfig, OnnxCausalLM
from export.runtime.session import PROVIDERS, Provider, open_session

TURNS_WITHOUT_REWIND = 16


def likeliest(logits_BV: Logits) -> Ids:
    next_B: Ids = logits_BV.argmax(axis=-1)
    return next_B


class Demitasse:
    """Our bundle in our runtime; with `keys` of the session beside our own."""

    def __init__(
        self,
        folder: Path,
        threads: int,
        device: str,
        *,
        keys: Mapping[str, str] | None = None,
        cuda_graph: bool = True,
    ) -> None:
        provider: Provider = "cuda" if device == "cuda" else "cpu"
        if keys is None and cuda_graph:
            self.model = OnnxCausalLM.open(folder, provider=provider, threads=threads)
        else:
            settings = {} if cuda_graph else {"enable_cuda_graph": "0"}
            session = open_session(folder, provider=provider, threads=threads, keys=keys, settings=settings)
            self.model = OnnxCausalLM(session, BundleConfig.read(folder), provider=provider)
        self.batch: Any = None

    def read(self, ids_BT: Ids, room: int) -> Ids:
        rows, self.prompt = ids_BT.shape
        if self.batch is None or (self.batch.rows, self.batch.capacity) != (rows, self.prompt + room):
            self.batch = None  # the old cache is freed before the new one is allocated
            self.batch = self.model.new_batch(rows, self.prompt + room)
        counts_B = np.full(rows, self.prompt, dtype=np.int64)
        self.batch.read(ids_BT, counts_B)
        next_B: Ids = self.batch.likeliest()
        return next_B

    def step(self, next_B: Ids) -> Ids:
        self.batch.append(next_B)
        next_B = self.batch.likeliest()
        return next_B

    def rewind(self) -> None:
        self.batch.rewind(self.prompt)

    def score(self, ids_BT: Ids) -> Iterator[Logits]:
        batch = self.model.new_batch(*ids_BT.shape)
        for next_B in ids_BT.T:
            yield batch.step(next_B)


class TorchExport:
    """A graph with one past and one present per layer and side, concatenated inside."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.device = device
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=[PROVIDERS[device]])
        self.session.disable_fallback()
        self.pasts = [value for value in self.session.get_inputs() if value.name.startswith("past.")]
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.cache: list[Any] = []

    def read(self, ids_BT: Ids, room: int) -> Ids:
        self._forget(len(ids_BT))
        next_B = likeliest(self._run(ids_BT))
        self.prompt = self.length, self.cache
        return next_B

    def step(self, next_B: Ids) -> Ids:
        return likeliest(self._run(next_B[:, None]))

    def rewind(self) -> None:
        self.length, self.cache = self.prompt

    def score(self, ids_BT: Ids) -> Iterator[Logits]:
        self._forget(len(ids_BT))
        for next_B in ids_BT.T:
            yield self._run(next_B[:, None])

    def _forget(self, rows: int) -> None:
        self.length = 0
        self.cache = [
            onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((rows, past.shape[1], 0, past.shape[3]), np.float32), self.device, 0
            )
            for past in self.pasts
        ]

    def _run(self, ids_BT: Ids) -> Logits:
        """Logits (B, V) of the last position."""
        rows, tokens = ids_BT.shape
        position_T = np.arange(self.length, self.length + tokens, dtype=np.int64)
        positions_BT = np.ascontiguousarray(np.broadcast_to(position_T, (rows, tokens)))
        binding = self.session.io_binding()
        for name, array in {"input_ids": np.ascontiguousarray(ids_BT), "position_ids": positions_BT}.items():
            if name in self.inputs:
                binding.bind_cpu_input(name, array)
        for past, value in zip(self.pasts, self.cache, strict=True):
            binding.bind_ortvalue_input(past.name, value)
        binding.bind_output("logits", "cpu")
        for past in self.pasts:
            binding.bind_output(past.name.replace("past.", "present."), self.device, 0)
        self.session.run_with_iobinding(binding)
        logits, *self.cache = binding.get_outputs()
        self.length += tokens
        last_BV: Logits = logits.numpy()[:, -1]
        return last_BV


class Genai:
    """A folder in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int, device: str, *, cuda_graph: bool = False) -> None:
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        about = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = {"decoder": {"session_options": options}, "eos_token_id": about["vocab_size"] - 1}
        config.overlay(json.dumps({"model": decoder}))
        self.context = int(about["context_length"])
        if device == "cpu":
            config.clear_providers()
        else:
            config.set_provider_option("cuda", "enable_cuda_graph", "1" if cuda_graph else "0")
        self.model = onnxruntime_genai.Model(config)
        self.generator: Any = None

    def read(self, ids_BT: Ids, room: int) -> Ids:
        self.rows, self.prompt = rows, _ = ids_BT.shape
        room = (room if rows == 1 else room * TURNS_WITHOUT_REWIND) + 1  # it counts the token that comes next too
        self.generator = None  # the old cache is freed before the new one is allocated
        self.generator = self._generator(rows, self.prompt + room)
        self.generator.append_tokens(ids_BT.astype(np.int32))
        self.rewound = False
        return self._next()

    def step(self, next_B: Ids) -> Ids:
        if self.rewound:
            self.generator.append_tokens(next_B[:, None].astype(np.int32))
            self.rewound = False
        return self._next()

    def rewind(self) -> None:
        if self.rows == 1:
            self.generator.rewind_to(self.prompt)
            self.rewound = True

    def score(self, ids_BT: Ids) -> Iterator[Logits]:
        """Each row with a generator of its own: several rows take tokens once only."""
        rows, tokens = ids_BT.shape
        generators = [self._generator(1, tokens + 1) for _ in range(rows)]
        for next_B in ids_BT.T:
            for generator, token in zip(generators, next_B, strict=True):
                generator.append_tokens(np.asarray([[token]], dtype=np.int32))
            yield np.stack([np.asarray(generator.get_logits()).reshape(-1) for generator in generators])

    def _generator(self, rows: int, capacity: int) -> Any:
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(batch_size=rows, max_length=min(self.context, capacity), do_sample=False)
        return self.genai.Generator(self.model, params)

    def _next(self) -> Ids:
        self.generator.generate_next_token()
        next_B: Ids = np.asarray(self.generator.get_next_tokens()).astype(np.int64)
        return next_B
