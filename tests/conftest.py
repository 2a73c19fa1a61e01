"""Tiny checkpoints and texts, made once per run: real architectures, real tokenizers, random weights."""

import gc
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from exported import Exported, exported, quantized, sharpened
from filelock import FileLock

if TYPE_CHECKING:
    from evaluation.report import Report

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Of PyTorch in this process: workers share the cores between them."""
if THREADS == 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 320
CONTEXT = 128
SHORT = 64
"""Context of every family but the first two."""
PLAIN: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": SHORT,
    "pad_token_id": None,
}
GROUPED: dict[str, Any] = {**PLAIN, "num_key_value_heads": 2}
NAMED_LIKE_GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": SHORT}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": CONTEXT},
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    },
    "apertus": GROUPED,
    "arcee": GROUPED,
    "bert": {**PLAIN, "is_decoder": True, "pad_token_id": 0},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": {**NAMED_LIKE_GPT2, "n_embd": 128, "n_head": 4, "rotary_dim": 16},
    "cohere": {**GROUPED, "logit_scale": 0.3},
    "cohere2": {**GROUPED, "head_dim": 16, "logit_scale": 0.3},
    "cwm": GROUPED,
    "ernie4_5": {**GROUPED, "head_dim": 16},
    "exaone4": GROUPED,
    "falcon": {key: value for key, value in PLAIN.items() if key != "intermediate_size"},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 32},
    "gemma3_text": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 32},
    "glm": {**GROUPED, "head_dim": 32},
    "glm4": {**GROUPED, "head_dim": 32},
    "gpt_bigcode": NAMED_LIKE_GPT2,
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": SHORT},
    "gpt_neox": PLAIN,
    "gpt_oss": {**GROUPED, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": {**NAMED_LIKE_GPT2, "rotary_dim": 16},
    "granite": {
        **GROUPED,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.1,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.3,
    },
    "granitemoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": {**GROUPED, "head_dim": 16},
    "llama4_text": {**GROUPED, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 96},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2},
    "ministral": {**GROUPED, "head_dim": 16},
    "ministral3": {**GROUPED, "head_dim": 16},
    "mistral": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": SHORT},
    "nanochat": GROUPED,
    "nemotron": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": NAMED_LIKE_GPT2,
    "opt": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "max_position_embeddings": SHORT,
        "word_embed_proj_dim": 64,
    },
    "phi": PLAIN,
    "phi3": GROUPED,
    "qwen2": GROUPED,
    "qwen2_moe": {
        **GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3": {**GROUPED, "head_dim": 16},
    "qwen3_moe": {
        **GROUPED,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "context_length": SHORT},
    "seed_oss": {**GROUPED, "head_dim": 16},
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": {**GROUPED, "sliding_window": None},
}


Demitasse = Callable[..., tuple[int, str, str]]


@pytest.fixture
def demitasse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Demitasse:
    """Run a command in this process: its exit code, standard output and standard error."""
    from recipes.cli import app as cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["demitasse", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    import torch

    torch.set_num_threads(THREADS)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """What is loaded by now stays: who collects garbage, as the Trainer does after every training, passes it by."""
    gc.freeze()


Share = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Share:
    """`shared("bundle", make)`: the path that `make(path)` filled, once for all workers. Never write into it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        path, unfinished = root / name, root / f"{name}.unfinished"
        with FileLock(root / f"{name}.lock"):
            if not path.exists():
                make(unfinished)
                unfinished.rename(path)
        return path

    return get


@pytest.fixture(scope="session")
def text_file(shared: Share) -> Path:
    """About 60 kB of English in a dozen documents. Shared."""

    def write(file: Path) -> None:
        novels = (ROOT / "recipes" / "data" / "novels" / "valid.txt").read_text(encoding="utf-8")
        paragraphs = [line for line in novels.splitlines() if len(line) > 200][:120]
        documents = ["\n".join(paragraphs[start : start + 10]) for start in range(0, len(paragraphs), 10)]
        file.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")

    return shared("novels.txt", write)


@pytest.fixture(scope="session")
def short_text(shared: Share, text_file: Path) -> Path:
    """The first two documents of it, for who trains a few steps: tokenizing takes longer than a step. Shared."""

    def write(file: Path) -> None:
        documents = text_file.read_text(encoding="utf-8").split("<|endoftext|>")
        file.write_text("<|endoftext|>".join(documents[:2]), encoding="utf-8")

    return shared("short.txt", write)


