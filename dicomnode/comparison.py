"""Before a study goes on: what PACS are to be asked about it, and what came of that.

Assembly says what a case lacks, or that it is complete as far as it can see; `fetch` asks. They meet in the
ledger.
"""

from __future__ import annotations

from dicomnode.config import Fetch
from dicomnode.errors import Incomplete
from dicomnode.ledger import Ledger
from dicomnode.patience import lasts
from dicomnode.records import Case, Enquiry, Want

_NOBODY = "its counts were not compared: no PACS answered"
_WITHOUT = (
    "`dicomnode discard` the series; with [fetch] check_counts = false `dicomnode retry` computes without "
    "them"
)
_LET_SEND = f"Let PACS send them, or {_WITHOUT}"
_MISSENT = (
    "Correct the host and port that PACS has for our AE title to those of this node, or set [fetch] by = "
    f'"get"; then `dicomnode retry`. Or {_WITHOUT}'
)
_WAIT = "Wait until it has ended; then `dicomnode retry` asks again"


class Comparison:
    """Assembly's side of [fetch]."""

    def __init__(self, settings: Fetch, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    def lacks(self, case: Case, missing: Incomplete, now: float) -> None:
        """The case was looked at and something is missing: PACS are to be asked for it."""
        if self._settings.ask:
            self._ledger.want(case, now, missing.reason, missing.kinds)

    def outcome(self, case: Case, now: float) -> str | None:
        """Whether a case that looks complete may go on.

        returns: None while PACS are asked; then what a person should know of it, usually nothing. Raises
        Incomplete when a PACS has more of its series, and it did not come.
        """
        if not self._settings.ask:
            return ""
        if not self._settings.check_counts:
            self._check_pull(case)
            return ""
        want = self._ledger.wanted(case.id)
        if want is None or want.as_of != case.last_instance_at or want.lacking:
            self._ledger.want(case, now, "", ())
            return None
        # Before what is outstanding: an enquiry that ends in between has written it down.
        asked = self._ledger.asking(case.id)
        self._check_outstanding(case)
        if want.settled:
            if want.requests < self._settings.max_requests:
                return ""
            often = f"PACS were asked about it {want.requests} times and are asked no more"
            unheard = self._unheard(case, want)
            return f"{often}: {unheard}" if unheard else often
        within_s = self._settings.check_within_s
        if lasts(want.opened_at + within_s, now, within_s):
            return None
        if asked is not None:
            raise Incomplete(f"{asked.peer} is asked about its counts and has not answered yet", _WAIT)
        return self._not_compared(case, want)

    def _check_pull(self, case: Case) -> None:
        """Raises Incomplete while what a PACS named is being pulled: what has come of it may look whole."""
        for asked, objects in self._ledger.outstanding(case.id, self._settings.ask):
            if asked.outcome == "asking":
                raise Incomplete(_still_missing(asked, objects), _WAIT)

    def _check_outstanding(self, case: Case) -> None:
        """Raises Incomplete when something is not here that a PACS has named, however long ago."""
        left = self._ledger.outstanding(case.id, self._settings.ask)
        if left:
            by_move = self._settings.by == "move"
            missent = by_move and any(asked.outcome == "sent" for asked, _ in left)
            reason = "; ".join(_still_missing(asked, objects) for asked, objects in left)
            raise Incomplete(reason, _MISSENT if missent else _LET_SEND)

    def _not_compared(self, case: Case, want: Want) -> str:
        """Why a case goes on whose counts nobody has confirmed."""
        unheard = self._unheard(case, want)
        return f"its counts were not compared: {unheard}" if unheard else _NOBODY

    def _unheard(self, case: Case, want: Want) -> str:
        """The PACS that did not say what they have, and why."""
        answered = {e.peer: e for e in self._ledger.enquiries(case.id) if e.at >= want.opened_at}
        # A PACS that rests was asked about another case last.
        elsewhere = {e.peer: e for e in self._ledger.newest_enquiries() if e.outcome == "unreachable"}
        last = [answered.get(peer) or elsewhere.get(peer) for peer in self._settings.ask]
        said = [e.detail for e in last if e is not None and e.outcome in ("refused", "unreachable")]
        return "; ".join(said)

    def is_asking(self, case: Case, now: float) -> bool:
        """Whether PACS are being asked for what a case lacks, or are about to: a person may just have said
        `retry`."""
        if not self._settings.ask:
            return False
        asked, timeout_s = self._ledger.asking(case.id), self._settings.timeout_s
        if asked is not None and lasts(asked.at + timeout_s, now, timeout_s):
            return True
        want = self._ledger.wanted(case.id)
        if want is None or want.settled or want.requests:
            return False
        return lasts(want.opened_at + self._settings.check_within_s, now, self._settings.check_within_s)

    def forget(self, case: Case, *, goes_on: bool) -> None:
        """The case does not collect any more. goes_on: what PACS named of it is no question any more."""
        if self._settings.ask:
            self._ledger.forget_want(case.id, named=goes_on)


def _still_missing(asked: Enquiry, objects: int) -> str:
    """In words."""
    if asked.outcome == "asking":
        return (
            f"{asked.peer} has {objects} object(s) of its series that have not come yet: it is asked for them"
        )
    detail = f": {asked.detail}" if asked.detail else ""
    return f"{asked.peer} has {objects} object(s) of its series that did not come{detail}"
