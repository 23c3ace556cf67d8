"""What is wrong with a config.toml, told to the person who edits it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def problems(error: ValidationError, data: dict[str, Any], whole: type[BaseModel]) -> Iterator[str]:
    """A line for each: where, what, and what to do. whole: the model of the file."""
    for item in error.errors():
        where, key = _place(item["loc"], data)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            yield _unknown(where, key, item["loc"], whole)
        elif item["type"] == "missing":
            yield f"{where} lacks the setting {key!r}"
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "value_error" else f", not {item['input']!r}"
            yield f"{where} {key}: {message[:1].lower() + message[1:]}{given}" if where else f"{message}"


def _place(loc: tuple[int | str, ...], data: dict[str, Any]) -> tuple[str, str]:
    """('[receive]', 'port') or ('[[peers]] "PACS"', 'port') for a location in the file."""
    if not loc:
        return "", ""
    if len(loc) == 1:
        value = data.get(str(loc[0]))
        return ("config.toml", str(loc[0])) if not isinstance(value, dict) else (f"[{loc[0]}]", "")
    table = str(loc[0])
    rest = list(loc[1:])
    if isinstance(rest[0], int):
        entry = data[table][rest.pop(0)] if isinstance(data.get(table), list) else {}
        name = entry.get("name", "") if isinstance(entry, dict) else ""
        return f"[[{table}]]" + (f' "{name}"' if name else ""), ".".join(map(str, rest))
    return f"[{table}]", ".".join(map(str, rest))


def _unknown(where: str, key: str, loc: tuple[int | str, ...], whole: type[BaseModel]) -> str:
    """An unknown key, with the nearest one that its table has, or another table."""
    if len(loc) == 1:
        return f"there is no table [{loc[0]}]{_nearest_of(str(loc[0]), list(whole.model_fields), '[{}]')}"
    key = key.rpartition(".")[2]
    known = _known_keys(loc, whole)
    if not difflib.get_close_matches(key, known, n=1):
        for table, field in whole.model_fields.items():
            elsewhere = difflib.get_close_matches(key, _fields(_element(field.annotation)), n=1, cutoff=0.7)
            if elsewhere:
                return f"{where} has no setting {key!r}. Did you mean {elsewhere[0]!r} of [{table}]?"
    return f"{where} has no setting {key!r}{_nearest_of(key, known, '{!r}')}"


def _nearest_of(key: str, known: list[str], shown: str) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f". Did you mean {shown.format(nearest[0])}?" if nearest else f". There are: {', '.join(known)}"


def _known_keys(loc: tuple[int | str, ...], whole: type[BaseModel]) -> list[str]:
    """The settings of the table that holds the unknown key at `loc`."""
    model: Any = whole
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        fields = _fields(model)
        if part in fields:
            model = _element(fields[str(part)])
    return list(_fields(model))


def _fields(model: Any) -> dict[str, Any]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return dict(getattr(model, "__annotations__", {}))


def _element(annotation: Any) -> Any:
    """The model inside `tuple[Model, ...]`, or the annotation itself."""
    if isinstance(annotation, str):
        # Dataclasses of `pipeline` keep their annotations as text.
        from pipeline import activity

        return next((v for k, v in vars(activity).items() if k in annotation and isinstance(v, type)), object)
    arguments = [a for a in get_args(annotation) if a is not Ellipsis]
    return arguments[0] if arguments else annotation


def nearest(name: str, known: list[str], what: str) -> str:
    """The end of "... names X, ": that there is none, and which was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"which is no {what}. Did you mean {close[0]!r}?"
    return f"which is no {what}. Known: {', '.join(known) or 'none'}"
