"""The life of a case: one Enum, one table, one function.

::

                 ┌────────────── INSTANCE (a late object) ───────────────┐
                 ▼                                                       │
    ──▶ COLLECTING ──COMPLETE──▶ READY ──CLAIM──▶ COMPUTING ──ENCODE──▶ ENCODED
          │  ▲  ▲                  ▲                 │ │ │                 │ SEND
          │  │  └─ RETRY ─┐        └────STUMBLE──────┘ │ │                 ▼
      REJECT │            │                            │ │     ┌─────── SENDING ◀─ RESEND
          ▼  │            │                            │ │     │           │ DELIVER
         HELD ◀───────────┼──────────REJECT────────────┘ │  GIVE_UP        ▼
                        FAILED ◀────────GIVE_UP──────────┴─────┘         DONE

Nobody but `advance` decides a state, and nobody but the ledger stores one. A pair that is not in
the table is refused: it would be a bug in a stage, and a case must not wander.
"""

from __future__ import annotations

from enum import StrEnum

from dicomnode.errors import IllegalTransition


class State(StrEnum):
    """Where a case stands."""

    COLLECTING = "COLLECTING"
    """Objects arrive; the study is not known to be complete."""
    READY = "READY"
    """Complete and consistent; waits for the engine."""
    COMPUTING = "COMPUTING"
    """Claimed by a child process."""
    ENCODED = "ENCODED"
    """Results are on disk with their final UIDs; nothing has been sent."""
    SENDING = "SENDING"
    """At least one attempt to send has begun."""
    DONE = "DONE"
    """Every result was accepted by every destination, and committed to where one is asked to."""
    HELD = "HELD"
    """A person must act; reason and remedy are recorded."""
    FAILED = "FAILED"
    """The attempts are used up; reason and remedy are recorded."""


class Event(StrEnum):
    """What can happen to a case."""

    INSTANCE = "INSTANCE"
    """An object was received that was not there before."""
    COMPLETE = "COMPLETE"
    """Assembled: the inputs are chosen, complete and consistent."""
    UNCHANGED = "UNCHANGED"
    """Assembled to the very inputs that were computed and delivered already."""
    REJECT = "REJECT"
    """It cannot go on safely without a person."""
    CLAIM = "CLAIM"
    """A computing attempt begins."""
    ENCODE = "ENCODE"
    """The results are on disk and registered."""
    STUMBLE = "STUMBLE"
    """An attempt failed and another will follow."""
    GIVE_UP = "GIVE_UP"
    """The last attempt failed."""
    SEND = "SEND"
    """Sending begins."""
    AWAIT = "AWAIT"
    """Every destination accepted every object; one has yet to commit to keeping them."""
    DELIVER = "DELIVER"
    """Every destination accepted every object, and committed to it where it is asked to."""
    DELIVER_OUTDATED = "DELIVER_OUTDATED"
    """Every destination accepted every object, but one that matters arrived while they were sent."""
    RETRY = "RETRY"
    """A person asks to begin again from what was received."""
    RESEND = "RESEND"
    """A person asks to send the existing results again."""
    RECOVER = "RECOVER"
    """The node started and found the case as the last run left it."""


# Rows read: in this state, these events lead there. Reasons for the less obvious ones:
# * An object that arrives while the case computes makes the computation worthless: it is stopped.
# * ENCODED has sent nothing, so outdated results are withdrawn; SENDING may have, so it finishes
#   and the new input then gives a new result that names its predecessor.
# * After a failed sending the case stays in SENDING: some destination may hold some objects.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.COLLECTING: {
        Event.INSTANCE: State.COLLECTING,
        Event.COMPLETE: State.READY,
        Event.UNCHANGED: State.DONE,
        Event.REJECT: State.HELD,
        Event.RETRY: State.COLLECTING,
        Event.RECOVER: State.COLLECTING,
    },
    State.READY: {
        Event.INSTANCE: State.COLLECTING,
        Event.CLAIM: State.COMPUTING,
        Event.REJECT: State.HELD,
        Event.RETRY: State.COLLECTING,
        Event.RECOVER: State.READY,
    },
    State.COMPUTING: {
        Event.INSTANCE: State.COLLECTING,
        Event.ENCODE: State.ENCODED,
        Event.STUMBLE: State.READY,
        Event.GIVE_UP: State.FAILED,
        Event.REJECT: State.HELD,
        Event.RECOVER: State.READY,
    },
    State.ENCODED: {
        Event.INSTANCE: State.COLLECTING,
        Event.SEND: State.SENDING,
        Event.RETRY: State.COLLECTING,
        Event.RECOVER: State.ENCODED,
    },
    State.SENDING: {
        Event.INSTANCE: State.SENDING,
        Event.STUMBLE: State.SENDING,
        Event.AWAIT: State.SENDING,
        Event.DELIVER: State.DONE,
        Event.DELIVER_OUTDATED: State.COLLECTING,
        Event.GIVE_UP: State.FAILED,
        Event.RESEND: State.SENDING,
        Event.RECOVER: State.SENDING,
    },
    State.DONE: {
        Event.INSTANCE: State.COLLECTING,
        Event.RETRY: State.COLLECTING,
        Event.RESEND: State.SENDING,
        Event.RECOVER: State.DONE,
    },
    State.HELD: {
        Event.INSTANCE: State.COLLECTING,
        Event.RETRY: State.COLLECTING,
        Event.RECOVER: State.HELD,
    },
    State.FAILED: {
        Event.INSTANCE: State.COLLECTING,
        Event.RETRY: State.COLLECTING,
        Event.RESEND: State.SENDING,
        Event.RECOVER: State.FAILED,
    },
}


# What a person can do whose command is refused.
_REFUSED: dict[Event | tuple[State, Event], str] = {
    Event.RETRY: "Wait until it has ended: `dicomnode cases` tells",
    (
        State.SENDING,
        Event.RETRY,
    ): "Wait until its results are sent. Where a destination is gone for good, take it "
    "out of [deliver] to, have the node reload (SIGHUP), then `dicomnode retry CASE --resend`",
    Event.RESEND: "It has no results to send again: wait for them, or `dicomnode retry` without --resend",
    (State.ENCODED, Event.RESEND): "Its results are about to be sent for the first time",
}


# What a person has asked for, whose command is refused.
_ASKED = {Event.RETRY: "begin again", Event.RESEND: "have its results sent again"}


def advance(state: State, event: Event) -> State:
    """The state that follows. Raises IllegalTransition for a pair that the table refuses."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        remedy = _REFUSED.get((state, event)) or _REFUSED.get(event, "")
        asked = f"cannot {_ASKED[event]}" if event in _ASKED else f"does not take the event {event}"
        raise IllegalTransition(f"a case that is {state} {asked}", remedy) from None


def allows(state: State, event: Event) -> bool:
    """Whether `event` may happen to a case in `state`."""
    return event in TRANSITIONS[state]
