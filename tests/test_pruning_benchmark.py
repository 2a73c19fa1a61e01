"""The pruning benchmark: its parts on tiny models, and what its tables and targets make of stored results.

What runs the parts is thorough; that the page is what the stored results say is a quick test of test_benchmarks.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Share

from benchmarks.pruning import ALTERNATIVES, METHODS, Request, measure
from benchmarks.pruning_tables import WHOLE, pruning_outcomes, pruning_tables


@pytest.fixture(scope="session")
def run(shared: Share, shared_checkpoint: Callable[..., Path], text_file: Path) -> dict[str, Any]:
    """Masks, widths and memory of tiny models."""

    def make(folder: Path) -> None:
        folder.mkdir()
        request = Request(
            model=shared_checkpoint("gpt2", n_layer=2),
            calibration=text_file,
            test=text_file,
            peer=None,
            work=folder / "work",
            tell=lambda what: None,
            rows=4,
            length=32,
            blocks=3,
            changes={"n_layer": 4, "n_embd": 64, "n_head": 4, "n_inner": 256, "vocab_size": 512, "n_positions": 160},
        )
        found = measure(["masks", "widths", "memory"], request)
        (folder / "pruning.json").write_text(json.dumps(found), encoding="utf-8")

    stored: dict[str, Any] = json.loads((shared("benchmark-pruning", make) / "pruning.json").read_text("utf-8"))
    return stored


@pytest.mark.thorough
def test_every_method_prunes_what_was_asked(run: dict[str, Any]) -> None:
    rows = run["parts"]["masks"]["rows"]
    assert list(rows) == list(METHODS)
    for name, row in rows.items():
        assert row["sparsity"] == pytest.approx(0.5, abs=0.01), name
        assert row["perplexity"] > 1, name
        assert row["peak"] > 0, name


@pytest.mark.thorough
def test_shapes_shrink_and_zeros_do_not(run: dict[str, Any]) -> None:
    rows = run["parts"]["widths"]["rows"]
    assert set(rows) == {WHOLE, *ALTERNATIVES}
    whole = rows[WHOLE]["parameters"]
    for name, row in rows.items():
        assert len(row["seconds"]) == 3, name
        shrunk = name != WHOLE and ALTERNATIVES[name][0] == "slim"
        assert (row["parameters"] < whole) == shrunk, name


@pytest.mark.thorough
def test_the_tables_show_every_row_and_every_target(run: dict[str, Any]) -> None:
    tables = pruning_tables(run)
    assert set(tables) == {"masks", "widths", "memory", "targets"}
    text = "\n".join(table.markdown() for found in tables.values() for table in found)
    for name in (*METHODS, *ALTERNATIVES):
        assert f"| {name} |" in text
    assert "gpt2-1.5b: SparseGPT's peak memory | at most 16 GB" in text


def test_a_peer_and_a_recovery_are_held_to_their_targets() -> None:
    row = {"perplexity": 50.0, "seconds": 80.0, "peak": 1e9, "sparsity": 0.5}
    rows = dict.fromkeys(METHODS, row) | {"Wanda, 50 %, llm-compressor": row | {"perplexity": 40.0, "seconds": 100.0}}
    interval = {"low": 1.01, "high": 1.06, "confidence": 0.95}
    ratio = {"value": 1.03, "interval": interval}
    parts = {
        "masks": {"model": "other", "dense": 20.0, "float32_bytes": 5e8, "rows": rows},
        "recovery": {"rows": {"prune-gradual": {"verdict": "PASS", "perplexity": ratio}}},
    }
    found = {outcome.what: outcome.verdict for outcome in pruning_outcomes(parts)}
    assert found["Wanda, 50 %: perplexity / llm-compressor's"] == "short"
    assert found["Wanda, 50 %: seconds / llm-compressor's"] == "PASS"
    assert found["Wanda, 50 %: time on one thread"] == "short"
    assert found["prune-gradual: perplexity"] == "close"
