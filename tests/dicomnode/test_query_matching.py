"""Matching of keys (PS3.4 C.2.2.2): tables of cases, and the ledger's SQL against a plain matcher."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy.dialects import postgresql, sqlite

from dicomnode.attributes import BY_KEYWORD, Attribute, Kind, Level, Like, Question, folded_name, time_range
from dicomnode.ledger import Ledger
from dicomnode.ledger.search import matching
from dicomnode.query.identifier import BAD_KEY, IDENTIFIER_MISMATCH, Refused, read, to_query, to_retrieval
from dicomnode.query.matching import BadKey, conditions, is_universal
from tests.dicomnode.modality import encoded
from tests.dicomnode.querier import described, keys
from tests.postgres import PostgresServer

# One study each: the values that keys are matched with. Every sign that SQL gives a meaning is among them.
STUDIES: dict[str, dict[str, str]] = {
    "1.1": {"PatientName": "Doe^Jane", "PatientID": "A_1", "StudyDate": "20240102", "StudyTime": "1030"},
    "1.2": {"PatientName": "DOE^JOHN", "PatientID": "A%1", "StudyDate": "20240103", "StudyTime": "103000"},
    "1.3": {"PatientName": "Doe", "PatientID": "AX1", "StudyDate": "20231231", "StudyTime": "103059.5"},
    "1.4": {"PatientName": "Müller^Jörg", "PatientID": "[a]", "StudyDate": "20240102", "StudyTime": "000000"},
    "1.5": {
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "PatientID": "a",
        "StudyDate": "20240102",
        "StudyTime": "235959.999999",
    },
    "1.6": {"PatientName": "", "PatientID": "/x/", "StudyDate": "", "StudyTime": ""},
    "1.7": {"PatientName": "van der Berg^A^B^Dr", "PatientID": "ax1", "StudyDate": "2024.02.29"},
    "1.8": {"PatientName": "O'Neil^Pat^^^", "PatientID": "\\ ".strip("\\ ") or "9", "StudyTime": "10"},
    "1.9": {"PatientName": "doe^jane^^^", "PatientID": "A__1", "StudyDate": "notadate", "StudyTime": "99"},
}


def filled(ledger: Ledger) -> Ledger:
    ledger.add_instances([described(uid, 1, **values) for uid, values in STUDIES.items()], 0.0)
    return ledger


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('matching') / 'ledger.sqlite3'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.new_database()
    opened = filled(Ledger.open(url))
    yield opened
    opened.close()


def matched(ledger: Ledger, keyword: str, text: str) -> set[str]:
    """Study Instance UIDs of the studies that a key matches."""
    question = Question(Level.STUDY, conditions(BY_KEYWORD[keyword], text))
    rows = ledger.attributes(Level.STUDY, ledger.find(question, 100))
    return {row["study_instance_uid"] for row in rows}


EVERYTHING = set(STUDIES)


@pytest.mark.parametrize(
    ("keyword", "text", "expected"),
    [
        # C.2.2.2.1 single value: names without case, everything else with it.
        ("PatientName", "DOE^JANE", {"1.1", "1.9"}),
        ("PatientName", "doe", {"1.3"}),
        ("PatientName", "Doe^", {"1.3"}),
        ("PatientName", "MÜLLER^JÖRG", {"1.4"}),
        ("PatientName", "Muller^Jorg", set()),
        ("PatientName", "O'Neil^Pat", {"1.8"}),
        ("PatientName", "山田^太郎", {"1.5"}),
        ("PatientName", "YAMADA^TAROU", {"1.5"}),
        ("PatientName", "=山田*", {"1.5"}),
        ("PatientName", "yamada*=山田^太郎=やまだ*", {"1.5"}),
        ("PatientName", "山田*=yamada*", set()),
        ("PatientID", "ax1", {"1.7"}),
        ("PatientID", "AX1 ", {"1.3"}),
        ("PatientID", "A_1", {"1.1"}),
        ("PatientID", "A%1", {"1.2"}),
        ("StudyDate", "20240102", {"1.1", "1.4", "1.5"}),
        ("StudyDate", "20240229", {"1.7"}),
        ("StudyTime", "1030", {"1.1", "1.2", "1.3"}),
        ("StudyTime", "103000", {"1.1", "1.2"}),
        ("StudyTime", "10:30:00", {"1.1", "1.2"}),
        ("StudyTime", "10", {"1.1", "1.2", "1.3", "1.8"}),
        # C.2.2.2.2 list of UIDs.
        ("StudyInstanceUID", "1.1\\1.4\\7.7", {"1.1", "1.4"}),
        ("StudyInstanceUID", "1.1", {"1.1"}),
        # C.2.2.2.3 universal.
        ("PatientName", "", EVERYTHING),
        ("PatientName", "*", EVERYTHING),
        ("PatientName", "***", EVERYTHING),
        ("StudyDate", "*", EVERYTHING),
        ("StudyInstanceUID", "\\", EVERYTHING),
        # C.2.2.2.4 wild cards.
        ("PatientName", "d*", {"1.1", "1.2", "1.3", "1.9"}),
        ("PatientName", "doe^*", {"1.1", "1.2", "1.3", "1.9"}),
        ("PatientName", "?oe^j*", {"1.1", "1.2", "1.9"}),
        ("PatientName", "m?ller*", {"1.4"}),
        ("PatientName", "*berg*dr", {"1.7"}),
        ("PatientName", "*太*", {"1.5"}),
        ("PatientID", "A?1", {"1.1", "1.2", "1.3"}),
        ("PatientID", "A*1", {"1.1", "1.2", "1.3", "1.9"}),
        ("PatientID", "a*", {"1.5", "1.7"}),
        ("PatientID", "A_*", {"1.1", "1.9"}),
        ("PatientID", "*%*", {"1.2"}),
        ("PatientID", "[*", {"1.4"}),
        ("PatientID", "[a]*", {"1.4"}),
        ("PatientID", "?x?", {"1.6", "1.7"}),
        ("PatientID", "/*/", {"1.6"}),
        ("PatientID", "A_1\\[a]", {"1.1", "1.4"}),
        # C.2.2.2.5 ranges; an empty value lies in none.
        ("StudyDate", "20240101-20240102", {"1.1", "1.4", "1.5"}),
        ("StudyDate", "-20240101", {"1.3"}),
        ("StudyDate", "20240103-", {"1.2", "1.7"}),
        ("StudyDate", "2024.01.03-20240103", {"1.2"}),
        ("StudyDate", "20250101-20240101", set()),
        ("StudyTime", "1030-1030", {"1.1", "1.2", "1.3"}),
        ("StudyTime", "-103000", {"1.1", "1.2", "1.4", "1.8"}),
        ("StudyTime", "103000.1-", {"1.3", "1.5"}),
        ("StudyTime", "11-", {"1.5"}),
    ],
)
def test_keys_match_as_the_standard_says(ledger: Ledger, keyword: str, text: str, expected: set[str]) -> None:
    assert matched(ledger, keyword, text) == expected


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("StudyDate", "2024*"),
        ("StudyDate", "20241301"),
        ("StudyDate", "-"),
        ("StudyDate", "yesterday"),
        ("StudyTime", "10*"),
        ("StudyTime", "2500"),
        ("StudyTime", "-"),
        ("StudyInstanceUID", "1.2*"),
        ("StudyInstanceUID", "../../etc"),
        ("SeriesNumber", "1*"),
        ("SeriesNumber", "1-5"),
        ("SeriesNumber", "99999999999"),
        ("PatientName", "a=b\\c=d"),
        ("PatientName", "a=b=c=d"),
        ("PatientID", "\\".join(f"{n}*" for n in range(101))),
        ("StudyInstanceUID", "\\".join(f"1.{n}" for n in range(10001))),
        ("PatientID", "x" * 1025),
    ],
)
def test_what_a_value_representation_does_not_allow_is_refused(keyword: str, text: str) -> None:
    with pytest.raises(BadKey):
        conditions(BY_KEYWORD[keyword], text)


@pytest.mark.parametrize(
    ("keyword", "form"),
    [("PatientBirthDate", "YYYYMMDD(-YYYYMMDD)"), ("StudyTime", "HHMMSS(-HHMMSS)")],
)
def test_a_date_or_time_that_is_refused_is_told_its_form(keyword: str, form: str) -> None:
    with pytest.raises(BadKey) as caught:
        conditions(BY_KEYWORD[keyword], "yesterday")
    assert form in str(caught.value)
    assert len(f"{keyword}: {caught.value}") <= 64, "Error Comment is an LO"


# ── against a matcher that is plain to see ───────────────────────────────────────────────────────


def naive(attribute: Attribute, text: str, value: str) -> bool:
    """Whether one value matches a key: no SQL, no index, no cleverness."""
    if is_universal(text):
        return True
    wanted = [part.strip() for part in text.split("\\") if part.strip()]
    if attribute.kind is Kind.NAME:
        if not all(map(folded_name, wanted)):
            return True
        groups = [group for group in folded_name(value).split("=") if group]
        return any(plain(part, group) for w in wanted for part in trimmed(w) for group in groups)
    if attribute.kind is Kind.TIME:
        return any(in_time(w, value) for w in wanted)
    if attribute.kind is Kind.DATE:
        return any(in_dates(w, value) for w in wanted)
    return any(plain(w, value) for w in wanted)


def trimmed(pattern: str) -> list[str]:
    """A name's pattern, and what it also means because empty components at the end count for nothing."""
    pattern = "^".join(part.strip() for part in unicodedata.normalize("NFC", pattern).lower().split("^"))
    pattern = pattern.rstrip("^")
    also = [pattern]
    while pattern.endswith("^*"):
        pattern = pattern[:-2].rstrip("^")
        also += [pattern] if pattern else []
    return also


