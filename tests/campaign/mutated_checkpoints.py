"""Checkpoints that are not quite right: what is taken is what transformers itself makes of the same folder, or it is
refused in a line.

The oracle is transformers alone: of `prune`, every weight that is left; of `evaluate`, the perplexity; of `export` and
`generate`, the greedy text.
"""

import json
import math
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

from attempt import INVALID, PASSED, REFUSED, Finding, command, forked
from campaign import Case
from mutate import Op, apply, drawn_byte_op, drawn_file_op, drawn_tree_op, header_of, parsed, readable
from tiny import dense, quantized, sharded

COMMON: tuple[tuple[str, Any], ...] = (
    *(("tie_word_embeddings", value) for value in (True, False, None)),
    *(("quantization_config", value) for value in (None, {}, {"quant_method": "gptq", "bits": 4}, "int8")),
    *(("architectures", value) for value in (None, [], [None], ["GPT2Model"], "GPT2LMHeadModel", [{"a": 1}])),
    *(("auto_map", value) for value in (None, {}, {"AutoModelForCausalLM": "modeling.Own"}, [])),
    *(("dtype", value) for value in ("float16", "bfloat16", "torch.float32", "int8", None, 5)),
    *(("torch_dtype", value) for value in ("float16", "auto", None)),
    *(("_attn_implementation", value) for value in ("eager", "sdpa", "flash_attention_2", "org/kernels")),
    *(("attn_implementation", value) for value in ("org/kernels", "eager")),
    *(("text_config", value) for value in (None, {}, {"vocab_size": 300}, [])),
    *(("vocab_size", value) for value in ("300", 299, 301, 2**31, 0, None)),
    *(("eos_token_id", value) for value in ([], [0], [0, 1], None, "0", 10**6, -1)),
    *(("bos_token_id", value) for value in (None, 5, [0], 10**6)),
    *(("pad_token_id", value) for value in (0, -1, 10**6, None)),
    *(("model_type", value) for value in ("gpt2", "llama", "mistral", "bert", "t5", "nosuch", None, "GPT2")),
    *(
        ("rope_scaling", value)
        for value in ({"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4}, {}, 2)
    ),
    *(("rope_theta", value) for value in (1e4, 5e5, 0, "10000")),
    *(("sliding_window", value) for value in (4, 0, -1, None)),
    *(("num_key_value_heads", value) for value in (1, 4, 3, 0, None)),
    *(("n_layer", value) for value in (2, 4, 0, 2**31)),
    *(("num_hidden_layers", value) for value in (1, 3, 0, 2**31)),
    *(("hidden_act", value) for value in ("relu", "gelu", "nosuch")),
    *(("activation_function", value) for value in ("relu", "gelu", "nosuch", None)),
    *(("scale_attn_by_inverse_layer_idx", True), ("reorder_and_upcast_attn", True), ("scale_attn_weights", False)),
    *(("layer_norm_epsilon", 1.0), ("rms_norm_eps", 1.0), ("n_positions", 32), ("n_positions", 2**40), ("n_inner", 64)),
    *(("max_position_embeddings", 16), ("attention_bias", True), ("mlp_bias", True), ("head_dim", 16), ("n_head", 4)),
    *(("is_decoder", False), ("use_cache", False), ("add_cross_attention", True), ("transformers_version", "9.9")),
    *(
        ("layer_types", ["full_attention"]),
        ("attn_pdrop", 0.5),
        ("initializer_range", -1),
        ("pruned_heads", {"0": [0]}),
    ),
)
"""Keys of config.json with values that people have there."""
GENERATION: tuple[tuple[str, Any], ...] = (
    *(
        ("temperature", 0),
        ("do_sample", True),
        ("max_length", 5),
        ("repetition_penalty", 2.0),
        ("eos_token_id", [1, 2]),
    ),
    *(("suppress_tokens", [5]), ("forced_bos_token_id", 3), ("num_beams", 4), ("cache_implementation", "static")),
)
TOKENIZER: tuple[tuple[str, Any], ...] = (
    *(("add_bos_token", True), ("add_eos_token", True), ("add_prefix_space", True), ("model_max_length", 4)),
    *(("bos_token", "A"), ("pad_token", "<pad>"), ("eos_token", None), ("tokenizer_class", "LlamaTokenizer")),
    *(
        ("tokenizer_class", "NoSuch"),
        ("chat_template", "{{ x }"),
        ("padding_side", "left"),
        ("truncation_side", "left"),
    ),
    *(("clean_up_tokenization_spaces", True), ("added_tokens_decoder", {"400": {"content": "<x>"}})),
)
EXTRA: dict[str, str] = {
    "added_tokens.json": '{"<extra>": 300}',
    "special_tokens_map.json": '{"pad_token": "<none>"}',
    "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "x"}',
    "model.safetensors.index.json": '{"metadata": {}, "weight_map": {"transformer.wte.weight": "../w.safetensors"}}',
    "pytorch_model.bin": "not a pickle",
    "modeling_own.py": "raise SystemExit('code of the checkpoint ran')",
    "chat_template.jinja": "{% for message in messages %}{{ message.content }}</s>{% endfor %}",
    "preprocessor_config.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2\n",
}
PROMPT = "It was a dark and"
ADDED = 8
PERPLEXITY = re.compile(r'"metric": "perplexity".*?"value": ([-\d.e]+)', re.DOTALL)


class MutatedCheckpoints:
    name, count, unit, alone = "checkpoints", 2000, "checkpoints", False

    def prepare(self, place: Path) -> None:
        self.given = place
        folders = (dense(place), dense(place, "llama"), sharded(place), quantized(place))
        self.bases = {folder.name: [file.name for file in sorted(folder.iterdir())] for folder in folders}

    def draw(self, random: Random) -> Case:
        base = random.choice(list(self.bases))
        ops = [self._op(random, base) for _ in range(random.choice((1, 1, 1, 2, 3)))]
        way = random.choices(("prune", "evaluate", "export"), (14, 1, 4))[0]
        return {"base": base, "ops": ops, "way": "quantize" if way == "export" and random.random() < 0.3 else way}

    def _op(self, random: Random, base: str) -> Op:
        chance, files = random.random(), self.bases[base]
        for below, file, pairs in (
            (0.35, "config.json", COMMON),
            (0.4, "generation_config.json", GENERATION),
            (0.47, "tokenizer_config.json", TOKENIZER),
        ):
            if chance < below:
                key, value = random.choice(pairs)
                return {"file": file, "do": "key", "key": key, "value": value}
        if chance < 0.52:
            name = random.choice(list(EXTRA))
            return {"file": name, "do": "put", "text": EXTRA[name]}
        if chance < 0.57:
            tensors = [name for name in files if name.endswith(".safetensors")]
            return {
                "file": random.choice(tensors),
                "do": "tensor",
                "how": random.choice(list(TENSORS)),
                "seed": random.random(),
            }
        file = random.choice(files)
        if chance < 0.86 and file.endswith(".json"):
            return drawn_tree_op(random, file, parsed(self.given / base / file))
        if chance < 0.86 and file.endswith(".safetensors"):
            return drawn_tree_op(random, file, header_of(self.given / base / file))
        if chance < 0.94:
            return drawn_byte_op(random, file, (self.given / base / file).stat().st_size)
        return drawn_file_op(random, file)

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        shutil.copytree(self.given / case["base"], place / "model")
        for name in ("calibration.txt", "test.txt"):
            shutil.copy(self.given / name, place)
        for op in case["ops"]:
            _do(op, place / "model")
        ended = command(*_arguments(case["way"]), place=place, seconds=40)
        found = ended.findings((PASSED, REFUSED, INVALID) if case["way"] == "export" else (PASSED, REFUSED))
        if "code of the checkpoint ran" in ended.out + ended.err:
            found.append(Finding(what="wrong", text="code of the checkpoint ran"))
        if ended.code != PASSED or found:
            return found
        _of_the_model_alone(place / "model" / "config.json")
        checked = forked(lambda: _CHECKS[case["way"]](place), place.with_name(f"{place.name}-check"), seconds=60)
        return [] if checked.code == PASSED else [Finding(what="wrong", text=checked.said)]


def _arguments(way: str) -> list[str]:
    if way == "prune":
        return ["prune", "model", "--out", "out", "--sparsity", "0.25"]
    if way == "quantize":
        return ["quantize", "model", "--out", "out"]
    if way == "evaluate":
        return ["evaluate", "model", "--out", "out", "--test-text", "test.txt", "--window", "32", "--windows", "8"]
    return ["export", "model", "--out", "out", "--calibration-text", "calibration.txt", "--parity-tokens", "16"]


def _do(op: Op, folder: Path) -> None:
    file = folder / op["file"]
    if op["do"] == "put":
        file.write_text(op["text"], encoding="utf-8")
    elif op["do"] == "key" and readable(file):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return
        if isinstance(content, dict):
            file.write_text(json.dumps(content | {op["key"]: op["value"]}), encoding="utf-8")
    elif op["do"] == "tensor" and readable(file):
        try:
            TENSORS[op["how"]](file, Random(op["seed"]))
        except Exception:  # another op left nothing that can be read
            return
    else:
        apply(op, folder)


def _tensors(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file)


def _save(tensors: Any, file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def _head(file: Path, random: Random) -> None:
    """A head of its own beside the embedding."""
    import torch

    tensors = _tensors(file)
    table = next(tensor for name, tensor in tensors.items() if name.endswith(("wte.weight", "embed_tokens.weight")))
    _save(tensors | {"lm_head.weight": table + 0.1 * torch.randn(table.shape)}, file)


def _mask(file: Path, random: Random) -> None:
    """Causal masks and rotation tables, as older files hold them."""
    import torch

    tensors = _tensors(file)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    more = {"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    more |= {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    _save(tensors | random.choice((more, {random.choice(list(more)): mask})), file)


def _prefixed(file: Path, random: Random) -> None:
    """Names with another prefix, or without theirs."""
    old, new = random.choice((("transformer.", ""), ("model.", ""), ("", "module."), ("", "model."), ("h.0", "h.00")))
    _save({new + name.removeprefix(old): tensor for name, tensor in _tensors(file).items()}, file)


def _typed(file: Path, random: Random) -> None:
    """Another type of number, of all tensors or of one."""
    import torch

    tensors, to = _tensors(file), random.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64))
    chosen = list(tensors) if random.random() < 0.5 else [random.choice(list(tensors))]
    _save({name: tensor.to(to) if name in chosen else tensor for name, tensor in tensors.items()}, file)


def _spoiled(file: Path, random: Random) -> None:
    """Values that no model has."""
    tensors = _tensors(file)
    name = random.choice(list(tensors))
    tensor = tensors[name].float()
    tensor.view(-1)[: max(1, tensor.numel() // 10)] = random.choice((math.nan, math.inf, 1e30, 0.0))
    _save(tensors | {name: tensor}, file)


def _shaped(file: Path, random: Random) -> None:
    """A tensor turned over, cut, or with a dimension more."""
    tensors = _tensors(file)
    name = random.choice(list(tensors))
    tensor = tensors[name]
    _save(tensors | {name: random.choice((tensor.T, tensor[:-1], tensor[None], tensor.flatten(), tensor[:0]))}, file)


def _exchanged(file: Path, random: Random) -> None:
    """Two tensors of the same shape under each other's names, one left out, or one more."""
    tensors = _tensors(file)
    first = random.choice(list(tensors))
    same = [name for name in tensors if tensors[name].shape == tensors[first].shape]
    do, second = random.choice(("swap", "drop", "more")), random.choice(same)
    if do == "swap":
        tensors |= {first: tensors[second], second: tensors[first]}
    elif do == "drop":
        del tensors[first]
    else:
        tensors[f"{first}.more"] = tensors[first]
    _save(tensors, file)


TENSORS = {
    "head": _head,
    "mask": _mask,
    "prefixed": _prefixed,
    "typed": _typed,
    "spoiled": _spoiled,
    "shaped": _shaped,
    "exchanged": _exchanged,
}


def _of_the_model_alone(file: Path) -> None:
    """Take out of a config what is no part of the model, and is taken though transformers trips over it: a kernel that
    is not installed here, and entries that hold nothing.
    """
    config = json.loads(file.read_text(encoding="utf-8-sig"))
    beside = [key for key in ("auto_map", "quantization_config") if not config.get(key, True)]
    kept = {key: value for key, value in config.items() if key not in {"_attn_implementation", *beside}}
    if kept != config:
        file.write_text(json.dumps(kept), encoding="utf-8")


def _opened(folder: Path) -> Any:
    """The model as its users open it, in float32; what they could not open must not have been taken."""
    import torch
    from transformers import AutoModelForCausalLM

    more = {"device_map": {"": "cpu"}} if "quantization_config" in (folder / "config.json").read_text() else {}
    model, told = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **more,
    )
    assert not told["missing_keys"], f"taken, though transformers misses {sorted(told['missing_keys'])[:3]}"
    assert not told["mismatched_keys"], f"taken, though these do not fit: {sorted(told['mismatched_keys'])[:3]}"
    return model.eval()


def _check_prune(place: Path) -> None:
    """Every weight that is left is transformers' own."""
    import torch

    source, out = _opened(place / "model"), _opened(place / "out")
    ours, theirs = dict(out.named_parameters()), dict(source.named_parameters())
    assert ours.keys() == theirs.keys(), f"other parameters: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    for name, tensor in ours.items():
        left = tensor != 0
        assert torch.equal(tensor[left], theirs[name][left]), f"{name}: other weights than transformers'"
        assert left.float().mean() > 0.6 or (theirs[name] == 0).float().mean() > 0.1, f"{name}: too much is gone"


def _check_quantize(place: Path) -> None:
    """The quantized model says nearly what the source says."""
    import torch

    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        ours, theirs = (_opened(place / name)(ids).logits.log_softmax(-1) for name in ("out", "model"))
    cost = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    assert cost < 0.05, f"the quantized model is {cost:.3f} nats away from what transformers opens"


def _check_evaluate(place: Path) -> None:
    """The perplexity is that of transformers, to the digits that batching leaves."""
    told = "".join(file.read_text() for file in sorted((place / "out").rglob("*.json")))
    found = PERPLEXITY.search(told)
    assert found, f"no perplexity in {sorted(file.name for file in (place / 'out').rglob('*'))}"
    right = _perplexities(place / "model", (place / "test.txt").read_text(encoding="utf-8"))
    near = any(abs(float(found[1]) / one - 1) < 1e-3 for one in right)
    assert near or not math.isfinite(right[0]), f"perplexity {found[1]}, transformers has {right}"


def _perplexities(folder: Path, text: str) -> list[float]:
    """Of the first token on or of all that a window holds, without and with what the tokenizer puts before."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = _opened(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = []
    documents = [one.strip() for one in text.split("\n<|endoftext|>\n")]
    bos = [] if not (special := tokenizer("a")["input_ids"][:1]) or special[0] != tokenizer.bos_token_id else special
    for before in ([], bos) if bos else ([],):
        windows = [
            before + ids[start : start + 32 - len(before)]
            for ids in (tokenizer(one, add_special_tokens=False, truncation=False)["input_ids"] for one in documents)
            for start in range(0, len(ids), 32 - len(before))
        ]
        chosen = _even([window for window in windows if len(window) > 1], 8)
        with torch.no_grad():
            losses = [
                torch.nn.functional.cross_entropy(
                    model(torch.tensor([ids])).logits[0, :-1].float(), torch.tensor(ids[1:]), reduction="none"
                )
                for ids in chosen
            ]
        found.append(float(np.exp(torch.cat(losses).double().mean().item())))
    return found


def _even(windows: list[Any], count: int) -> list[Any]:
    """Spread over the text as docs/measuring.md says: each the first of its share."""
    return [windows[index * len(windows) // count] for index in range(count)]


def _check_export(place: Path) -> None:
    """The bundle goes on as PyTorch does: the same greedy ids, or a choice that is as good as a tie."""
    from export.runtime.model import OnnxCausalLM

    check_greedy(_opened(place / "model"), OnnxCausalLM.open(place / "out"), list(range(5, 17)))


def check_greedy(model: Any, bundle: Any, ids: list[int]) -> None:
    """Both models' greedy ids after the same ids."""
    import torch

    ours, said = list(ids), list(bundle.stream(ids, max_new_tokens=ADDED))
    for token in said:
        with torch.no_grad():
            logits = model(torch.tensor([ours])).logits[0, -1].float()
        better = float(logits.max() - logits[token])
        assert better < 0.05, (
            f"after {ours} the bundle says {token}, PyTorch {int(logits.argmax())}, better by {better:.3f}"
        )
        ours.append(token)


_CHECKS = {"prune": _check_prune, "quantize": _check_quantize, "evaluate": _check_evaluate, "export": _check_export}
