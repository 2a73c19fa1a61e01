"""A bundle as MLflow's `pyfunc` asks for it: rows of prompts in, the texts that they go on with out.

    model = mlflow.pyfunc.load_model("models:/NAME/1")
    model.predict(["The old house stood"], params={"max_new_tokens": 32})     ["The old house stood upon ..."]

`_load_pyfunc` is the name that MLflow calls. Rows are generated as one batch; each draws from a generator of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.runtime.batch import PromptError
from export.runtime.model import OnnxCausalLM
from export.runtime.prompts import open_tokenizer, read_prompt, stream_text
from export.runtime.sampling import Sampling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NEW_TOKENS = "max_new_tokens"
PARAMETERS: dict[str, int | float] = {NEW_TOKENS: 64, **asdict(Sampling())}
"""What may be asked for beside the prompts, and its defaults."""


@dataclass(frozen=True)
class TextModel:
    """A bundle that goes on with texts."""

    model: OnnxCausalLM
    tokenizer: "Tokenizer"

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """The prompts, each with what the model adds.

        Args:
            model_input: texts, or a table with a column of them.
            params: any of `PARAMETERS`.

        Raises:
            PromptError: a prompt or a parameter is not usable.
        """
        asked = {**PARAMETERS, **(params or {})}
        unknown = sorted(asked.keys() - PARAMETERS.keys())
        if unknown:
            raise PromptError(f"expected {', '.join(PARAMETERS)}, got {', '.join(unknown)}")
        tokens = int(asked.pop(NEW_TOKENS))
        try:
            sampling = Sampling(**asked)
        except (ValueError, TypeError) as error:
            raise PromptError(str(error)) from error
        prompts = _prompts(model_input)
        rows = [read_prompt(self.tokenizer, prompt) for prompt in prompts]
        found = self.model.generate(rows, max_new_tokens=tokens, sampling=sampling) if rows else []
        return [
            prompt + "".join(stream_text(self.tokenizer, ids, new))
            for prompt, ids, new in zip(prompts, rows, found, strict=True)
        ]


def _prompts(given: Any) -> list[str]:
    """The texts of a table's only column, of a list, or a single one."""
    column: Iterable[Any] = [given] if isinstance(given, str) else given
    if hasattr(given, "columns"):
        names = list(given.columns)
        if len(names) != 1:
            raise PromptError(f"expected one column of prompts, got {', '.join(map(str, names)) or 'none'}")
        column = given[names[0]]
    prompts = list(column)
    wrong = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
    if wrong is not None:
        raise PromptError(f"expected texts, got {type(wrong).__name__}")
    return prompts


def _load_pyfunc(path: str) -> TextModel:
    """The model in a bundle's folder."""
    bundle = Path(path)
    return TextModel(OnnxCausalLM.open(bundle), open_tokenizer(bundle))
