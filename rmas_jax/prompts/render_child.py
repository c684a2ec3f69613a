"""The script that renders chat templates in a separate process.

A template is code by the author of the checkpoint. jinja's sandbox hides Python from it, and the
process has limits on memory, processor time and length. Standard input and output are JSON, see
`rendering`.
"""

from __future__ import annotations

import datetime
import json
import random
import resource
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja's way)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore, as in transformers."""

    # No parameter is called `self`, so that `namespace(self=1)` works, as in jinja.
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: object) -> None:
    """Refuses names with a leading underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a name of a namespace must not begin with _, got {name!r}"
        )


def raise_exception(message: object) -> None:
    """Called by a template to refuse a conversation."""
    raise jinja2.TemplateError(str(message))


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def build_environment(date: datetime.datetime) -> jinja2.Environment:
    """The jinja environment of transformers, with a fixed clock."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: date.strftime(format),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": Namespace,
    }
    return environment


def render(template: jinja2.Template, variables: dict, most: int) -> dict[str, str]:
    """The text of one conversation, or the error."""
    random.seed(0)  # jinja has a filter `random`
    parts, length = [], 0
    try:
        for part in template.generate(variables):
            length += len(part)
            if length > most:
                return {"error": f"it writes more than {most} characters"}
            parts.append(part)
    except Exception as error:
        return {"error": describe(error)}
    return {"text": "".join(parts)}


def describe(error: Exception) -> str:
    """A short description of a template's error."""
    if isinstance(error, MemoryError):
        return "it exceeds the memory limit"
    if isinstance(error, RecursionError):
        return "its recursion or nesting is too deep"
    return f"{error}"[:300] or type(error).__name__


def main() -> None:
    """Renders all conversations of a request."""
    request = json.load(sys.stdin)
    limits = request["limits"]
    for kind, limit in ((resource.RLIMIT_AS, limits["bytes"]), (resource.RLIMIT_CPU, limits["s"])):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    date = datetime.datetime.fromisoformat(request["date"])
    try:
        template = build_environment(date).from_string(request["template"])
    except Exception as error:
        outcomes = [{"error": describe(error)}] * len(request["conversations"])
    else:
        outcomes = [
            render(template, {**request["variables"], **conversation}, limits["characters"])
            for conversation in request["conversations"]
        ]
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
