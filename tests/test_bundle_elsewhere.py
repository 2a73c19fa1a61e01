"""A bundle in other people's programs: those of its own README print what PyTorch says.

onnxruntime-node and transformers.js are found where NODE_PATH says, optimum-onnx where OPTIMUM_PATH says (a folder that
`pip install --target` filled, with the older transformers that it needs).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import exported, sharpened

from compress.checkpoints.loading import load_float_model
from export import verify_bundle
from export.readme_programs import PROGRAMS

Elsewhere = Callable[[str, str], Path]
FAMILIES = ["gpt2", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("llama", "gemma3_text"))]
SECTION = re.compile(r"^### ([^\n]+)\n.*?```(python|js)\n(.*?)```", re.MULTILINE | re.DOTALL)
LIMIT = 300


def readable(source: Path, out: Path) -> Path:
    """A sharpened checkpoint that gives only tokens that are text: rows of the others, in a tied embedding, are 0."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    sharpened(source, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tensors = load_file(out / "model.safetensors")
    name = next(name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight")))
    odd = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).isascii() or token < 1]
    tensors[name][odd] = 0
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def elsewhere(
    shared_checkpoint: Callable[..., Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Elsewhere:
    """A family's float bundle in a layout, beside its checkpoint."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, layout: str) -> Path:
        if (family, layout) not in made:
            root = tmp_path_factory.mktemp(family)
            dense = readable(shared_checkpoint(family), root / "dense")
            made[family, layout] = exported(dense, root / "bundle", text_file, layout=layout)
        return made[family, layout]

    return make


def programs(bundle: Path) -> dict[str, tuple[str, str]]:
    """Title -> language and text of each program of the README."""
    text = (bundle / "README.md").read_text(encoding="utf-8")
    return {title: (language, body) for title, language, body in SECTION.findall(text)}


def stated(bundle: Path) -> str:
    found = re.search(r"```json\n(.*?)\n```", (bundle / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return str(json.loads(found[1]))


def in_node(program: str, scratch: Path, folder: Path) -> str:
    node, packages = shutil.which("node"), os.environ.get("NODE_PATH", "")
    needed = [
        name for name in ("onnxruntime-node", "@huggingface/transformers") if not (Path(packages) / name).is_dir()
    ]
    if node is None or not packages or needed:
        pytest.skip("needs Node, and NODE_PATH with the npm packages onnxruntime-node and @huggingface/transformers")
    (scratch / "node_modules").symlink_to(packages)
    (scratch / "program.mjs").write_text(program, encoding="utf-8")
    return printed([node, str(scratch / "program.mjs")], folder, {})


def in_python(program: str, folder: Path, title: str) -> str:
    extra: dict[str, str] = {}
    if title == "optimum-onnx":
        place = os.environ.get("OPTIMUM_PATH", "")
        if not place:
            pytest.skip("needs optimum-onnx, in a folder that OPTIMUM_PATH names")
        extra["PYTHONPATH"] = place
    if title == "onnxruntime-genai":
        pytest.importorskip("onnxruntime_genai")
    return printed([sys.executable, "-c", program], folder, extra)


def printed(command: list[str], folder: Path, extra: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | extra, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "logits_from" not in done.stderr, "nobody warns of it"
    return done.stdout.removesuffix("\n")


def torch_text(dense: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dense)
    inputs = tokenizer("The old house stood", return_tensors="pt", return_token_type_ids=False)
    ids = load_float_model(dense).generate(**inputs, max_new_tokens=16, do_sample=False)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("title", PROGRAMS)
def test_each_program_of_the_readme_prints_pytorchs_text(
    family: str, title: str, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    bundle = elsewhere(family, "bundle")
    found = programs(bundle)
    assert found.keys() == PROGRAMS.keys()
    expected = torch_text(bundle.parent / "dense")
    assert stated(bundle) == expected
    assert len(expected) > len("The old house stood")
    language, program = found[title]
    printed_text = in_node(program, tmp_path, bundle) if language == "js" else in_python(program, bundle, title)
    assert printed_text == expected


def test_configs_lie_in_the_bundle_and_are_sealed(elsewhere: Elsewhere) -> None:
    bundle = elsewhere("gpt2", "bundle")
    config = json.loads((bundle / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert "quantization_config" not in config
    assert {"config.json", "generation_config.json"} <= json.loads((bundle / "manifest.json").read_text())[
        "files"
    ].keys()
    verify_bundle(bundle)


def test_layout_of_the_hub_runs_in_transformers_js(elsewhere: Elsewhere, tmp_path: Path) -> None:
    folder = elsewhere("gpt2", "transformers.js")
    assert verify_bundle(folder).folder == folder / "onnx"
    assert (folder / "onnx" / "model.onnx_data").is_file()
    assert (folder / "config.json").read_bytes() == (folder / "onnx" / "config.json").read_bytes()
    _, program = programs(folder)["transformers.js"]
    assert 'subfolder: "", ' in program
    assert in_node(program.replace('subfolder: "", ', ""), tmp_path, folder) == torch_text(folder.parent / "dense")
