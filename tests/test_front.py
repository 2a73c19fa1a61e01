"""The front: quality is the KL that its definition says; against each peer stands the fastest that loses no more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import sharpened
from scipy.special import log_softmax, rel_entr
from transformers import AutoModelForCausalLM

from benchmarks.front import compare, in_turn, rows_of
from benchmarks.front_picture import draw
from benchmarks.front_tables import against_table, as_good, front_tables, mean_of, quality_table
from benchmarks.grid import Settings, workloads_of
from benchmarks.page import write_page
from benchmarks.prepare import CALIBRATION
from benchmarks.variants import FRONT, PEERS, VARIANTS
from compress.text import TextSource, read_documents
from export.runtime.model import OnnxCausalLM

ROWS = 4
PEER, NEAR, FAR = "llama.cpp", "int8_group32", "int4_group32"


def test_every_variant_is_compared_somewhere() -> None:
    assert set(PEERS) | set(FRONT) == set(VARIANTS)
    assert set(PEERS) & set(FRONT) == {"ort-dynamic", "genai", "llama.cpp", "demitasse"}


def model(kl: dict[str, float], seconds: dict[str, float]) -> dict[str, Any]:
    """A stored result in which each variant has one KL on both texts and one time everywhere."""
    quality = {
        name: {
            text: {
                "kl": [value, 3 * value] * ROWS,
                "same": [0.5, 1.0] * ROWS,
                "nll": [2.0, 3.0] * ROWS,
                "reference": [2.0, 2.5] * ROWS,
                "reason": "",
            }
            for text in ("novels", "wiki")
        }
        for name, value in kl.items()
    }
    workloads = {
        name: {f"decode-{tokens}-1": {"seconds": [value] * 5, "reason": ""} for tokens in (128, 900)}
        for name, value in seconds.items()
    }
    variants = {
        name: {"title": VARIANTS[name].title, "reason": "", "workloads": each} for name, each in workloads.items()
    }
    sizes = {PEER: 100, NEAR: 104, FAR: 60}
    return {"quality": quality, "variants": variants, "sizes": sizes, "floor": {"workloads": {}}, "floor_bytes": 1}


def test_against_a_peer_stands_the_fastest_that_loses_no_more() -> None:
    seconds = {PEER: 0.02, NEAR: 0.016, FAR: 0.01}
    [row] = against_table(model({PEER: 0.02, NEAR: 0.01, FAR: 0.3}, seconds)).rows
    assert row[1] == VARIANTS[NEAR].title
    assert row[2].startswith("1.25x")
    assert row[4] == "1.04x"
    [row] = against_table(model({PEER: 0.5, NEAR: 0.01, FAR: 0.3}, seconds)).rows
    assert row[1] == VARIANTS[FAR].title
    assert row[2].startswith("2x")
    [row] = against_table(model({PEER: 0.001, NEAR: 0.01, FAR: 0.3}, seconds)).rows
    assert row[1] == "none"


def test_as_good_is_what_is_not_shown_to_be_worse() -> None:
    found = model({PEER: 0.02, NEAR: 0.02, FAR: 0.021}, {})
    assert as_good(found, NEAR, PEER, "wiki")
    assert not as_good(found, FAR, PEER, "wiki"), "a little worse in every row"
    found["quality"][FAR]["wiki"]["kl"] = [0.03, 0.05] * ROWS
    assert as_good(found, FAR, PEER, "wiki"), "better in half of them"
    assert not as_good(found, FAR, "genai", "wiki"), "not taken"


def test_quality_is_told_with_the_interval_over_rows() -> None:
    [first, *_] = quality_table(model({PEER: 0.02}, {PEER: 1.0})).rows
    mean, interval = mean_of([0.02, 0.06])
    assert mean == pytest.approx(0.04)
    assert interval.high - mean == pytest.approx(12.706 * 0.02, rel=1e-3)  # t of one degree of freedom
    assert first[2].startswith("0.0400 (")
    assert first[3] == "75.0 %"
    assert first[4].startswith("1.28x")  # exp of the mean of 0 and 0.5


def test_calibration_takes_pieces_of_each_text_in_turn(tmp_path: Path) -> None:
    for name, length in (("a", 7000), ("b", 100)):
        (tmp_path / f"{name}.txt").write_text(name * length, encoding="utf-8")
    file = in_turn([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out.txt")
    assert read_documents(TextSource(file=file)) == ["a" * 3000, "b" * 100, "a" * 3000, "a" * 1000]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw("tiny", model({PEER: 0.02, NEAR: 0.01}, {PEER: 0.02, NEAR: 0.01}), tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
def test_the_kl_is_that_of_the_bundle_read_at_once(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = sharpened(make_checkpoint("llama"), tmp_path / "tiny")
    text = tmp_path / "text.txt"
    text.write_text("The old house stood where two roads met, and nobody had lived there. " * 300, encoding="utf-8")
    settings = Settings(
        workloads=workloads_of((24,), (24,), (1,)), blocks=3, steps=2, loads=1, threads=1, load_prompt=16
    )
    out, names = tmp_path / "front.json", ("ort-dynamic", "int8_group32", "int8_group32_cache8")
    results = compare((str(checkpoint),), names, {"own": text}, [CALIBRATION], settings, "all", tmp_path / "work", out)
    found = results["models"]["tiny"]
    assert json.loads(out.read_text()) == results
    assert set(found["quality"]) == set(found["sizes"]) == set(found["variants"]) == set(names)
    rows = np.asarray(rows_of(checkpoint, text))
    with torch.inference_mode():
        reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(torch.from_numpy(rows)).logits
    expected = log_softmax(reference.double().numpy(), axis=-1)
    [bundle] = (tmp_path / "work" / "tiny").glob("bundle_int8_group32-*/")
    ours = log_softmax(OnnxCausalLM.open(bundle).logits(rows).astype(np.float64), axis=-1)
    kl = rel_entr(np.exp(expected), np.exp(ours)).sum(axis=-1).mean(axis=1)
    np.testing.assert_allclose(found["quality"]["int8_group32"]["own"]["kl"], kl, rtol=1e-2)
    page = tmp_path / "page.md"
    write_page(tmp_path, page)
    assert "groups of 32, int8 cache" in page.read_text(encoding="utf-8")
    assert len(front_tables(found)) == 3  # against the peers stand times at longer contexts alone
