"""Bundles that are not what was exported: refused, or they compute what the checkpoint computed.

Half of them have a manifest that was written anew after the change, as who packs a bundle again would do; then only
what the files say can tell.
"""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from attempt import BROKEN, INVALID, PASSED, REFUSED, Finding, command, forked
from campaign import Case
from mutate import Op, apply, drawn_byte_op, drawn_file_op, drawn_tree_op, header_of, parsed, readable
from tiny import bundle

ASIDE = {"README.md"}
IDS = [5, 9, 30, 41, 77, 100, 6, 12]
FAR = 0.05
"""Nats of KL that no proven bundle is away from itself."""
GRAPH = "model.onnx"


class MutatedBundles:
    name, count, unit, alone = "bundles", 2000, "bundles", False

    def prepare(self, place: Path) -> None:
        self.given = {family: bundle(place, family) for family in ("gpt2", "llama")}
        self.files = {
            family: [file.name for file in sorted(folder.iterdir()) if file.is_file() and file.name not in ASIDE]
            for family, folder in self.given.items()
        }
        self.logits = {family: place / f"{family}.npy" for family in self.given}
        for family, folder in self.given.items():
            ended = forked(lambda folder=folder, family=family: _save_logits(folder, self.logits[family]), place)
            assert ended.code == PASSED, ended.err

    def draw(self, random: Random) -> Case:
        family = random.choice(list(self.given))
        ops = [self._op(random, family) for _ in range(random.choice((1, 1, 2)))]
        return {
            "family": family,
            "ops": ops,
            "sealed": random.random() < 0.6,
            "way": random.choice(("verify", "generate")),
        }

    def _op(self, random: Random, family: str) -> Op:
        chance, folder = random.random(), self.given[family]
        if chance < 0.3:
            return {"file": GRAPH, "do": "graph", "how": random.choice(list(_GRAPH)), "seed": random.random()}
        file = random.choice(self.files[family])
        if chance < 0.75 and file.endswith(".json"):
            return drawn_tree_op(random, file, parsed(folder / file))
        if chance < 0.75 and file.endswith(".safetensors"):
            return drawn_tree_op(random, file, header_of(folder / file))
        if chance < 0.93:
            return drawn_byte_op(random, file, (folder / file).stat().st_size)
        return drawn_file_op(random, file)

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        given, folder = self.given[case["family"]], place / "bundle"
        shutil.copytree(given, folder)
        for op in case["ops"]:
            _do(op, folder)
        changed = [file for file in self.files[case["family"]] if _differs(folder / file, given / file)]
        if case["sealed"]:
            sealed_again(folder, only=tuple(changed))
        verifies = case["way"] == "verify"
        arguments = ["verify", "bundle"] if verifies else ["generate", "bundle", "It was a dark", "--tokens", "4"]
        ended = command(*arguments, place=place)
        found = ended.findings((PASSED, REFUSED, INVALID, BROKEN))
        if ended.code != PASSED or not verifies or found:
            return found
        if changed and not case["sealed"]:
            return [Finding(what="wrong", text=f"verify passes, though {changed} changed")]
        if case["sealed"] and {GRAPH, "model.onnx.data"} & set(changed):
            checked = forked(lambda: _check(folder, self.logits[case["family"]]), place)
            return [] if checked.code == PASSED else [Finding(what="wrong", text=checked.said)]
        return []


def _do(op: Op, folder: Path) -> None:
    if op["do"] != "graph":
        apply(op, folder)
        return
    import onnx

    file = folder / op["file"]
    if not readable(file):
        return
    try:
        model = onnx.load(file, load_external_data=False)
        _GRAPH[op["how"]](model, Random(op["seed"]))
        content = model.SerializeToString()
    except Exception:  # another op left nothing that can be read
        return
    file.write_bytes(content)


