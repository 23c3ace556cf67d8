"""Before a study goes on: what PACS are to be asked about it, and what came of that.

Assembly says what a case lacks, or that it is complete as far as it can see; `fetch` asks. They meet in the
ledger.
"""

from __future__ import annotations

from dicomnode.config import Fetch
from dicomnode.errors import Incomplete
from dicomnode.ledger import Ledger
from dicomnode.patience import lasts
from dicomnode.records import Case

_NOBODY = "its counts were not compared: no PACS answered"


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
        if not self._settings.ask or not self._settings.check_counts:
            return ""
        want = self._ledger.wanted(case.id)
        if want is None or want.as_of != case.last_instance_at or want.lacking:
            self._ledger.want(case, now, "", ())
            return None
        if want.differs:
            raise Incomplete(
                want.differs,
                "Let PACS send them, or `dicomnode discard` the series; with [fetch] check_counts = false "
                "`dicomnode retry` computes without them",
            )
        if want.settled:
            often = want.requests >= self._settings.max_requests
            return f"PACS were asked about it {want.requests} times and are asked no more" if often else ""
        within_s = self._settings.check_within_s
        return None if lasts(want.opened_at + within_s, now, within_s) else _NOBODY

    def is_asking(self, case: Case, now: float) -> bool:
        """Whether PACS are about to be asked for what a case lacks: a person may just have said `retry`."""
        want = self._ledger.wanted(case.id) if self._settings.ask else None
        if want is None or want.settled or want.requests:
            return False
        return lasts(want.opened_at + self._settings.check_within_s, now, self._settings.check_within_s)

    def forget(self, case: Case) -> None:
        """The case does not collect any more."""
        if self._settings.ask:
            self._ledger.forget_want(case.id)
