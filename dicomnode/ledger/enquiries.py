"""What collecting cases lack, and what PACS were asked for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import and_, delete, func, insert, select, update

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import in_chunks, known, still_collecting, to_case, to_record
from dicomnode.ledger.schema import CASES, ENQUIRIES, INSTANCES, QUARANTINE, RESULTS, WANTS
from dicomnode.ledger.steps import insert_row
from dicomnode.records import Case, Enquiry, Held, Want
from dicomnode.states import State


class Enquiries(Database):
    """The ledger's knowledge of what is asked of PACS."""

    def want(self, case: Case, now: float, lacking: str, kinds: Collection[str]) -> Want | None:
        """PACS are to be asked about a case as it is now. lacking: empty where only counts are compared.

        What was asked about it as it was before counts toward how often it is asked. Said twice, also by a
        node that was restarted, it is the same want.
        returns: None when an object arrived meanwhile, or the case moved on.
        """
        values = {
            "as_of": case.last_instance_at,
            "lacking": lacking,
            "kinds": ",".join(sorted(kinds)),
            "differs": "",
            "opened_at": now,
            "next_attempt_at": 0.0,
            "settled": 0,
        }
        same = (WANTS.c.as_of == case.last_instance_at, WANTS.c.lacking == lacking)
        with self._decide() as connection:
            if still_collecting(connection, case) is None:
                return None
            theirs = WANTS.c.case_id == case.id
            row = connection.execute(select(WANTS).where(theirs, *same)).one_or_none()
            if row is None:
                changed = connection.execute(update(WANTS).where(theirs).values(**values))
                if changed.rowcount == 0:
                    connection.execute(insert(WANTS).values(case_id=case.id, **values))
                row = connection.execute(select(WANTS).where(theirs)).one()
            return _to_want(row)

    def wanted(self, case_id: int) -> Want | None:
        """What PACS are asked about a case."""
        with self._read() as connection:
            row = connection.execute(select(WANTS).where(WANTS.c.case_id == case_id)).one_or_none()
        return None if row is None else _to_want(row)

    def open_wants(self) -> list[tuple[Case, Want]]:
        """Collecting cases about which PACS are still to be asked, as they are now; oldest first."""
        now_open = and_(
            WANTS.c.case_id == CASES.c.id,
            CASES.c.state == str(State.COLLECTING),
            WANTS.c.settled == 0,
            WANTS.c.as_of == CASES.c.last_instance_at,
        )
        with self._read() as connection:
            cases = connection.execute(select(CASES).join(WANTS, now_open).order_by(CASES.c.id)).all()
            wants = connection.execute(select(WANTS).join(CASES, now_open)).all()
        by_case = {row.case_id: _to_want(row) for row in wants}
        return [(to_case(row), by_case[row.id]) for row in cases if row.id in by_case]

    def forget_want(self, case_id: int) -> None:
        """The case does not collect any more: the next time it is asked about anew."""
        with self._decide() as connection:
            connection.execute(delete(WANTS).where(WANTS.c.case_id == case_id))

    def begin_enquiry(self, case_id: int, peer: str, lacking: str, now: float) -> int:
        """A PACS is about to be asked. returns: the enquiry's number."""
        with self._decide() as connection:
            return insert_row(
                connection, ENQUIRIES, case_id=case_id, peer=peer, at=now, lacking=lacking, outcome="asking"
            )

    def end_enquiry(self, number: int, outcome: str, *, missing: int, came: int, detail: str) -> None:
        """What the PACS has of the case that the node lacks, and how much of it came."""
        with self._decide() as connection:
            connection.execute(
                update(ENQUIRIES)
                .where(ENQUIRIES.c.id == number)
                .values(outcome=outcome, missing=missing, came=came, detail=detail)
            )

    def asked_about(
        self, want: Want, next_attempt_at: float, *, settled: bool, differs: str, counts: bool
    ) -> None:
        """A round of enquiries has ended. counts: whether any PACS answered."""
        with self._decide() as connection:
            connection.execute(
                update(WANTS)
                .where(WANTS.c.case_id == want.case_id)
                .values(next_attempt_at=next_attempt_at, requests=WANTS.c.requests + int(counts))
            )
            # An assembly that looked meanwhile has opened another one.
            connection.execute(
                update(WANTS)
                .where(WANTS.c.case_id == want.case_id, WANTS.c.as_of == want.as_of)
                .values(settled=int(settled), differs=differs)
            )

    def enquiries(self, case_id: int) -> list[Enquiry]:
        """Every enquiry about a case, oldest first."""
        query = select(ENQUIRIES).where(ENQUIRIES.c.case_id == case_id).order_by(ENQUIRIES.c.id)
        with self._read() as connection:
            return [to_record(Enquiry, row) for row in connection.execute(query).all()]

    def holdings(self, case_id: int) -> dict[str, Held]:
        """What the node has of a case's study, those set aside too: Series Instance UID → what."""
        query = (
            select(
                INSTANCES.c.series_instance_uid,
                INSTANCES.c.sop_class_uid,
                func.count().label("objects"),
                func.max(INSTANCES.c.discarded).label("discarded"),
            )
            .where(INSTANCES.c.case_id == case_id)
            .group_by(INSTANCES.c.series_instance_uid, INSTANCES.c.sop_class_uid)
        )
        held: dict[str, Held] = {}
        with self._read() as connection:
            for row in connection.execute(query).all():
                before = held.get(row.series_instance_uid, Held(frozenset(), 0, False))
                held[row.series_instance_uid] = Held(
                    before.sop_classes | {row.sop_class_uid},
                    before.objects + row.objects,
                    before.discarded or bool(row.discarded),
                )
        return held

    def unknown(self, study_instance_uid: str, sop_instance_uids: Collection[str]) -> set[str]:
        """Those that are neither here, nor our own results, nor were refused when they came."""
        uids = list(sop_instance_uids)
        with self._read() as connection:
            here = known(connection, uids)
            for chunk in in_chunks(uids):
                ours = select(RESULTS.c.sop_instance_uid).where(RESULTS.c.sop_instance_uid.in_(chunk))
                here |= set(connection.execute(ours).scalars())
            refused = select(QUARANTINE.c.sop_instance_uid).where(
                QUARANTINE.c.study_instance_uid == study_instance_uid
            )
            here |= set(connection.execute(refused).scalars())
        return set(uids) - here


def _to_want(row: Any) -> Want:
    return Want(
        case_id=row.case_id,
        as_of=row.as_of,
        lacking=row.lacking,
        kinds=frozenset(filter(None, row.kinds.split(","))),
        differs=row.differs,
        opened_at=row.opened_at,
        next_attempt_at=row.next_attempt_at,
        requests=row.requests,
        settled=bool(row.settled),
    )