def _differs(file: Path, before: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return True
    return file.stat().st_size != before.stat().st_size or file.read_bytes() != before.read_bytes()


def sealed_again(folder: Path, only: tuple[str, ...]) -> None:
    """Write the manifest anew, and its seal, for the files that changed, as far as there is still one."""
    from compress.digests import SEAL, digest_file, sealed

    file = folder / "manifest.json"
    if not readable(file):
        return
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        for name in only:
            if name != "manifest.json" and readable(folder / name):
                manifest["files"][name] = {
                    "sha256": digest_file(folder / name),
                    "bytes": (folder / name).stat().st_size,
                }
        manifest.pop(SEAL, None)
        text = sealed(manifest)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return
    file.write_text(text, encoding="utf-8")


def _logits(folder: Path) -> Any:
    """What a bundle says after some ids: log-probabilities (V,)."""
    import numpy as np

    from export.runtime.model import OnnxCausalLM, log_softmax

    model = OnnxCausalLM.open(folder)
    batch = model.new_batch(1, len(IDS) + 1)
    said = batch.feed(np.array([IDS]), np.array([len(IDS)]), logits_from=0)[0].astype(np.float32)
    log_softmax(said)
    return said


def _save_logits(folder: Path, file: Path) -> None:
    import numpy as np

    np.save(file, _logits(folder))


def _check(folder: Path, file: Path) -> None:
    import numpy as np

    right, ours = np.load(file), _logits(folder)
    far = float((np.exp(right) * (right - ours)).sum(axis=-1).mean())
    assert far < FAR, f"verify passes, though the bundle is {far:.3f} nats away from what was exported"


def _node(model: Any, random: Random) -> Any:
    return random.choice(list(model.graph.node))


def _drop_node(model: Any, random: Random) -> None:
    model.graph.node.remove(_node(model, random))


def _double_node(model: Any, random: Random) -> None:
    model.graph.node.append(_node(model, random))


def _rename_op(model: Any, random: Random) -> None:
    _node(model, random).op_type = random.choice(("Add", "Identity", "NoSuch", "Loop", "", "MatMul", "Sub"))


def _other_domain(model: Any, random: Random) -> None:
    _node(model, random).domain = random.choice(("", "com.microsoft", "no.such", "ai.onnx.ml"))


def _swap_inputs(model: Any, random: Random) -> None:
    inputs = _node(model, random).input
    inputs[:] = list(inputs)[::-1]


def _other_input(model: Any, random: Random) -> None:
    inputs = _node(model, random).input
    if inputs:
        names = [value.name for value in (*model.graph.initializer, *model.graph.input)] + ["", "nosuch"]
        inputs[random.randrange(len(inputs))] = random.choice(names)


def _attribute(model: Any, random: Random) -> None:
    with_some = [node for node in model.graph.node if node.attribute]
    attribute = random.choice(list(random.choice(with_some).attribute))
    attribute.i = random.choice((0, 1, -1, 2**31, attribute.i + 1))
    attribute.f = random.choice((0.0, 1e30, float("nan"), attribute.f * 2, attribute.f * 1.01))


def _no_attribute(model: Any, random: Random) -> None:
    node = random.choice([node for node in model.graph.node if node.attribute])
    del node.attribute[random.randrange(len(node.attribute))]


def _initializer(model: Any, random: Random) -> Any:
    return random.choice(list(model.graph.initializer))


def _other_shape(model: Any, random: Random) -> None:
    dims = _initializer(model, random).dims
    if dims:
        dims[random.randrange(len(dims))] = random.choice((0, 1, -1, 2**31, 2**62, dims[0] + 1))


def _other_type(model: Any, random: Random) -> None:
    _initializer(model, random).data_type = random.choice((0, 1, 2, 3, 7, 10, 16, 22, 99))


def _elsewhere(model: Any, random: Random) -> None:
    held = [tensor for tensor in model.graph.initializer if tensor.external_data]
    entry = random.choice(list(random.choice(held).external_data))
    entry.value = random.choice(("0", "-1", str(2**63), "x", "", "64", "../x", "tokenizer.json", str(2**40)))


def _swap_data(model: Any, random: Random) -> None:
    """Two weights of the same size, each where the other lies."""
    held = [tensor for tensor in model.graph.initializer if tensor.external_data]
    first = random.choice(held)
    same = [one for one in held if list(one.dims) == list(first.dims) and one.data_type == first.data_type]
    second = random.choice(same)
    kept = [(entry.key, entry.value) for entry in first.external_data]
    del first.external_data[:]
    first.external_data.extend(second.external_data)
    del second.external_data[:]
    for key, value in kept:
        second.external_data.add(key=key, value=value)


def _other_opset(model: Any, random: Random) -> None:
    random.choice(list(model.opset_import)).version = random.choice((0, 1, 7, 13, 99, 2**40))


def _other_face(model: Any, random: Random) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    value.name = random.choice(("x", "", "input_ids", "logits", value.name + "_"))


def _other_version(model: Any, random: Random) -> None:
    model.ir_version = random.choice((0, 1, 3, 99, 2**31))


_GRAPH = {
    "drop node": _drop_node,
    "double node": _double_node,
    "rename op": _rename_op,
    "other domain": _other_domain,
    "swap inputs": _swap_inputs,
    "other input": _other_input,
    "attribute": _attribute,
    "no attribute": _no_attribute,
    "other shape": _other_shape,
    "other type": _other_type,
    "elsewhere": _elsewhere,
    "swap data": _swap_data,
    "other opset": _other_opset,
    "other face": _other_face,
    "other version": _other_version,
}
