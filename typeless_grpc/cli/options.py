"""Groups of options: a command with a frozen dataclass as parameter has an option for each of its fields.

If a group has a method `check`, it gets the options that stand on the command line, as a mapping from name to flag.
Variables and defaults are not among them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints

import typer


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with a signature for typer, in which the options of a group stand in place of the group."""
    parameters = inspect.signature(function, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation for name, parameter in parameters.items() if is_dataclass(parameter.annotation)
    }

    @functools.wraps(function)
    def run(*, context: typer.Context, **values: Any) -> None:
        taken = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        for group in taken.values():
            if hasattr(group, "check"):
                group.check(_given(context))
        function(**values, **taken)

    own = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    sign(run, [own, *(option for parameter in parameters.values() for option in _options(parameter))])
    return run


def _given(context: typer.Context) -> dict[str, str]:
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    sources = {name: context.get_parameter_source(name) for name in flags}
    return {name: flags[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def sign(function: Callable[..., None], parameters: Iterable[Parameter]) -> None:
    """Replace the parameters that typer reads from a function."""
    by_keyword = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    function.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in by_keyword}


def _options(parameter: Parameter) -> Iterator[Parameter]:
    group = parameter.annotation
    if not is_dataclass(group):
        yield parameter
        return
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = Parameter.empty if field.default is MISSING else field.default
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
