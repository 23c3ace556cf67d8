"""Nuclides by any usual name, and their decay."""

import pytest

from pipeline.decay import DAY_S, HOUR_S, NUCLIDES, decay_factor, nuclide
from pipeline.errors import InputRejected


@pytest.mark.parametrize(
    "spelling",
    [
        *("Lu-177", "Lu177", "177Lu", "LU-177", "177-Lu", "lu 177", "Lutetium-177", "^177^Lutetium"),
        *("447553000", "C-101ED", "c-101ed"),
    ],
)
def test_every_usual_spelling_and_both_codes_name_lutetium(spelling: str) -> None:
    assert nuclide(spelling).name == "Lu-177"


@pytest.mark.parametrize(
    ("name", "sct", "srt", "half_life_s"),
    [
        ("Lu-177", "447553000", "C-101ED", 6.647 * 86400),
        ("Y-90", "14691008", "C-162A7", 64.10 * 3600),
        ("I-131", "1368003", "C-114B1", 8.0207 * 86400),
    ],
)
def test_the_table_holds_the_codes_and_half_lives_of_the_standards(
    name: str, sct: str, srt: str, half_life_s: float
) -> None:
    row = nuclide(name)
    assert (row.sct_code, row.srt_code) == (sct, srt)
    assert row.half_life_s == pytest.approx(half_life_s, rel=1e-12)
    assert nuclide(sct) is nuclide(srt) is row


def test_code_meanings_are_spelled_as_in_cid_18() -> None:
    assert [row.code_meaning for row in NUCLIDES] == ["^177^Lutetium", "^90^Yttrium", "^131^Iodine"]


@pytest.mark.parametrize("name", ["Tc-99m", "Lu-176", "177", "", "Lu", "Lu-177m", "I-1311"])
def test_an_unknown_nuclide_is_rejected_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputRejected) as rejected:
        nuclide(name)
    assert repr(name) in rejected.value.reason
    assert "Lu-177, Y-90, I-131" in rejected.value.remedy


def test_half_of_the_activity_is_left_after_one_half_life() -> None:
    lutetium = nuclide("Lu-177")
    assert decay_factor(lutetium, 6.647 * DAY_S) == pytest.approx(0.5, rel=1e-12)
    assert decay_factor(lutetium, 0.0) == 1.0


def test_decay_forth_and_back_cancels() -> None:
    yttrium = nuclide("Y-90")
    there, back = decay_factor(yttrium, 30 * HOUR_S), decay_factor(yttrium, -30 * HOUR_S)
    assert there < 1 < back
    assert there * back == pytest.approx(1.0, rel=1e-12)
