"""A config's fields become a command's options, so that a verb and a recipe's stage cannot drift apart.

A field `learning_rate: float = 1e-3` with its docstring becomes `--learning-rate NUMBER  docstring [default: 0.001]`.
What is typed is read as the recipe's YAML is (`1e-4` is a number, `2:4` a text, `{forward_kl: 1}` a mapping) and
checked by the same config class; options that are not given leave the config's own default.
"""

import inspect
import json
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape

from compress.errors import DemitasseError
from compress.registry import OneOf, lazy
from recipes.config.errors import describe

Config = TypeVar("Config", bound=BaseModel)
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
STORE = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        envvar="DEMITASSE_STORE",
        help="Where results are kept and found again; several runs may share one.",
        rich_help_panel="What it writes",
        show_default=False,
    ),
]
LAUNCHER = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="COMMAND",
        help='Train on several processes, started by this command, such as "torchrun --nproc-per-node 4".',
        show_default=False,
    ),
]
carry = lazy("recipes.cli.session:carry")
"""Does a command's work, which is in a module that is imported only then, so that `--help` answers at once."""
QUICK, USUAL, RELEASE = 5, 10, 20
"""Rounds of a benchmark."""
METAVARS: dict[Any, str] = {
    int: "INTEGER",
    float: "NUMBER",
    str: "TEXT",
    Path: "PATH",
    dict: "{KEY: VALUE}",
    tuple: "[VALUE, ...]",
}


class OptionError(DemitasseError):
    """An option's value does not fit; one line per option."""


def parameters(config: type[BaseModel], panel: str) -> list[inspect.Parameter]:
    """One keyword parameter per field, annotated for typer; None stands for "not given"."""
    return [_parameter(name, field, panel) for name, field in config.model_fields.items()]


def build(config: type[Config], given: Mapping[str, object]) -> Config:
    """The config that these options ask for; those that are None were not given.

    Raises:
        OptionError: with every option that does not fit.
    """
    values = {name: _read(name, config.model_fields[name], value) for name, value in given.items() if value is not None}
    try:
        return config.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise OptionError("\n".join(_complaints(config, error))) from error


def command(name: str, doc: str, params: Iterable[inspect.Parameter], run: Callable[..., None]) -> Callable[..., None]:
    """`run(**given)` as a function that typer can read the options off."""

    def shown(**given: object) -> None:
        run(**given)

    listed = list(params)
    shown.__name__, shown.__doc__ = name, doc
    shown.__annotations__ = {param.name: param.annotation for param in listed}
    shown.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined] # inspect.signature reads it
    return shown


def keyword(name: str, annotation: object, default: object = None) -> inspect.Parameter:
    """A keyword parameter of a made command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def option_name(field: str) -> str:
    """learning_rate -> --learning-rate"""
    return f"--{field.replace('_', '-')}"


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    option = option_name(field.alias or name)
    text = escape(f"{' '.join((field.description or '').split())} {_default(field)}".strip())
    if _plain(field.annotation) is bool:
        flag = typer.Option(f"{option}/--no-{option[2:]}", help=text, rich_help_panel=panel, show_default=False)
        return keyword(name, Annotated[bool | None, flag])
    named = next((choice.names for choice in field.metadata if isinstance(choice, OneOf)), None)
    metavar = escape(_metavar(field.annotation) if named is None else "|".join(named))
    return keyword(
        name,
        Annotated[
            str | None, typer.Option(option, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)
        ],
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "[required]"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == ():
        return ""
    return f"[default: {json.dumps(value, default=str) if isinstance(value, dict | bool) else value}]"


def _plain(annotation: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not types.NoneType]
        return choices[0] if len(choices) == 1 else annotation
    return annotation


def _metavar(annotation: Any) -> str:
    plain = _plain(annotation)
    if get_origin(plain) is Literal:
        return "|".join(map(str, get_args(plain)))
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        plain = dict
    return METAVARS.get(get_origin(plain) or plain, "VALUE")


def _read(name: str, field: FieldInfo, value: object) -> object:
    if not isinstance(value, str) or _plain(field.annotation) in (str, Path):
        return value
    try:
        return yaml_value(value)
    except ValueError as error:
        raise OptionError(f"{option_name(name)}: {error}") from error


def yaml_value(text: str) -> object:
    """A value as YAML 1.2 reads it.

    Raises:
        ValueError: the text is no YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value: object = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(f"expected a YAML value, got {text!r}") from error
    return value


def _complaints(config: type[BaseModel], error: ValidationError) -> Iterable[str]:
    for found in error.errors():
        where = [str(part) for part in found["loc"]]
        name = option_name(where[0]) + "".join(f".{part}" for part in where[1:]) if where else ""
        yield ": ".join(part for part in (name, describe(found, config.model_fields)) if part)