@pytest.fixture(scope="session")
def tokenizer_files(shared: Share, text_file: Path) -> Path:
    """The tokenizer of every tiny checkpoint. Shared."""

    def train(folder: Path) -> None:
        from compress.training.tokenizer import train_tokenizer

        train_tokenizer([text_file.read_text(encoding="utf-8")], VOCABULARY).save_pretrained(folder)

    return shared("tokenizer", train)


@pytest.fixture(scope="session")
def shared_checkpoint(shared: Share, tokenizer_files: Path) -> Callable[..., Path]:
    """`shared_checkpoint("gpt2", seed=1, n_layer=2)`: a dense checkpoint of a tiny random model. Shared."""

    def make(model_type: str = "gpt2", *, seed: int = 0, **changes: Any) -> Path:
        told = json.dumps([seed, changes], sort_keys=True, default=str)

        def save(folder: Path) -> None:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

            from compress.checkpoints.folder import save_checkpoint

            tokenizer = AutoTokenizer.from_pretrained(tokenizer_files)
            shape = {
                **SHAPES[model_type],
                "vocab_size": len(tokenizer),
                "bos_token_id": 0,
                "eos_token_id": 0,
                **changes,
            }
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape))
            save_checkpoint(model, tokenizer, folder)

        return shared(f"{model_type}-{hashlib.sha256(told.encode()).hexdigest()[:12]}", save)

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    shared_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make_checkpoint("gpt2", seed=1, n_layer=2)`: a folder of its own with what `shared_checkpoint` gives."""

    def make(model_type: str = "gpt2", **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        shutil.copytree(shared_checkpoint(model_type, **changes), folder, dirs_exist_ok=True)
        return folder

    return make


@pytest.fixture(scope="session")
def gpt2(shared_checkpoint: Callable[..., Path]) -> Path:
    """A dense GPT-2 checkpoint: 3 layers, width 64, tied embedding. Shared."""
    return shared_checkpoint("gpt2")


@pytest.fixture(scope="session")
def llama(shared_checkpoint: Callable[..., Path]) -> Path:
    """A dense Llama checkpoint with grouped queries and a tied embedding. Shared."""
    return shared_checkpoint("llama")


@pytest.fixture(scope="session")
def int8_exports(shared: Share, shared_checkpoint: Callable[..., Path], text_file: Path) -> Callable[[str], Exported]:
    """`int8_exports("gpt2")`: a tiny model sharpened, as int8 (its embedding too), and its bundle. Shared."""

    def make(family: str) -> Exported:
        def export(folder: Path) -> None:
            folder.mkdir()
            dense = sharpened(shared_checkpoint(family), folder / "dense")
            exported(quantized(dense, folder / "int8", embeddings=True), folder / "bundle", text_file)

        return Exported.below(shared(f"export-{family}", export))

    return make


@pytest.fixture(scope="session")
def int8_bundle(int8_exports: Callable[[str], Exported]) -> Path:
    """The bundle of a tiny int8 GPT-2. Shared."""
    return int8_exports("gpt2").bundle


@pytest.fixture(scope="session")
def rich_run(shared: Share) -> "Report":
    """The report of a finished run with everything that one can show (rich_report.py), and its folder. Shared."""

    def make(place: Path) -> None:
        from rich_report import rich

        place.mkdir()
        (place / "report.pickle").write_bytes(pickle.dumps(rich(place / "run")))

    place = shared("rich", make)
    report: Report = pickle.loads((place / "report.pickle").read_bytes())
    return report.model_copy(update={"folder": place / "run"})


@pytest.fixture(scope="session")
def named_recipe(shared: Share) -> Path:
    """The folder of a recipe that names evaluations and noise, with its files (named_run.py). Shared."""
    from named_run import write

    return shared("named-recipe", write)


@pytest.fixture(scope="session")
def named_run(shared: Share, named_recipe: Path) -> "Report":
    """The report that the run of this recipe gave, and its folder. Shared."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")

    def make(place: Path) -> None:
        from named_run import finish

        place.mkdir()
        (place / "report.pickle").write_bytes(pickle.dumps(finish(named_recipe, place / "run")))

    place = shared("named-run", make)
    report: Report = pickle.loads((place / "report.pickle").read_bytes())
    return report.model_copy(update={"folder": place / "run"})


@pytest.fixture
def folder_digest() -> Callable[[Path], dict[str, str]]:
    """sha256 of every file below a folder, by relative path."""

    def digest(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return digest