def plain(pattern: str, value: str) -> bool:
    signs = {"*": ".*", "?": "."}
    return re.fullmatch("".join(signs.get(c, re.escape(c)) for c in pattern), value, re.DOTALL) is not None


def in_dates(wanted: str, value: str) -> bool:
    value = value.replace(".", "")
    low, dash, high = wanted.partition("-")
    return bool(re.fullmatch(r"\d{8}", value)) and (low or "0") <= value <= ((high or "9") if dash else low)


def in_time(wanted: str, value: str) -> bool:
    at = time_range(value)[0]
    low, dash, high = wanted.partition("-")
    first = time_range(low)[0] if low else "0"
    last = (time_range(high)[1] if high else "9") if dash else time_range(low)[1]
    return bool(at) and first <= at <= last


ALPHABET = "aAx1d_%[]^/*?-oeü"
TEXTS = st.text(ALPHABET, max_size=6)
DATES = st.sampled_from(["20231231", "20240102", "20240103", "20240229", "20250101"])
TIMES = st.sampled_from(["00", "10", "1030", "103000", "103059.5", "2359", "235959.999999"])


def ranges(ends: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(ends, ends)
    return st.one_of(ends, two.map("-".join), ends.map("{}-".format), ends.map("-{}".format))


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just("PatientID"), TEXTS),
        st.tuples(st.just("PatientName"), st.text("dDoe^jJanüÜ*? ", max_size=7)),
        st.tuples(st.just("StudyDate"), ranges(DATES)),
        st.tuples(st.just("StudyTime"), ranges(TIMES)),
    )
)
def test_the_ledger_finds_what_a_plain_matcher_finds(ledger: Ledger, key: tuple[str, str]) -> None:
    keyword, text = key
    attribute = BY_KEYWORD[keyword]
    expected = {uid for uid, v in STUDIES.items() if naive(attribute, text, v.get(keyword, "").strip())}
    assert matched(ledger, keyword, text) == expected


