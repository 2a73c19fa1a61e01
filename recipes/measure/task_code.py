"""Whether the task configurations of a folder would run code, told from their text alone, before anything is run.

lm-evaluation-harness runs Python that a configuration (.yaml) names, as soon as the task is opened:

    !function utils.process     a function of a file beside it, or of any module that can be imported
    metric: NAME                of a metric that the harness does not know: a script of the hub's or of a local folder

Templates in it ({{ ... }}) could reach any module, too: they are rendered in Jinja's sandbox, always.

The folder is trusted as a whole or not at all: one configuration with code refuses it, whichever task is asked.
Configurations that they include are read too, wherever they lie, except the harness's own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.measure.question_files import TaskError

PLAIN = "tag:yaml.org,2002:"


def check_code(name: str, folder: Path) -> None:
    """Refuse a folder whose task configurations name code.

    Raises:
        TaskError: one does; it tells file and line.
    """
    for file in _configurations(folder):
        for line, what in _code_in(file):
            raise TaskError(
                f"{name}: {file}:{line}: expected a task configuration without code, got {what}, which would run Python"
                "; read it, then allow it with `allow_code: true` beside `include`"
            )


def sandbox_templates() -> None:
    """Render the harness's templates in Jinja's sandbox, in which they reach no modules."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    if not isinstance(lm_eval.utils.env, SandboxedEnvironment):
        theirs = lm_eval.utils.env
        safe = SandboxedEnvironment(loader=theirs.loader, undefined=theirs.undefined, keep_trailing_newline=True)
        safe.filters.update(theirs.filters)
        lm_eval.utils.env = safe


def _configurations(folder: Path) -> Iterator[Path]:
    """Every configuration of a folder, and those that they include."""
    import lm_eval

    (own,) = lm_eval.__path__
    waiting, seen = sorted(folder.rglob("*.yaml")), set[Path]()
    while waiting:
        file = waiting.pop(0).expanduser().resolve()
        if file in seen or not file.is_file() or file.is_relative_to(Path(own).resolve()):
            continue
        seen.add(file)
        yield file
        waiting += [file.parent / included for included in _included(file)]


def _included(file: Path) -> list[str]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        included = load_yaml(file, resolve_func=False, recursive=False).get("include", [])
    except Exception:  # no configuration: the harness cannot read it either, so nothing of it runs
        return []
    return [str(path) for path in (included if isinstance(included, list) else [included])]


def _code_in(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that name code, and what stands there."""
    import yaml

    try:
        with file.open("rb") as stream:
            root = yaml.compose(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, OSError):  # as above
        return
    waiting, seen = [root], set[int]()
    while waiting:
        node: Any = waiting.pop()
        if node is None or id(node) in seen:  # an anchor's node is there more than once
            continue
        seen.add(id(node))
        if not node.tag.startswith(PLAIN) or node.tag.startswith(f"{PLAIN}python"):
            yield node.start_mark.line + 1, f"{node.tag} {' '.join(str(node.value).split())[:60]}"
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
            yield from _metrics_in(node)


def _metrics_in(node: Any) -> Iterator[tuple[int, str]]:
    """Metrics that are scripts."""
    import lm_eval.api.metrics  # noqa: F401  # it fills the registry
    from lm_eval.api.registry import metric_registry

    for key, value in node.value:
        theirs = key.value == "metric" and isinstance(value.value, str) and value.value not in metric_registry
        if theirs or (key.value == "hf_evaluate" and str(value.value).lower() != "false"):
            yield value.start_mark.line + 1, f"`{key.value}: {value.value}`, which loads a script"
