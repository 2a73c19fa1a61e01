"""For every pass: graphs that it is for, and graphs that break its pattern in one place and must stay as they are."""

import numpy as np
from graphs import Array, Example

from compress.checkpoints.quantized_matrix import QuantizedMatrix

RANDOM = np.random.default_rng(5)
ALMOST = 1e-5
"""The same sums in another order."""


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def int8(rows: int, columns: int, groups: int = 1) -> QuantizedMatrix:
    codes_OI = RANDOM.integers(-127, 128, (rows, columns)).astype(np.int8)
    return QuantizedMatrix(codes_OI, RANDOM.uniform(0.005, 0.02, (rows, groups)).astype(np.float32))


def product(rows: int = 24, columns: int = 32, block: int = 16) -> dict[str, Array]:
    """Initializers of a MatMulNBits."""
    codes = RANDOM.integers(0, 256, (rows, columns // block, block)).astype(np.uint8)
    return {"codes": codes, "scales": RANDOM.uniform(0.005, 0.02, (rows, columns // block)).astype(np.float32)}


MATMUL = "com.microsoft.MatMulNBits<K=32, N=24, bits=8, block_size=16, accuracy_level=0>"
X32 = "(float[B,T,32] x) => (float[B,T,24] y)"
HEAD = "(float[B,T,32] x) => (float[B,T,24] logits)"
HEAD_WEIGHT = {"weight": normal(32, 24)}

EXAMPLES: dict[str, dict[str, Example]] = {
    "quantized_linears": {
        "one scale a row": Example(
            text=f"{X32} {{ weight_t = Transpose<perm=[1, 0]>(weight)  y = MatMul(x, weight_t) }}",
            int8={"weight": [int8(24, 32)]},
            before={"Transpose": 1, "MatMul": 1},
            after={"Expand": 1, "MatMulNBits": 1},
            tolerance=ALMOST,
        ),
        "one scale a block": Example(
            text=f"{X32} {{ weight_t = Transpose<perm=[1, 0]>(weight)  y = MatMul(x, weight_t) }}",
            int8={"weight": [int8(24, 32, groups=2)]},
            before={"Transpose": 1, "MatMul": 1},
            after={"MatMulNBits": 1},
            tolerance=ALMOST,
        ),
        "a scale for two blocks": Example(
            text="""(float[B,T,64] x) => (float[B,T,24] y) {
                weight_t = Transpose<perm=[1, 0]>(weight)  y = MatMul(x, weight_t) }""",
            int8={"weight": [int8(24, 64, groups=2)]},
            before={"Transpose": 1, "MatMul": 1},
            after={"Reshape": 2, "Expand": 1, "MatMulNBits": 1},
            tolerance=ALMOST,
        ),
        "packed, of several matrices, the last block padded": Example(
            text="""(float[B,T,40] x) => (float[B,T,56] y) {
                qkv = Concat<axis=0>(q, kv)  qkv_t = Transpose<perm=[1, 0]>(qkv)  y = MatMul(x, qkv_t) }""",
            int8={"q": [int8(24, 40)], "kv": [int8(16, 40), int8(16, 40)]},
            before={"Concat": 1, "Transpose": 1, "MatMul": 1},
            after={"Expand": 1, "MatMulNBits": 1},
            tolerance=ALMOST,
        ),
    },
    "quantized_embedding": {
        "whole blocks": Example(
            text="(int64[B,T] ids) => (float[B,T,32] y) { y = Gather(table, ids) }",
            int8={"table": [int8(24, 32)]},
            before={"Gather": 1},
            after={"Gather": 2, "Cast": 1, "Sub": 1, "Reshape": 1, "Mul": 1},
        ),
        "the last block padded": Example(
            text="(int64[B,T] ids) => (float[B,T,40] y) { y = Gather<axis=0>(table, ids) }",
            int8={"table": [int8(24, 40)]},
            before={"Gather": 1},
            after={"Gather": 2, "Cast": 1, "Sub": 1, "Reshape": 1, "Slice": 1, "Mul": 1},
        ),
        "several scales a row": Example(
            text="(int64[B,T] ids) => (float[B,T,64] y) { y = Gather(table, ids) }",
            int8={"table": [int8(24, 64, groups=2)]},
            before={"Gather": 1},
            after={"Gather": 2, "Cast": 1, "Sub": 1, "Reshape": 3, "Mul": 1},
        ),
    },
    "load_floats": {
        "what is computed from weights is folded": Example(
            text=f"""{X32} {{
                qk = Concat<axis=0>(q, k)  qk_t = Transpose<perm=[1, 0]>(qk)  a = MatMul(x, qk_t)  y = Add(a, bias)
                lost = Mul(x, unused) }}""",
            arrays={"q": normal(16, 32), "k": normal(8, 32), "bias": normal(24), "unused": normal(32)},
            floats=("q", "k", "bias"),
            before={"Concat": 1, "Transpose": 1, "MatMul": 1, "Add": 1, "Mul": 1},
            after={"MatMul": 1, "Add": 1},
        ),
    },
    "share_float_head": {
        "tied": Example(
            text="""(int64[B,T] ids) => (float[B,T,24] y) {
                x = Gather(table, ids)  table_t = Transpose<perm=[1, 0]>(table)  y = MatMul(x, table_t) }""",
            arrays={"table": normal(24, 32)},
            before={"Gather": 1, "Transpose": 1, "MatMul": 1},
            after={"Gather": 1, "FusedMatMul": 1},
            tolerance=ALMOST,
        ),
        "the transpose is read elsewhere": Example(
            text="""(float[B,T,32] x) => (float[B,T,24] y, float[32,24] z) {
                table_t = Transpose(table)  y = MatMul(x, table_t)  z = Exp(table_t) }""",
            arrays={"table": normal(24, 32)},
            before={"Transpose": 1, "MatMul": 1, "Exp": 1},
            after={"Transpose": 1, "FusedMatMul": 1, "Exp": 1},
            tolerance=ALMOST,
        ),
        "the transpose is an output": Example(
            text="""(float[B,T,32] x) => (float[B,T,24] y, float[32,24] table_t) {
                table_t = Transpose(table)  y = MatMul(x, table_t) }""",
            arrays={"table": normal(24, 32)},
            before={"Transpose": 1, "MatMul": 1},
            after={"Transpose": 1, "FusedMatMul": 1},
            tolerance=ALMOST,
        ),
    },
    "fold_bias": {
        "bias": Example(
            text=f"{X32} {{ a = {MATMUL}(x, codes, scales)  y = Add(a, bias) }}",
            arrays={**product(), "bias": normal(24)},
            before={"MatMulNBits": 1, "Add": 1},
            after={"MatMulNBits": 1},
            tolerance=ALMOST,
        ),
        "bias first, then another sum": Example(
            text=f"{X32} {{ a = {MATMUL}(x, codes, scales)  b = Add(bias, a)  y = Add(b, bias) }}",
            arrays={**product(), "bias": normal(24)},
            before={"MatMulNBits": 1, "Add": 2},
            after={"MatMulNBits": 1, "Add": 1},
            tolerance=ALMOST,
        ),
    },
    "fuse_silu": {
        "the gate second": Example(
            text="(float[B,T,32] x) => (float[B,T,32] y) { s = Sigmoid(x)  y = Mul(x, s) }",
            before={"Sigmoid": 1, "Mul": 1},
            after={"QuickGelu": 1},
            tolerance=1e-6,
        ),
        "the gate first": Example(
            text="(float[B,T,32] x) => (float[B,T,32] y) { s = Sigmoid(x)  a = Mul(s, x)  y = Mul(a, x) }",
            before={"Sigmoid": 1, "Mul": 2},
            after={"QuickGelu": 1, "Mul": 1},
            tolerance=1e-6,
        ),
    },
    "slice_logits": {
        "plain": Example(
            text=f"{HEAD} {{ logits = MatMul(x, weight) }}",
            arrays=HEAD_WEIGHT,
            before={"MatMul": 1},
            after={"Slice": 1, "MatMul": 1},
        ),
        "tied": Example(
            text=f"{HEAD} {{ weight_t = Transpose(table)  logits = MatMul(x, weight_t) }}",
            arrays={"table": normal(24, 32)},
            before={"Transpose": 1, "MatMul": 1},
            after={"Transpose": 1, "Slice": 1, "MatMul": 1},
        ),
        "int8, bias first": Example(
            text=f"{HEAD} {{ a = {MATMUL}(x, codes, scales)  logits = Add(bias, a) }}",
            arrays={**product(), "bias": normal(24)},
            before={"MatMulNBits": 1, "Add": 1},
            after={"Slice": 1, "MatMulNBits": 1, "Add": 1},
        ),
        "soft cap": Example(
            text="""(float[B,T,24] before) => (float[B,T,24] logits)
                <float[B,T,24] inner, float[B,T,24] a, float[B,T,24] b, float[B,T,24] c> {
                inner = Sin(before)  x = MatMul(inner, widen)
                a = com.microsoft.FusedMatMul<transB=1>(x, table)
                b = Div(a, cap)  c = Tanh(b)  logits = Mul(cap, c) }""",
            arrays={"widen": normal(24, 32), "table": normal(24, 32), "cap": np.float32(9).reshape(())},
            before={"Sin": 1, "MatMul": 1, "FusedMatMul": 1, "Div": 1, "Tanh": 1, "Mul": 1},
            after={"Sin": 1, "MatMul": 1, "Slice": 1, "FusedMatMul": 1, "Div": 1, "Tanh": 1, "Mul": 1},
        ),
    },
    "canonicalize": {
        "optional outputs that nobody reads": Example(
            text="""(float[B,T,32] x, float[B,T,32] w) => (float[B,T,32] y) {
                a, b, c, d = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.00001>(x, w, scale)
                y = Add(a, d) }""",
            arrays={"scale": normal(32)},
            before={"SkipSimplifiedLayerNormalization": 1, "Add": 1},
            after={"SkipSimplifiedLayerNormalization": 1, "Add": 1},
        ),
        "out of use, and named by chance": Example(
            text="""(float[B,T,32] x) => (float[B,T,32] y, float[B,T,16] z) {
                a, b = Split<axis=-1, num_outputs=2>(x)  c, d = Split<axis=-1, num_outputs=2>(a)
                unread = Add(b, unused)  y = Mul(x, scale)  z = Concat<axis=-1>(d, c) }""",
            arrays={"scale": normal(32), "unused": normal(16)},
            before={"Split": 2, "Add": 1, "Mul": 1, "Concat": 1},
            after={"Split": 2, "Mul": 1, "Concat": 1},
        ),
    },
}

BIASED = {**product(), "bias": normal(24)}
ONE = {"weight": [int8(24, 32)]}

ALONE: dict[str, dict[str, Example]] = {
    "quantized_linears": {
        "a float weight": Example(
            text=f"{X32} {{ weight_t = Transpose(weight)  y = MatMul(x, weight_t) }}",
            arrays={"weight": normal(24, 32)},
            int8={"other": [int8(24, 32)]},
        ),
        "float and int8 in one product": Example(
            text="""(float[B,T,32] x) => (float[B,T,48] y) {
                both = Concat<axis=0>(weight, other)  both_t = Transpose(both)  y = MatMul(x, both_t) }""",
            arrays={"other": normal(24, 32)},
            int8=ONE,
        ),
        "side by side, not one upon the other": Example(
            text="""(float[B,T,64] x) => (float[B,T,24] y) {
                both = Concat<axis=1>(weight, weight)  both_t = Transpose(both)  y = MatMul(x, both_t) }""",
            int8=ONE,
        ),
        "not transposed": Example(text="(float[B,T,24] x) => (float[B,T,32] y) { y = MatMul(x, weight) }", int8=ONE),
    },
    "quantized_embedding": {
        "a float table": Example(
            text="(int64[B,T] ids) => (float[B,T,32] y) { y = Gather(table, ids) }",
            arrays={"table": normal(24, 32)},
            int8={"other": [int8(24, 32)]},
        ),
        "columns, not rows": Example(
            text="(int64[B,T] ids) => (float[24,B,T] y) { y = Gather<axis=1>(table, ids) }",
            int8={"table": [int8(24, 32)]},
        ),
    },
    "load_floats": {
        "nothing to place": Example(
            text="(float[B,T,32] x) => (float[B,T,32] y) { y = Add(x, bias) }", arrays={"bias": normal(32)}
        ),
    },
    "share_float_head": {
        "stored as it is read": Example(text=f"{X32} {{ y = MatMul(x, weight) }}", arrays={"weight": normal(32, 24)}),
        "a transposed value that is no weight": Example(
            text="""(float[B,T,32] x, float[24,32] w) => (float[B,T,24] y) {
                a = Exp(w)  w_t = Transpose<perm=[1, 0]>(a)  y = MatMul(x, w_t) }""",
        ),
        "another order of axes": Example(
            text=f"{X32} {{ weight_t = Transpose<perm=[0, 1]>(weight)  y = MatMul(x, weight_t) }}",
            arrays={"weight": normal(32, 24)},
        ),
    },
    "fold_bias": {
        "the product is read twice": Example(
            text=f"{X32} {{ a = {MATMUL}(x, codes, scales)  b = Add(a, bias)  y = Mul(a, b) }}", arrays=BIASED
        ),
        "the product is an output": Example(
            text=f"""(float[B,T,32] x) => (float[B,T,24] y, float[B,T,24] a) {{
                a = {MATMUL}(x, codes, scales)  y = Add(a, bias) }}""",
            arrays=BIASED,
        ),
        "one number for all rows": Example(
            text=f"{X32} {{ a = {MATMUL}(x, codes, scales)  y = Add(a, bias) }}",
            arrays={**product(), "bias": normal(1)},
        ),
        "a row for each position": Example(
            text=f"{X32} {{ a = {MATMUL}(x, codes, scales)  y = Add(a, bias) }}",
            arrays={**product(), "bias": normal(5, 24)},
        ),
        "a computed bias": Example(
            text=f"{X32} <float[24] b> {{ a = {MATMUL}(x, codes, scales)  b = Neg(bias)  y = Add(a, b) }}",
            arrays=BIASED,
        ),
        "a bias inside already": Example(
            text=f'{X32} {{ a = {MATMUL}(x, codes, scales, "", "", bias)  y = Add(a, bias) }}', arrays=BIASED
        ),
        "a float product": Example(
            text=f"{X32} {{ a = MatMul(x, weight)  y = Add(a, bias) }}",
            arrays={"weight": normal(32, 24), "bias": normal(24)},
        ),
        "CUDA": Example(
            text=f"{X32} {{ a = {MATMUL}(x, codes, scales)  y = Add(a, bias) }}",
            arrays=BIASED,
            provider="cuda",
        ),
    },
    "fuse_silu": {
        "the gate of another value": Example(
            text="(float[B,T,32] x, float[B,T,32] w) => (float[B,T,32] y) { s = Sigmoid(w)  y = Mul(x, s) }"
        ),
        "the gate is read twice": Example(
            text="(float[B,T,32] x) => (float[B,T,32] y) { s = Sigmoid(x)  a = Mul(x, s)  y = Add(a, s) }"
        ),
        "the gate is an output": Example(
            text="(float[B,T,32] x) => (float[B,T,32] y, float[B,T,32] s) { s = Sigmoid(x)  y = Mul(x, s) }"
        ),
        "another gate": Example(text="(float[B,T,32] x) => (float[B,T,32] y) { s = Tanh(x)  y = Mul(x, s) }"),
    },
    "slice_logits": {
        "no head: the logits are a sum": Example(
            text=f"""{HEAD} {{ a = MatMul(x, weight)  b = MatMul(x, weight)  logits = Add(a, b) }}""",
            arrays=HEAD_WEIGHT,
        ),
        "no head: no product behind the logits": Example(
            text="(float[B,T,32] x) => (float[B,T,32] logits) { logits = Tanh(x) }"
        ),
        "positions are mixed behind the product": Example(
            text=f"{HEAD} {{ a = MatMul(x, weight)  logits = CumSum(a, axis) }}",
            arrays={**HEAD_WEIGHT, "axis": np.asarray(1)},
        ),
        "a product of two computed values": Example(
            text="(float[B,T,32] x, float[B,32,T] w) => (float[B,T,T] logits) { logits = MatMul(x, w) }"
        ),
        "the logits before the soft cap are an output": Example(
            text="""(float[B,T,32] x) => (float[B,T,24] logits, float[B,T,24] a) {
                a = MatMul(x, weight)  logits = Tanh(a) }""",
            arrays=HEAD_WEIGHT,
        ),
        "the logits before the soft cap are read again": Example(
            text="""(float[B,T,32] x) => (float[B,T,24] logits, float[B,T,24] y) {
                a = MatMul(x, weight)  logits = Tanh(a)  y = Softmax<axis=1>(a) }""",
            arrays=HEAD_WEIGHT,
        ),
        "the logits are read again": Example(
            text="""(float[B,T,32] x) => (float[B,T,24] logits, float[B,T,24] y) {
                logits = MatMul(x, weight)  y = Softmax<axis=1>(logits) }""",
            arrays=HEAD_WEIGHT,
        ),
        "another row of numbers for each position": Example(
            text=f"{HEAD} {{ a = MatMul(x, weight)  logits = Add(a, table) }}",
            arrays={**HEAD_WEIGHT, "table": normal(5, 24)},
        ),
        "rows without positions": Example(
            text="(float[B,32] x) => (float[B,24] logits) { logits = MatMul(x, weight) }", arrays=HEAD_WEIGHT
        ),
    },
}
