"""The charts of a report: what is drawn, in which colors, and what is left out."""

from typing import Any

import pytest
from reports import REPORTS, Page

from evaluation.charts import CHARTS, latency_chart, size_chart
from evaluation.charts.size import PARTS, by_number, by_part
from evaluation.charts.trade import pareto
from evaluation.render import render_html, render_markdown
from evaluation.report import Report, Row


def test_the_pareto_front_is_what_nothing_beats_on_both_axes() -> None:
    assert pareto([(3, 1), (1, 3), (2, 2), (3, 3), (2, 4), (1, 3)]) == [(1, 3), (2, 2), (3, 1)]


def test_charts_leave_out_what_was_not_measured() -> None:
    assert "export" not in size_chart(REPORTS["INVALID"])
    bare = REPORTS["PASS"].model_copy(update={"rows": [Row(name="baseline", kind="baseline", format="dense")]})
    assert size_chart(bare) == ""
    assert latency_chart(bare) == ""
    assert Page(render_html(bare)).open == []
    assert "baseline" in render_markdown(bare)


def test_zeros_are_drawn_where_tensors_differ() -> None:
    tensors = {f"layer {index}": {"asked": 0.5, "sparsity": 0.4 + index / 50} for index in range(8)}
    rows = [row.model_copy(update={"metadata": {"tensors": tensors}}) for row in REPORTS["PASS"].rows]
    assert "tensors of" in CHARTS["Zeros, tensor by tensor"](REPORTS["PASS"].model_copy(update={"rows": rows}))


def test_every_row_that_has_both_is_in_the_picture_of_quality_against_speed(rich_run: Report) -> None:
    chart = CHARTS["Quality against speed"]
    without = [row.model_copy(update={"measurements": row.measurements[:1]}) for row in rich_run.rows[1:2]]
    bare = rich_run.model_copy(update={"rows": [rich_run.rows[0], *without, *rich_run.rows[2:]]})
    assert ">prune<" in chart(rich_run)
    assert ">prune<" not in chart(bare)


def test_bytes_by_part_and_by_number_both_come_to_the_weights(rich_run: Report) -> None:
    for row in rich_run.rows:
        assert sum(by_part(row).values()) == sum(by_number(row).values()) > 0
        assert set(by_part(row)) == set(PARTS)
    nothing = Row(name="x", kind="x", format="dense")
    assert not any([*by_part(nothing).values(), *by_number(nothing).values()])


@pytest.mark.parametrize(
    ("metadata", "label"),
    [
        ({"depth": {"influence": [0.9, 0.1, 0.4]}, "kept_layers": [0, 2]}, "hollow: left out"),
        ({"depth": {"gone": [{"layer": 2, "loss_before": 4.3, "loss_after": 4.4}]}}, "block 3"),
        ({"sensitivity": {"blocks": [{"points": [{"level": "2:4", "increase": 0.1, "error": 0.01}]}] * 2}}, "2:4"),
    ],
)
def test_what_each_block_is_worth_is_drawn_where_a_stage_measured_it(metadata: dict[str, Any], label: str) -> None:
    rows = [
        row.model_copy(update={"metadata": metadata if row.name == "prune" else {}}) for row in REPORTS["PASS"].rows
    ]
    chart = CHARTS["What each block is worth"]
    assert label in chart(REPORTS["PASS"].model_copy(update={"rows": rows}))
    assert chart(REPORTS["PASS"]) == ""


def test_zeros_that_grow_while_training_are_no_loss(rich_run: Report) -> None:
    drawn = CHARTS["Losses while training"](rich_run)
    assert "zeros (%), dashed" in drawn
    assert ">sparsity<" not in drawn