def test_wild_cards_become_glob_or_like_with_every_other_sign_as_itself() -> None:
    condition = conditions(BY_KEYWORD["PatientID"], "a%b_[c/?*")
    assert condition[0].tests == (Like("a%b_[c/?*"),)
    statement = matching(Question(Level.STUDY, condition))
    glob, like = statement.compile(dialect=sqlite.dialect()), statement.compile(dialect=postgresql.dialect())
    assert " GLOB ?" in str(glob)
    assert "a%b_[[]c/?*" in glob.params.values()
    assert "ESCAPE '/'" in str(like)
    assert "a/%b/_[c//_%" in like.params.values()


# ── the Identifier ───────────────────────────────────────────────────────────────────────────────


def content(identifier: Dataset) -> BytesIO:
    return BytesIO(encoded(identifier))


def understood(identifier: Dataset, *, patient_root: bool = False, combined: bool = False) -> Question:
    request = read(content(identifier), ExplicitVRLittleEndian)
    return to_query(request, patient_root=patient_root, combined=combined).question


@pytest.mark.parametrize(
    ("level", "values", "patient_root"),
    [
        ("PATIENT", {}, False),
        ("", {}, True),
        ("FRAME", {}, True),
        ("STUDY", {}, True),
        ("STUDY", {"PatientID": "A*"}, True),
        ("SERIES", {}, False),
        ("SERIES", {"PatientID": "A"}, True),
        ("SERIES", {"StudyInstanceUID": ["1.2", "1.3"]}, False),
        ("IMAGE", {"StudyInstanceUID": "1.2"}, False),
        ("IMAGE", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "*"}, False),
    ],
)
def test_an_identifier_that_does_not_fit_its_model_is_refused(
    level: str, values: dict[str, object], patient_root: bool
) -> None:
    with pytest.raises(Refused) as refused:
        understood(keys(level, **values), patient_root=patient_root)
    assert refused.value.status == IDENTIFIER_MISMATCH
    assert refused.value.offending


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200), st.booleans(), st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian])
)
def test_whatever_comes_is_understood_or_refused(data: bytes, patient_root: bool, syntax: str) -> None:
    level = b"\x08\x00\x52\x00CS\x06\x00STUDY "
    for content in (data, level + data):
        status = 0
        try:
            to_query(read(BytesIO(content), syntax), patient_root=patient_root, combined=True)
        except Refused as refused:
            status = refused.status
        assert status in (0, 0xA900, 0xC000, 0xC001)


