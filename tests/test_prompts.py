"""Prompts become the ids that transformers gives, whichever runtime reads the bundle, and answers lose no blank."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import Exported

from compress.checkpoints.config import MOST_VOCABULARY
from compress.checkpoints.folder import load_tokenizer
from export.runtime.batch import PromptError
from export.runtime.prompts import open_tokenizer, read_prompt, stream_text
from export.runtime.sampling import Sampling
from export.tokenizer_files import write_tokenizer

PROMPT = "Once upon a time there was a little house at the end of the village, and nobody lived in it"


@pytest.fixture(scope="module")
def odd(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of sentencepiece's kind: <s> before and </s> after a text, cut to 8 tokens and padded to 24."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator([text_file.read_text()], trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are no special tokens
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pre_tokenizer = None  # from here on as Llama's is
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    words = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(words)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=24, pad_token="<unk>")
    folder = tmp_path_factory.mktemp("odd")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    assert content["truncation"]
    assert content["padding"]
    return folder


@pytest.fixture(scope="module")
def written(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a bundle gets of it."""
    out = tmp_path_factory.mktemp("written")
    write_tokenizer(load_tokenizer(odd), odd, out)
    return out


def by_transformers(folder: Path, prompt: str) -> list[int]:
    from transformers import AutoTokenizer

    return [int(token) for token in AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]]


def test_a_prompt_is_neither_cut_nor_padded_and_has_no_end(odd: Path, written: Path) -> None:
    *ids, end = by_transformers(odd, PROMPT)
    assert end == 2
    assert ids[0] == 1
    assert len(ids) > 24
    assert read_prompt(open_tokenizer(odd), PROMPT) == ids  # also of a folder that export did not write
    assert read_prompt(open_tokenizer(written), PROMPT) == ids


def test_a_bundle_says_how_to_encode(odd: Path, written: Path) -> None:
    content = json.loads((written / "tokenizer.json").read_text())
    assert content["truncation"] is None
    assert content["padding"] is None
    settings = json.loads((written / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is True
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"max_length", "truncation_strategy", "pad_to_multiple_of"} & set(settings)
    assert open_tokenizer(written).encode(PROMPT).ids == by_transformers(odd, PROMPT)[:-1]
    for text in (PROMPT, "It ended.</s> Once more"):  # a blank after a special token
        assert by_transformers(written, text) == by_transformers(odd, text)[:-1]


def test_genai_feeds_the_same_ids(
    odd: Path, written: Path, tokenizer_files: Path, int8_exports: Callable[[str], Exported], tmp_path: Path
) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    plain = tmp_path / "plain"
    plain.mkdir()
    write_tokenizer(load_tokenizer(tokenizer_files), tokenizer_files, plain)
    short = "Once upon a time"
    for files, ids in ((written, by_transformers(odd, short)[:-1]), (plain, by_transformers(tokenizer_files, short))):
        bundle = shutil.copytree(int8_exports("llama").bundle, tmp_path / f"bundle-{files.name}")
        shutil.copytree(files, bundle, dirs_exist_ok=True)
        tokenizer = genai.Tokenizer(genai.Model(str(bundle)))
        tokenizer.update_options(add_special_tokens="true")
        assert [int(token) for token in tokenizer.encode(short)] == ids


@pytest.mark.parametrize("answer", [" little girl", "s, and so on", " na\u00efve \u2014 \U0001f600!", "\n\nNo"])
def test_pieces_make_up_the_text_as_it_was(answer: str, written: Path) -> None:
    tokenizer = open_tokenizer(written)
    whole = read_prompt(tokenizer, PROMPT + answer)
    prompt = read_prompt(tokenizer, PROMPT)
    common = next(place for place, token in enumerate([*whole, -1]) if place >= len(prompt) or token != prompt[place])
    before = tokenizer.decode(whole[:common])
    pieces = list(stream_text(tokenizer, whole[:common], iter(whole[common:])))
    assert before + "".join(pieces) == PROMPT + answer
    assert len(pieces) > 2


def test_bytes_that_never_become_a_character_are_shown_at_the_end(written: Path) -> None:
    tokenizer = open_tokenizer(written)
    half = tokenizer.token_to_id("<0xF0>")
    assert "".join(stream_text(tokenizer, read_prompt(tokenizer, "So"), [half])) == "\ufffd"


def test_what_is_no_prompt_is_refused(tokenizer_files: Path) -> None:
    tokenizer = open_tokenizer(tokenizer_files)
    with pytest.raises(PromptError, match="expected some text, got none"):
        read_prompt(tokenizer, "")
    with pytest.raises(PromptError, match=r"expected text in UTF-8, got \\udcff at character 3"):
        read_prompt(tokenizer, "It \udcff was")


def test_a_vocabulary_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as stream:
        stream.truncate(MOST_VOCABULARY + 1)  # takes no room
    with pytest.raises(PromptError, match=r"expected at most .* bytes, got more"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_over_which_the_library_panics_is_refused(written: Path, tmp_path: Path) -> None:
    content = json.loads((written / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PromptError, match=r"corrupt tokenizer \(Precompiled: .*; export the bundle again"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("knob", ["temperature", "top_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_no_knob(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match="all finite, got"):
        Sampling(**{knob: value})  # type: ignore[arg-type]
