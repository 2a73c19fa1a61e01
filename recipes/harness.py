"""Tasks: questions asked of a model of any form, scored by lm-evaluation-harness.

    open_task(TaskConfig) --questions--> ScorerLM over Scorer and Generator --per question--> Items, paired by digest

See the end of this file for what is called from outside; `choices.py` has the config and reads files.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recipes.choices import TaskConfig, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TaskConfig", "TaskError", "ask_task", "open_task", "task_problems"]


def task_problems(config: TaskConfig) -> list[str]:
    """What can be known early, in a moment: the extra is installed, and the files are there and hold questions."""
    raise NotImplementedError


def open_task(config: TaskConfig, *, seed: int = 0) -> Any:
    """The task with its questions; `len()` of it is how many are asked.

    Raises:
        TaskError: the extra is missing, there is no such task, or its data cannot be loaded.
    """
    raise NotImplementedError


def ask_task(
    config: TaskConfig,
    *,
    scorer: Callable[..., Any],
    generator: Callable[..., Any],
    tokenizer: "PreTrainedTokenizerBase",
    context: int,
    batch: int = 8,
    seed: int = 0,
    on_item: Callable[[float], None] = lambda items: None,
) -> Any:
    """Ask the questions; returns `Items` of kind "task".

    Args:
        scorer: token ids [B, T], right padded, to scores [B, T, V].
        generator: prompts' ids and a number of new tokens to the new ids, greedy.
        context: the longest sequence that the model takes, in tokens.
        on_item: told how many items were answered just now; a fraction where an item takes several requests.
    """
    raise NotImplementedError
