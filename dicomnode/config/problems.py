"""What is wrong with a config.toml, told to the person who edits it."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dicomnode.config.wording import toml, wrong


def problems(error: ValidationError, data: dict[str, Any], whole: type[BaseModel]) -> list[str]:
    """A line for each: where, what, and what to do. whole: the model of the file."""
    items = [dict(item) for item in error.errors() if not _follows(item)]
    # A list that lacks several values is one problem.
    return list(dict.fromkeys(_told(item, data, whole) for item in items))


def _follows(item: Any) -> bool:
    """Whether it only follows from another: a list whose one entry is wrong is not empty."""
    return item["type"] == "too_short" and bool(len(item["input"]) >= item["ctx"]["min_length"])


def _told(item: dict[str, Any], data: dict[str, Any], whole: type[BaseModel]) -> str:
    loc = item["loc"]
    where, key = _place(loc, data)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown(where, key, loc, whole)
    if item["type"] == "missing":
        if isinstance(loc[-1], int):
            return f"{where} {key}: has too few values: {toml(item['input'])}"
        return f"{where} lacks the setting {key!r}"
    if not loc:
        return wrong(item, "")
    if _is_list_of_tables(loc, whole):
        return f"{loc[0]} is a list of tables: write [[{loc[0]}]] above each of them"
    if len(loc) == 1 and not key:
        return f"{where}: {wrong(item, '')}"
    return f"{where}{' ' + key if key else ''}: {wrong(item, key.rpartition('.')[2])}"


def _is_list_of_tables(loc: tuple[int | str, ...], whole: type[BaseModel]) -> bool:
    field = whole.model_fields.get(str(loc[0]))
    return len(loc) == 1 and field is not None and bool(get_args(field.annotation))


def _place(loc: tuple[int | str, ...], data: dict[str, Any]) -> tuple[str, str]:
    """('[receive]', 'port') or ('[[peers]] "PACS"', 'port') for a location in the file."""
    if not loc:
        return "", ""
    table, rest = str(loc[0]), list(loc[1:])
    where = f"[{table}]"
    if rest and isinstance(rest[0], int):
        where = _entry(table, rest.pop(0), data)
    # An entry of a list is known by its value, which is told; a table within a table by its number.
    while len(rest) > 2 and isinstance(rest[1], int):
        where += f", [[{table}.{rest[0]}]] no. {rest[1] + 1}"
        del rest[:2]
    return where, ".".join(str(part) for part in rest if isinstance(part, str))


def _entry(table: str, number: Any, data: dict[str, Any]) -> str:
    """'[[peers]] "PACS"', or its number where it has no name and is not the only one."""
    entry = data[table][number]
    if name := entry.get("name", "") if isinstance(entry, dict) else "":
        return f'[[{table}]] "{name}"'
    return f"[[{table}]]" + (f" no. {number + 1}" if len(data[table]) > 1 else "")


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
