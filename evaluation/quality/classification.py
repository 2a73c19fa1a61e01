"""Labeled text by likelihood: a model that was never trained to classify still finds one label's words likelier.

    s(l) = log P(answer of l | prompt)          p(l) = exp s(l) / sum_m exp s(m)          given label = argmax_l s(l)

Every answer is scored as it is, so answers of one token (" positive", " negative") compare best: a longer one is less
likely for its length alone. What follows from the p(l) of every item, `classification_metrics.py` says.

Not covered: answers normalized by length or by their likelihood without the text; several phrasings of one label.

Legend: I items, L labels.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evaluation.quality.classification_metrics import LABEL, PROBABILITY, confusion
from evaluation.quality.likelihood import Encode, continuations, encode_pair
from evaluation.quality.per_example import PerExample
from evaluation.quality.scoring import Scorer
from evaluation.quality.windows import describe_bos

SHOWN_WORST = 12
"""PerExample told of in the metadata: those that were given a wrong label with the highest probability."""


def ask_labeled(
    prompts: Sequence[str],
    labels: Sequence[str],
    answers: Mapping[str, str],
    *,
    scorer: Scorer,
    encode: Encode,
    context: int,
    prefix: Sequence[int] = (),
    batch: int = 8,
    on_item: Callable[[float], None] = lambda items: None,
) -> PerExample:
    """Score every answer after every prompt.

    Args:
        prompts: what comes before the answer, of every item.
        labels: the right label of every item.
        answers: label -> the words that stand for it.
        context: the longest sequence that the model takes, in tokens; longer prompts lose their beginning.
        prefix: tokens before every prompt, such as the beginning-of-text token; they stay before one that was cut.
        on_item: told how many items were asked just now.

    Raises:
        ValueError: a prompt or an answer has no tokens.
    """
    pairs = [encode_pair(encode, prompt, answer) for prompt in prompts for answer in answers.values()]
    score_P, _, token_P = continuations(
        scorer,
        [(_prompt(prefix, before, context + 1 - len(after)), after) for before, after in pairs],
        context=context,
        batch=batch,
        on_batch=lambda count: on_item(count / len(answers)),
    )
    score_IL = score_P.reshape(len(prompts), len(answers))
    with np.errstate(invalid="ignore"):  # a broken model's NaN travel on and are reported as an invalid measurement
        probability_IL = np.exp(score_IL - score_IL.max(axis=1, keepdims=True))
        probability_IL /= probability_IL.sum(axis=1, keepdims=True)
    names = list(answers)
    columns = {LABEL: np.array([names.index(label) for label in labels], dtype=np.float64)}
    columns |= {f"{PROBABILITY}{label}": probability_IL[:, label] for label in range(len(names))}
    asked = json.dumps([list(prompts), list(labels), dict(answers)], ensure_ascii=False).encode()
    metadata = {
        "protocol": f"likeliest of {len(names)} answers after a prompt, by the sum of the log-likelihoods of its "
        f"tokens ({_counts(token_P.tolist())} each), {describe_bos(prefix, 'prompt')}",
        "labels": names,
        "confusion": confusion(columns),
        "wrong": _most_wrong(prompts, names, columns),
    }
    return PerExample(kind="labeled", columns=columns, digest=hashlib.sha256(asked).hexdigest(), metadata=metadata)


def _prompt(prefix: Sequence[int], before: Sequence[int], room: int) -> list[int]:
    """The prefix and as much of the prompt's end as there is room for, at least a token."""
    return [*prefix, *before[-max(1, room - len(prefix)) :]]


def _counts(token_P: Sequence[int]) -> str:
    low, high = min(token_P), max(token_P)
    return str(low) if low == high else f"{low} to {high}"


def _most_wrong(
    prompts: Sequence[str], names: Sequence[str], columns: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """The items that were given a wrong label, those first about which the model was surest."""
    probability_IL = np.stack([columns[f"{PROBABILITY}{label}"] for label in range(len(names))], axis=1)
    given_I, label_I = probability_IL.argmax(axis=1), columns[LABEL].astype(np.int64)
    sure_I = probability_IL.max(axis=1)
    wrong = [int(item) for item in np.argsort(-sure_I, kind="stable") if given_I[item] != label_I[item]]
    return [
        {
            "prompt": prompts[item],
            "label": names[label_I[item]],
            "given": names[given_I[item]],
            "probability": float(sure_I[item]),
        }
        for item in wrong[:SHOWN_WORST]
    ]