def test_as_many_values_as_are_taken_are_asked_for(ledger: Ledger) -> None:
    assert matched(ledger, "StudyInstanceUID", "\\".join(f"1.{n}" for n in range(10000))) == EVERYTHING
    assert matched(ledger, "PatientName", "\\".join(f"{n}*" for n in range(99)) + "\\doe") == {"1.3"}


def test_a_key_that_cannot_be_understood_is_named_without_its_value() -> None:
    with pytest.raises(Refused) as refused:
        understood(keys("STUDY", StudyInstanceUID="", PatientName="a=b=c=d"))
    assert refused.value.status == BAD_KEY
    assert refused.value.offending == BY_KEYWORD["PatientName"].tag
    assert "PatientName" in refused.value.comment
    assert "b=c" not in refused.value.comment


def test_what_is_no_data_set_is_refused() -> None:
    for data in (b"\x08\x00\x52\x00CS\x40\x00STUDY ", b"\xff" * 30, b"\x00\x00\x02\x00UI\x02\x001\0"):
        with pytest.raises(Refused) as refused:
            read(BytesIO(data), ExplicitVRLittleEndian)
        assert refused.value.status == 0xC000


@pytest.mark.parametrize(
    ("extra", "complete"),
    [
        ({"PatientName": "D*", "StudyDate": "", "ModalitiesInStudy": "CT"}, True),
        ({"NumberOfStudyRelatedInstances": ""}, True),
        ({"NumberOfStudyRelatedInstances": "5"}, False),
        ({"Modality": ""}, False),
        ({"NumberOfSeriesRelatedInstances": ""}, False),
        ({"OtherPatientIDs": "X"}, True),
        ({"RequestAttributesSequence": []}, False),
        ({"ReferencedStudySequence": []}, False),
        ({"TimezoneOffsetFromUTC": "+0100"}, True),
    ],
)
def test_keys_that_are_not_supported_at_the_level_are_told_apart(
    extra: dict[str, object], complete: bool
) -> None:
    request = read(content(keys("STUDY", StudyInstanceUID="", **extra)), ExplicitVRLittleEndian)
    assert to_query(request, patient_root=False, combined=False).complete is complete


def test_keys_are_read_in_the_character_set_of_the_request(ledger: Ledger) -> None:
    for character_set in ("ISO_IR 100", "ISO_IR 192"):
        question = understood(keys("STUDY", character_set, PatientName="mü*", StudyInstanceUID=""))
        rows = ledger.attributes(Level.STUDY, ledger.find(question, 9))
        assert [row["study_instance_uid"] for row in rows] == ["1.4"]


def test_date_and_time_are_one_moment_where_that_was_negotiated(ledger: Ledger) -> None:
    asked = keys("STUDY", StudyInstanceUID="", StudyDate="20240102-20240103", StudyTime="1030-1030")

    def found(combined: bool) -> set[str]:
        rows = ledger.attributes(Level.STUDY, ledger.find(understood(asked, combined=combined), 99))
        return {row["study_instance_uid"] for row in rows}

    assert found(False) == {"1.1", "1.2"}
    assert found(True) == {"1.1", "1.2", "1.5"}  # 1.5: late on the first day


@pytest.mark.parametrize(
    ("level", "values", "patient_root"),
    [
        ("STUDY", {}, False),
        ("STUDY", {"StudyInstanceUID": "*"}, False),
        ("PATIENT", {"PatientID": "A*"}, True),
        ("PATIENT", {"PatientID": ["A", "B"]}, True),
        ("PATIENT", {"PatientID": "A"}, False),
        ("IMAGE", {"StudyInstanceUID": "1.2", "SOPInstanceUID": "1.2.3"}, False),
    ],
)
def test_a_retrieval_needs_its_unique_keys(level: str, values: dict[str, object], patient_root: bool) -> None:
    request = read(content(keys(level, **values)), ExplicitVRLittleEndian)
    with pytest.raises(Refused) as refused:
        to_retrieval(request, patient_root=patient_root)
    assert refused.value.status == IDENTIFIER_MISMATCH
