"""What a bundle's README says below its table of inputs and outputs: rules of cache, padding and logits."""

CACHE = """
- **Cache**: the first run gets caches of length 0; each `present.N.key` and `.value` is the next run's
  `past_key_values.N.key` and `.value`. After the first run a row gets one token a run; only a batch of one row may
  get several. Cache in and cache out may also be one buffer, bound as both: then the mask is as long as the buffer."""

LOGITS_FROM = """
- **`logits_from`**, where it is no input yet, is a constant of the graph, 0: a run gives every position's logits. A
  prompt needs its last one's only, and the head is a large part of a small model's work. With the `onnx` package
  `graph.input.append(helper.make_tensor_value_info("logits_from", TensorProto.INT64, [1]))` makes it an input that
  may be left out: the first position whose logits are wanted. ONNX Runtime then warns of an input with a default."""

PADDING = """
- **Padding**: rows of unequal length are padded on the right or on the left, each row on one side. The mask is 0 at
  the padding, and grows by a 1 in each later run.@positions@ The next
  token's logits stand at a row's last token. Padding on both sides of a row, or between its tokens, gives other text
  without an error. Three tokens beside two, each continued by one:"""

POSITIONS = """ `position_ids` count a row's own tokens from 0, with any
  position of the context at the padding."""

COLUMNS = ("run", "`input_ids`", "`attention_mask`", "`position_ids`", "next token's logits at")
EXAMPLE = (
    ("first, right", "[[a, b, c], [d, e, 0]]", "[[1, 1, 1], [1, 1, 0]]", "[[0, 1, 2], [0, 1, 0]]", "[0, 2], [1, 1]"),
    ("next", "[[f], [g]]", "[[1, 1, 1, 1], [1, 1, 0, 1]]", "[[3], [2]]", "[0, 0], [1, 0]"),
    ("first, left", "[[a, b, c], [0, d, e]]", "[[1, 1, 1], [0, 1, 1]]", "[[0, 1, 2], [0, 0, 1]]", "[0, 2], [1, 2]"),
    ("next", "[[f], [g]]", "[[1, 1, 1, 1], [0, 1, 1, 1]]", "[[3], [2]]", "[0, 0], [1, 0]"),
)
"""A row a run, a column each of `COLUMNS`."""


def rules(*, positions: bool) -> str:
    """The rules in Markdown, for a graph that reads `position_ids` or does without."""
    kept = [column for column in range(len(COLUMNS)) if positions or "position_ids" not in COLUMNS[column]]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *((run, *(f"`{cell}`" for cell in cells)) for run, *cells in EXAMPLE)]
    table = "\n".join(f"| {' | '.join(line[column] for column in kept)} |" for line in lines)
    padding = PADDING.replace("@positions@", POSITIONS if positions else "")
    return f"{CACHE}{LOGITS_FROM}{padding}\n\n{table}".lstrip()
