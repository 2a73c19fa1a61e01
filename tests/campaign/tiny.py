"""What attempts start from: short texts, tiny models, their bundles and runs, all made by the commands themselves."""

import json
import shutil
from pathlib import Path

from attempt import PASSED, Ended, command

ROOT = Path(__file__).resolve().parent.parent.parent
NOVELS = ROOT / "recipes" / "data" / "novels"
GPT2 = "{model_type: gpt2, n_embd: 32, n_layer: 3, n_head: 2, n_positions: 64}"
LLAMA = (
    "{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, "
    "intermediate_size: 48, max_position_embeddings: 64, tie_word_embeddings: true}"
)
FAMILIES = {"gpt2": GPT2, "llama": LLAMA}
CHAIN = f"""
data: {{train: train.txt, calibration: calibration.txt, test: test.txt}}
stages:
  - train:
      architecture: {GPT2}
      vocabulary: 300
      tokens: 8192
      length: 32
      batch: 8
      learning_rate: 1e-2
      checkpoints: 4
  - prune: {{sparsity: 0.3}}
  - slim: {{ffn: 0.75}}
  - distill: {{layers: 2, tokens: 4096, length: 32, batch: 8, checkpoints: 4}}
  - quantize: {{embeddings: true}}
  - export: {{parity_tokens: 32}}
evaluate: {{window: 32, windows: 40}}
gate: {{perplexity: {{max_ratio: 100}}, weight_bytes: {{max_ratio: 1.0}}}}
"""
"""The smallest recipe of all stages; its gates hold whatever the machine does."""
TIMED = CHAIN + "benchmark: {prompt: 16, tokens: 8, blocks: 3, stage_blocks: 0, threads: 1}\n"
SHORT = """
model: gpt2
data: {calibration: calibration.txt, test: test.txt}
stages:
  - prune: {sparsity: 0.3}
  - export: {parity_tokens: 32}
evaluate: {window: 32, windows: 40}
gate: {perplexity: {max_ratio: 100}, weight_bytes: {max_ratio: 1.1}}
"""
"""Two stages of a model that is there."""


def texts(place: Path) -> Path:
    """train.txt, calibration.txt and test.txt, some dozen documents each."""
    place.mkdir(parents=True, exist_ok=True)
    for name, source, count in (("train", "train", 60), ("calibration", "valid", 20), ("test", "test", 20)):
        text = (NOVELS / f"{source}.txt").read_text(encoding="utf-8").replace("<|endoftext|>", "")
        documents = [text[600 * index : 600 * (index + 1)] for index in range(count)]
        (place / f"{name}.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return place


def made(*arguments: object, place: Path) -> Ended:
    """What a command made that must work, or the campaign ends here."""
    ended = command(*arguments, place=place, seconds=900)
    assert ended.code == PASSED, f"{arguments}: exit {ended.code}: {ended.err}{ended.out}"
    return ended


def dense(place: Path, family: str = "gpt2") -> Path:
    """A tiny model that was fitted until it has opinions, in `place`/FAMILY; the texts lie in `place`."""
    if not (place / family).is_dir():
        texts(place)
        sizes = {"vocabulary": 300, "tokens": 16384, "length": 32, "batch": 8, "learning-rate": "1e-2"}
        knobs = [f"--{name}={value}" for name, value in sizes.items()]
        given = ["--train-text", "train.txt", "--architecture", FAMILIES[family], *knobs]
        made("train", "--out", family, *given, place=place)
    return place / family


def sharded(place: Path, family: str = "llama") -> Path:
    """The model in three weight files with an index."""
    from transformers import AutoModelForCausalLM

    source, out = dense(place, family), place / f"{family}-sharded"
    if not out.is_dir():
        shutil.copytree(source, out)
        (out / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(out, max_shard_size="40KB")
    return out


def quantized(place: Path, family: str = "gpt2") -> Path:
    """The int8 checkpoint of a model."""
    out = place / f"{family}-int8"
    if not out.is_dir():
        made("quantize", dense(place, family), "--out", out.name, "--embeddings", place=place)
    return out


def bundle(place: Path, family: str = "gpt2") -> Path:
    """The int8 model's bundle."""
    out = place / f"{family}-bundle"
    if not out.is_dir():
        source = quantized(place, family)
        given = ["--calibration-text", "calibration.txt", "--parity-tokens", "32"]
        made("export", source, "--out", out.name, *given, place=place)
    return out


def finished(place: Path, recipe: str = SHORT, name: str = "short") -> Path:
    """The folder of a finished run."""
    out = place / f"{name}-run"
    if not out.is_dir():
        dense(place)
        (place / f"{name}.yaml").write_text(recipe, encoding="utf-8")
        made("run", f"{name}.yaml", "--out", out.name, place=place)
    return out


def known_footprints(run: Path, place: Path) -> None:
    """Put the footprints that a run has taken into the store of another: each takes processes that import PyTorch."""
    for result in sorted((run / "artifacts").glob("footprint-*")):
        shutil.copytree(result, place / "artifacts" / result.name, dirs_exist_ok=True)


def artifacts(run: Path, *, without: tuple[str, ...] = ("footprint", "latency")) -> dict[str, dict[str, str]]:
    """Result -> file -> sha256, as the store has them; figures of machines are left out."""
    found = {}
    for record in sorted((run / "artifacts").glob("*/artifact.json")):
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["kind"] not in without:
            hashes = {name: entry["sha256"] for name, entry in content["files"].items()}
            found[record.parent.name] = {name: digest for name, digest in hashes.items() if name != "README.md"}
    return found
