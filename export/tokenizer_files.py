"""The tokenizer's files in a bundle: they say how to encode, so that every runtime feeds the ids of transformers.

tokenizer.json is what transformers made of the checkpoint's files, without truncation and padding, which are for
batches of training. Its post-processor puts before a text what transformers puts there (a BOS, say) and nothing after
it, since a prompt goes on; tokenizer_config.json says the same as `add_bos_token`. Who reads what:

    transformers, transformers.js, `export.runtime.prompts`    the post-processor
    onnxruntime-genai 0.18                                      both, once the program asks for special tokens:
                                                                tokenizer.update_options(add_special_tokens="true")

onnxruntime-genai takes any template as one with a BOS, so a tokenizer that adds nothing gets no post-processor at all.
The class is PreTrainedTokenizerFast: transformers 5 builds LlamaTokenizer and others anew, with another pre-tokenizer
than the file's, and so other ids; transformers 4 does not know TokenizersBackend. Of a Unigram the class stays, since
onnxruntime-genai tells one by it.

Not covered: tokenizers that transformers has no fast version of; their files are copied as they are.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.json_file import read_object
from compress.text import before_text
from export.runtime.prompts import TOKENIZER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS = "tokenizer_config.json"
OTHERS = (
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
BACKENDS = {None, "TokenizersBackend", "PreTrainedTokenizerFast"}
"""Names by which transformers calls a tokenizer that is nothing but its tokenizer.json."""
OF_BATCHES = ("max_length", "padding", "pad_to_multiple_of", "stride", "truncation", "truncation_strategy")
"""Settings of truncation and padding."""


def write_tokenizer(tokenizer: "PreTrainedTokenizerBase", source: Path, out: Path) -> None:
    """Write the tokenizer of the checkpoint in `source` into the bundle `out`."""
    for name in OTHERS if tokenizer.is_fast else (TOKENIZER, *OTHERS):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if tokenizer.is_fast:
        content = _content(tokenizer)
        _write(out / TOKENIZER, content)
        _write(out / SETTINGS, _settings(out / SETTINGS, tokenizer, content))


def _content(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What tokenizer.json says."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return content | {"truncation": None, "padding": None, "post_processor": _template(_added(tokenizer))}


def _added(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """What the tokenizer puts before a text: token -> id."""
    return {str(tokenizer.convert_ids_to_tokens(token)): token for token in before_text(tokenizer)}


def _template(added: dict[str, int]) -> dict[str, Any] | None:
    if not added:
        return None

    def text(name: str, kind: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": token, "type_id": kind}} for token in added]
        return [*before, {"Sequence": {"id": name, "type_id": kind}}]

    special = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in added.items()}
    both = [*text("A", 0), *text("B", 1)]
    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": both, "special_tokens": special}


def _settings(file: Path, tokenizer: "PreTrainedTokenizerBase", content: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says, with a class that is nothing but tokenizer.json."""
    settings = read_object(file) if file.is_file() else {}
    settings = {key: value for key, value in settings.items() if key not in OF_BATCHES}
    if content["model"]["type"] != "Unigram" or settings.get("tokenizer_class") in BACKENDS:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return settings | {"add_bos_token": tokenizer.bos_token_id in _added(tokenizer).values(), "add_eos_token": False}


def _write(file: Path, content: dict[str, Any]) -> None:
    """Keys keep their order, which is that of the ids in a vocabulary."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
