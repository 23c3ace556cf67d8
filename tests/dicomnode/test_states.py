"""Every (state, event) pair, typed again by hand: a change of the table must be meant."""

import pytest

from dicomnode.errors import IllegalTransition
from dicomnode.states import Event, State, advance, allows

# Columns in the order of Event; "-" is refused.
EXPECTED = """
           INSTANCE   COMPLETE UNCHANGED REJECT CLAIM     ENCODE  STUMBLE GIVE_UP SEND    AWAIT   DELIVER DELIVER_OUTDATED RETRY      RESEND  RECOVER
COLLECTING COLLECTING READY    DONE      HELD   -         -       -       -       -       -       -       -                COLLECTING -       COLLECTING
READY      COLLECTING -        -         HELD   COMPUTING -       -       -       -       -       -       -                COLLECTING -       READY
COMPUTING  COLLECTING -        -         HELD   -         ENCODED READY   FAILED  -       -       -       -                -          -       READY
ENCODED    COLLECTING -        -         -      -         -       -       -       SENDING -       -       -                COLLECTING -       ENCODED
SENDING    SENDING    -        -         -      -         -       SENDING FAILED  -       SENDING DONE    COLLECTING       -          SENDING SENDING
DONE       COLLECTING -        -         -      -         -       -       -       -       -       -       -                COLLECTING SENDING DONE
HELD       COLLECTING -        -         -      -         -       -       -       -       -       -       -                COLLECTING -       HELD
FAILED     COLLECTING -        -         -      -         -       -       -       -       -       -       -                COLLECTING SENDING FAILED
"""  # noqa: E501


def pairs() -> list[tuple[State, Event, str]]:
    header, *rows = [line.split() for line in EXPECTED.strip().splitlines()]
    return [
        (State(row[0]), Event(name), cell) for row in rows for name, cell in zip(header, row[1:], strict=True)
    ]


def test_the_table_names_every_pair_once() -> None:
    named = {(state, event) for state, event, _ in pairs()}
    assert named == {(state, event) for state in State for event in Event}


@pytest.mark.parametrize(("state", "event", "expected"), pairs())
def test_every_pair_leads_where_the_table_says(state: State, event: Event, expected: str) -> None:
    assert allows(state, event) == (expected != "-")
    if expected == "-":
        with pytest.raises(IllegalTransition, match=f"a case that is {state} (does not take|cannot)"):
            advance(state, event)
    else:
        assert advance(state, event) is State(expected)


def test_every_state_but_done_can_be_left_without_a_new_object_or_by_a_person() -> None:
    """No case is stuck for good: a chain of events leads from every state to DONE."""
    for start in State:
        reached, frontier = {start}, [start]
        while frontier:
            state = frontier.pop()
            nexts = {advance(state, event) for event in Event if allows(state, event)} - reached
            reached |= nexts
            frontier += nexts
        assert State.DONE in reached


@pytest.mark.parametrize("event", [Event.RETRY, Event.RESEND])
def test_a_command_that_is_refused_is_answered_without_names_of_the_table(event: Event) -> None:
    refused = [state for state in State if not allows(state, event)]
    assert refused
    for state in refused:
        with pytest.raises(IllegalTransition) as caught:
            advance(state, event)
        assert caught.value.remedy
        assert event not in str(caught.value)


def test_a_case_that_is_sent_to_a_destination_that_is_gone_can_be_helped() -> None:
    with pytest.raises(IllegalTransition, match=r"reload.*dicomnode retry CASE --resend") as caught:
        advance(State.SENDING, Event.RETRY)
    assert "restart" not in caught.value.remedy
    assert allows(State.SENDING, Event.RESEND)
