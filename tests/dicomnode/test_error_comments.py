"""Error Comment (0000,0902) is an LO: what the node says to a peer fits, whole, and names no setting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dicomnode
from dicomnode.attributes import BY_KEYWORD, LEVELS, SEQUENCE_OF, UNIQUE_KEY
from dicomnode.config import Query
from dicomnode.query import identifier
from dicomnode.query.identifier import COMPUTED, MAX_BYTES
from dicomnode.reception.defects import ANSWERS

LO_CHARACTERS = 64  # PS3.5 6.2
PACKAGE = Path(dicomnode.__file__).parent


def said(exception: str, argument: int) -> Iterator[tuple[str, ast.expr]]:
    """Where in the package such an exception is made, and with which text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == exception:
                name = node.args[argument]
                # Every text of that name in the file, whichever it is.
                texts = [
                    n.value
                    for n in nodes
                    if isinstance(n, ast.Assign) and ast.dump(n.targets[0]) == _set(name)
                ]
                for number, text in enumerate(texts or [name]):
                    yield f"{path.name}:{node.lineno}.{number}", text


def _set(name: ast.expr) -> str:
    return ast.dump(ast.Name(name.id, ast.Store())) if isinstance(name, ast.Name) else ""


BAD_KEYS = [ast.literal_eval(text) for _, text in said("BadKey", 0)]


def longest(values: object) -> str:
    return max(map(str, values), key=len)  # type: ignore[call-overload]


MOST_MATCHES = Query(max_matches=65535).max_matches
# The longest of everything that a comment is put together from; what is not here fails the test.
LONGEST = {
    "MAX_BYTES": str(MAX_BYTES),
    "keyword": longest([*BY_KEYWORD, *SEQUENCE_OF, *COMPUTED, *identifier.EVERYWHERE]),
    "attribute.keyword": longest(key.keyword for key in UNIQUE_KEY.values()),
    "keys.level": longest(LEVELS),
    "error": longest(BAD_KEYS),
    "self._max_matches": str(MOST_MATCHES),
    "self._settings.max_matches": str(MOST_MATCHES),
}


def at_its_longest(text: ast.expr) -> str:
    if isinstance(text, ast.JoinedStr):
        return "".join(map(at_its_longest, text.values))
    if isinstance(text, ast.FormattedValue):
        return LONGEST[ast.unparse(text.value)]
    return str(ast.literal_eval(text))


COMMENTS = {
    **{where: at_its_longest(text) for where, text in said("Refused", 1)},
    **{defect: answer.sentence for defect, answer in ANSWERS.items()},
}


@pytest.mark.parametrize("where", COMMENTS)
def test_every_comment_fits_whole_and_names_no_setting_of_ours(where: str) -> None:
    comment = COMMENTS[where]
    assert 0 < len(comment) <= LO_CHARACTERS, comment
    assert comment.isascii()
    assert "[" not in comment, "config.toml is nobody's but ours"


def test_the_comments_were_found() -> None:
    assert len(COMMENTS) - len(ANSWERS) >= 15
    assert len(BAD_KEYS) >= 10
