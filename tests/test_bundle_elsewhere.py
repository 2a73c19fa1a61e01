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
from typing import Any

import numpy as np
import pytest
from exported import exported, quantized, sharpened

from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.loading import load_float_model
from export import verify_bundle
from export.readme import PROMPT, TOKENS, usage
from export.readme_programs import PROGRAMS
from export.readme_rules import EXAMPLE

Elsewhere = Callable[[str, str], Path]
Done = subprocess.CompletedProcess[str]
THOROUGH = [pytest.param(name, marks=pytest.mark.thorough) for name in ("gpt2 int8", "llama", "gemma3_text")]
FAMILIES = ["gpt2", *THOROUGH]
WITH_BOS = {"llama", "gemma3_text"}
PYTHON = [title for title, text in PROGRAMS.items() if "```python" in text]
SECTION = re.compile(r"^### ([^\n]+)\n(?:(?!^###).)*?```(python|js)\n(.*?)```", re.MULTILINE | re.DOTALL)
LIMIT = 300
LINES = 20
"""Of code, in a program at most."""


def readable(source: Path, out: Path, *, bos: bool) -> Path:
    """A sharpened checkpoint that gives only tokens that are text: rows of the others, in a tied embedding, are 0.

    Args:
        bos: the tokenizer puts one before a text.
    """
    from safetensors.torch import load_file, save_file
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    sharpened(source, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    if bos:
        first = tokenizer.convert_ids_to_tokens(0)
        template = TemplateProcessing(single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, 0)])
        tokenizer.backend_tokenizer.post_processor = template
        tokenizer.save_pretrained(out)
    tensors = load_file(out / "model.safetensors")
    name = next(name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight")))
    odd = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).isascii() or token < 1]
    tensors[name][odd[bos:]] = 0  # a BOS has a row, which is read
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def elsewhere(
    shared_checkpoint: Callable[..., Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Elsewhere:
    """A family's bundle in a layout, beside its checkpoint."""
    made: dict[tuple[str, str], Path] = {}

    def make(named: str, layout: str) -> Path:
        if (named, layout) not in made:
            family, _, int8 = named.partition(" ")
            root = tmp_path_factory.mktemp(family)
            source = readable(shared_checkpoint(family), root / "dense", bos=family in WITH_BOS)
            if int8:
                shutil.move(source, root / "float")
                source = quantized(root / "float", root / "dense", embeddings=True)
            made[named, layout] = exported(source, root / "bundle", text_file, layout=layout)
        return made[named, layout]

    return make


def programs(folder: Path) -> dict[str, tuple[str, str]]:
    """Title -> language and text of each program of the README."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return {title: (language, body) for title, language, body in SECTION.findall(text)}


def stated(folder: Path) -> str:
    found = re.search(r"```json\n(.*?)\n```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return str(json.loads(found[1]))


def run_program(folder: Path, title: str, scratch: Path) -> str:
    """What a program of the README prints, run where the README lies; nobody warns of anything.

    Two do: ONNX Runtime of the default of Triton's own input, and optimum of ids for padding that it chose itself.
    """
    language, program = programs(folder)[title]
    done = in_node(program, scratch, folder) if language == "js" else in_python(program, folder, title)
    assert done.returncode == 0, done.stderr[-3000:]
    if not list(folder.glob("*/config.pbtxt")):
        assert "logits_from" not in done.stderr
        assert not done.stderr or title == "optimum-onnx"
    return done.stdout.removesuffix("\n")


def in_node(program: str, scratch: Path, folder: Path) -> Done:
    node, packages = shutil.which("node"), os.environ.get("NODE_PATH", "")
    needed = ("onnxruntime-node", "@huggingface/transformers", "@huggingface/tokenizers")
    if node is None or not packages or not all((Path(packages) / name).is_dir() for name in needed):
        pytest.skip(f"needs Node, and NODE_PATH with the npm packages {', '.join(needed)}")
    (scratch / "node_modules").symlink_to(packages)
    (scratch / "program.mjs").write_text(program, encoding="utf-8")
    return carried_out([node, str(scratch / "program.mjs")], folder, {})


def in_python(program: str, folder: Path, title: str) -> Done:
    extra: dict[str, str] = {}
    if title == "optimum-onnx":
        extra["PYTHONPATH"] = os.environ.get("OPTIMUM_PATH", "")
        if not extra["PYTHONPATH"]:
            pytest.skip("needs optimum-onnx, in a folder that OPTIMUM_PATH names")
    if title == "onnxruntime-genai":
        pytest.importorskip("onnxruntime_genai")
    return carried_out([sys.executable, "-c", program], folder, extra)


def carried_out(command: list[str], folder: Path, extra: dict[str, str]) -> Done:
    environment = os.environ | extra
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def torch_text(dense: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dense)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    ids = load_float_model(Checkpoint(dense)).generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("title", PROGRAMS)
def test_each_program_of_the_readme_prints_pytorchs_text(
    family: str, title: str, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    bundle = elsewhere(family, "bundle")
    assert programs(bundle).keys() == PROGRAMS.keys()
    expected = torch_text(bundle.parent / "dense")
    assert stated(bundle) == expected
    assert len(expected) > len(PROMPT)
    assert run_program(bundle, title, tmp_path) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_are_short(family: str, elsewhere: Elsewhere) -> None:
    for _, program in programs(elsewhere(family, "bundle")).values():
        assert len([line for line in program.splitlines() if line.strip()]) <= LINES


def test_the_readme_says_what_the_graph_takes_and_what_it_was_made_of(elsewhere: Elsewhere) -> None:
    import onnxruntime

    bundle = elsewhere("gpt2", "bundle")
    text = (bundle / "README.md").read_text()
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    for value in (*session.get_inputs(), *session.get_outputs()):
        if value.name.count(".") == 0 or ".0." in value.name:
            shape = ", ".join(map(str, value.shape)).replace(" + 0", "")
            kind = {"tensor(int64)": "int64", "tensor(float)": "float32"}[value.type]
            assert f"| `{value.name.replace('.0.', '.N.')}` | {kind} | {shape} |" in text
    assert "Opset 24: ONNX Runtime 1.24 or newer." in text
    assert "Weights: float32, not quantized" in text
    assert "Made of a gpt2 with " in text
    assert "license" not in text
    assert "as its owner states it: mit." in usage(bundle, license="mit")
    assert "Its license is not stated." in usage(bundle, license="")


def test_the_readme_says_how_weights_are_rounded(int8_bundle: Path) -> None:
    found = re.search(
        r"Weights: (\d+) products by weights of 8 bits in blocks of 64 columns \(activations rounded to 8 "
        r"bits a block\), 0\.\d MB with their scales; the rest in float32, 0\.\d MB\.",
        usage(int8_bundle),
    )
    assert found
    assert int(found[1]) > 12  # three layers, and the head


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readmes_table_of_padding_is_right(family: str, elsewhere: Elsewhere) -> None:
    import onnxruntime

    bundle = elsewhere(family, "bundle")
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    text = (bundle / "README.md").read_text()
    takes = {value.name for value in session.get_inputs()}
    assert ("`position_ids` | next token" in text) == ("position_ids" in takes)
    tokens = {letter: str(40 + 7 * place) for place, letter in enumerate("abcdefg")}
    alone = [continued(session, [[40, 47, 54], [75]]), continued(session, [[61, 68], [82]])]
    for first in (0, 2):
        past: dict[str, Any] = empty_cache(session, 2)
        for step, (_, *cells) in enumerate(EXAMPLE[first : first + 2]):
            assert cells[0] in text
            ids, mask, positions, places = (
                json.loads(f"[{re.sub('[a-g]', lambda m: tokens[m[0]], cell)}]") for cell in cells
            )
            feeds = {"input_ids": ids[0], "attention_mask": mask[0], "position_ids": positions[0]}
            given = {name: np.array(value) for name, value in feeds.items() if name in takes}
            logits, *present = session.run(None, given | past)
            past = dict(zip(past, present, strict=True))
            for row, (at, position) in enumerate(places):
                assert at == row
                np.testing.assert_allclose(logits[row, position], alone[row][step], rtol=0, atol=2e-4)


def empty_cache(session: Any, rows: int) -> dict[str, Any]:
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    return {value.name: np.zeros((rows, value.shape[1], 0, value.shape[3]), np.float32) for value in caches}


def continued(session: Any, pieces: list[list[int]]) -> list[Any]:
    """The logits at the end of each piece of one text."""
    past, length, found = empty_cache(session, 1), 0, []
    takes = {value.name for value in session.get_inputs()}
    for piece in pieces:
        length += len(piece)
        positions = np.arange(length)[None, -len(piece) :]
        feeds = {
            "input_ids": np.array([piece]),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": positions,
        }
        logits, *present = session.run(None, {name: value for name, value in feeds.items() if name in takes} | past)
        past = dict(zip(past, present, strict=True))
        found.append(logits[0, -1])
    return found


def test_configs_lie_in_the_bundle_and_are_sealed(elsewhere: Elsewhere) -> None:
    bundle = elsewhere("gpt2", "bundle")
    config = json.loads((bundle / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert "quantization_config" not in config
    assert {"config.json", "generation_config.json"} <= json.loads((bundle / "manifest.json").read_text())[
        "files"
    ].keys()
    verify_bundle(bundle)


def test_layout_of_the_hub_is_as_transformers_js_expects(elsewhere: Elsewhere) -> None:
    folder = elsewhere("gpt2", "transformers.js")
    assert verify_bundle(folder).folder == folder / "onnx"
    assert (folder / "onnx" / "model.onnx_data").is_file()
    assert (folder / "config.json").read_bytes() == (folder / "onnx" / "config.json").read_bytes()
    _, program = programs(folder)["transformers.js"]
    assert 'from_pretrained(".", { device: "cpu" })' in program


@pytest.mark.parametrize("layout", ["transformers.js", "triton"])
@pytest.mark.parametrize(
    "title", [*PYTHON[:1], *(pytest.param(title, marks=pytest.mark.thorough) for title in PYTHON[1:])]
)
def test_programs_of_other_layouts_run_where_the_readme_lies(
    layout: str, title: str, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    folder = elsewhere("gpt2", layout)
    assert run_program(folder, title, tmp_path) == torch_text(folder.parent / "dense")


@pytest.mark.parametrize("title", [title for title in PROGRAMS if title not in PYTHON])
def test_layout_of_the_hub_runs_in_node(title: str, elsewhere: Elsewhere, tmp_path: Path) -> None:
    folder = elsewhere("gpt2", "transformers.js")
    assert run_program(folder, title, tmp_path) == torch_text(folder.parent / "dense")
