"""What is wrong with one value of config.toml, in the words of the file: lists, text, whole numbers."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from typing import Any

_CHOICE = re.compile(r"'([^']*)'|(\d+)")
_LONGEST = 60  # characters of a value that are shown

# What a value must look like where the check is a pattern, which is no sentence.
FORMS: dict[str, str] = {
    "ae_title": "1 to 16 characters, not all of them spaces, without backslash and control characters",
    "certificate_sha256": "64 hexadecimal digits, as `openssl x509 -fingerprint -sha256` prints them",
    "name": "at most 32 letters, digits, hyphens and underscores",
    "scheduler": "tcp://HOST:PORT or tls://HOST:PORT",
    "uid_root": 'numbers and dots, with a dot at the end, such as "1.2.826."',
}


def wrong(item: dict[str, Any], setting: str) -> str:
    """The sentence about a value. item: an error of pydantic's. setting: the name of what it is about."""
    kind, given = item["type"], item["input"]
    if kind == "value_error":
        text: str = item["msg"].removeprefix("Value error, ")
        return text[:1].lower() + text[1:]
    if kind == "literal_error":
        return _no_choice(given, item["ctx"]["expected"])
    if kind == "string_pattern_mismatch":
        return _needs(FORMS.get(setting, f"a value that matches {item['ctx']['pattern']}"), given)
    if kind in _BOUNDS:
        bound, name = _BOUNDS[kind]
        limit = item["ctx"][name]
        limit = int(limit) if limit == int(limit) else limit
        return f"{toml(given)} is out of range: {bound} {limit}"
    if kind in _LENGTHS:
        count, name = _LENGTHS[kind]
        limit = item["ctx"][name]
        what = "value" if kind.startswith("too_") else "character"
        return _needs(f"{count} {limit} {what}{'' if limit == 1 else 's'}", given)
    if kind == "tuple_type":
        return _needs(f"a list, such as {_list_of(given)}", given)
    for start, needed in _KINDS.items():
        if kind.startswith(start):
            return _needs(needed, given)
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}, not {toml(given)}"


def toml(value: object) -> str:
    """A value as the file would have it, cut where it is long."""
    text = _spelt(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


def _spelt(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelt, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {_spelt(v)}' for k, v in value.items())} }}"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
    "string_too_short": ("at least", "min_length"),
    "string_too_long": ("at most", "max_length"),
}
# By how the name of pydantic's error begins.
_KINDS = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_": "text in quotes",
    "path_": "a path in quotes",
    "date_": "a date, such as 2026-01-31",
    "dict_": "a table, such as { name = value }",
    "model_": "a table of settings",
    "dataclass_": "a table of settings",
}


def _needs(what: str, given: object) -> str:
    return f"needs {what}, not {toml(given)}"


def _list_of(given: object) -> str:
    """An example made of what was given, which is probably what the list should hold."""
    return toml([given]) if isinstance(given, str | int | float) else '["..."]'


def _no_choice(given: object, expected: str) -> str:
    """A word that is not among those that there are, with the nearest one."""
    words = [found[1] or found[2] for found in _CHOICE.finditer(expected)]
    quoted: Callable[[str], str] = toml if "'" in expected else str
    text = f"{toml(given)} is none of {', '.join(map(quoted, words))}"
    near = difflib.get_close_matches(str(given).lower(), [word.lower() for word in words], n=1, cutoff=0.5)
    meant = [word for word in words if word.lower() in near]
    return f"{text}. Did you mean {quoted(meant[0])}?" if meant else text
