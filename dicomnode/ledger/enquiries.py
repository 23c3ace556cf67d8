"""What collecting cases lack, and what PACS were asked for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, literal, select, update

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import held_by, known, still_collecting, to_case, to_record
from dicomnode.ledger.schema import (
    CASES,
    ENQUIRIES,
    INSTANCES,
    OUTSTANDING,
    QUARANTINE,
    REMOVED_SERIES,
    RESULTS,
    WANTS,
)
from dicomnode.ledger.steps import insert_new, insert_row
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

    def forget_want(self, case_id: int, *, named: bool) -> None:
        """The case does not collect any more: the next time it is asked about anew.

        named: also what PACS named of it. A case that is HELD for the want of it keeps that.
        """
        with self._decide() as connection:
            connection.execute(delete(WANTS).where(WANTS.c.case_id == case_id))
            if named:
                _forget_named(connection, ENQUIRIES.c.case_id == case_id)

    def begin_enquiry(self, case_id: int, peer: str, lacking: str, now: float) -> int:
        """A PACS is about to be asked. returns: the enquiry's number."""
        with self._decide() as connection:
            return insert_row(
                connection, ENQUIRIES, case_id=case_id, peer=peer, at=now, lacking=lacking, outcome="asking"
            )

    def named(self, number: int, objects: Mapping[str, Collection[str]]) -> None:
        """A PACS has these objects and the node lacks them: nothing that follows may forget it.

        What the same PACS named before is void. objects: Series Instance UID → SOP Instance UIDs.
        """
        rows = [
            {"enquiry_id": number, "sop_instance_uid": uid, "series_instance_uid": series}
            for series, uids in objects.items()
            for uid in uids
        ]
        with self._decide() as connection:
            mine = ENQUIRIES.c.id == number
            asked = connection.execute(select(ENQUIRIES).where(mine)).one()
            _forget_named(connection, ENQUIRIES.c.case_id == asked.case_id, ENQUIRIES.c.peer == asked.peer)
            if rows:
                insert_new(connection, OUTSTANDING, rows)
            connection.execute(update(ENQUIRIES).where(mine).values(missing=len(rows)))

    def outstanding(self, case_id: int, peers: Collection[str]) -> list[tuple[Enquiry, int]]:
        """What these PACS named of a case and is not here: the enquiry that named it, and how many objects.

        What a person has set aside since is not waited for.
        """
        counts = _not_here(ENQUIRIES.c.case_id == case_id, ENQUIRIES.c.peer.in_(list(peers))).subquery()
        query = select(ENQUIRIES, counts.c.objects).join(counts, counts.c.id == ENQUIRIES.c.id)
        with self._read() as connection:
            rows = connection.execute(query.order_by(ENQUIRIES.c.id)).all()
        return [(to_record(Enquiry, row), row.objects) for row in rows]

    def counted(self, number: int) -> tuple[int, int]:
        """returns: how many objects an enquiry has named, and how many of them are here by now."""
        mine = ENQUIRIES.c.id == number
        with self._read() as connection:
            missing: int = connection.execute(select(ENQUIRIES.c.missing).where(mine)).scalar_one()
            row = connection.execute(_not_here(mine)).one_or_none()
        return missing, missing - (0 if row is None else row.objects)

    def asking(self, case_id: int) -> Enquiry | None:
        """The enquiry about a case that has not ended."""
        is_open = and_(ENQUIRIES.c.case_id == case_id, ENQUIRIES.c.outcome == "asking")
        query = select(ENQUIRIES).where(is_open).order_by(ENQUIRIES.c.id.desc()).limit(1)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else to_record(Enquiry, row)

    def end_enquiry(self, number: int, outcome: str, *, came: int, detail: str) -> None:
        """What became of it. came: of what the PACS named, how much is here."""
        with self._decide() as connection:
            connection.execute(
                update(ENQUIRIES)
                .where(ENQUIRIES.c.id == number)
                .values(outcome=outcome, came=came, detail=detail)
            )

    def close_enquiries(self, detail: str) -> None:
        """Nobody is being asked: enquiries that look open were left so by a node that was stopped."""
        with self._decide() as connection:
            left_open = update(ENQUIRIES).where(ENQUIRIES.c.outcome == "asking")
            connection.execute(left_open.values(outcome="unreachable", detail=detail))

    def asked_about(self, want: Want, next_attempt_at: float, *, settled: bool, counts: bool) -> None:
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
                .values(settled=int(settled))
            )

    def newest_enquiries(self) -> list[Enquiry]:
        """The last enquiry of each PACS, whatever case it was about."""
        newest = select(func.max(ENQUIRIES.c.id)).group_by(ENQUIRIES.c.peer)
        query = select(ENQUIRIES).where(ENQUIRIES.c.id.in_(newest))
        with self._read() as connection:
            return [to_record(Enquiry, row) for row in connection.execute(query).all()]

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

    def absent(self, case_id: int, sop_instance_uids: Collection[str]) -> set[str]:
        """Those that are neither objects of the case nor our own results."""
        uids = list(sop_instance_uids)
        with self._read() as connection:
            mine = held_by(connection, INSTANCES.c.sop_instance_uid, uids, INSTANCES.c.case_id == case_id)
            here = mine | _our_results(connection, uids)
        return set(uids) - here

    def unknown(self, study_instance_uid: str, sop_instance_uids: Collection[str]) -> set[str]:
        """Those that are neither here, nor our own results, nor were refused when they came."""
        uids = list(sop_instance_uids)
        with self._read() as connection:
            here = known(connection, uids) | _our_results(connection, uids)
            refused = select(QUARANTINE.c.sop_instance_uid).where(
                QUARANTINE.c.study_instance_uid == study_instance_uid
            )
            here |= set(connection.execute(refused).scalars())
        return set(uids) - here


def _not_here(*which: Any) -> Any:
    """Of which enquiries something is not here that they named: their ids, and how many `objects`."""
    mine = INSTANCES.c.case_id == ENQUIRIES.c.case_id
    same_series = INSTANCES.c.series_instance_uid == OUTSTANDING.c.series_instance_uid
    here = _one(mine, INSTANCES.c.sop_instance_uid == OUTSTANDING.c.sop_instance_uid)
    set_aside = _one(mine, same_series, INSTANCES.c.discarded == 1)
    removed = _one(
        REMOVED_SERIES.c.case_id == ENQUIRIES.c.case_id,
        REMOVED_SERIES.c.series_instance_uid == OUTSTANDING.c.series_instance_uid,
        REMOVED_SERIES.c.discarded == 1,
    )
    return (
        select(ENQUIRIES.c.id, func.count().label("objects"))
        .join(OUTSTANDING, OUTSTANDING.c.enquiry_id == ENQUIRIES.c.id)
        .where(*which, ~here, ~set_aside, ~removed)
        .group_by(ENQUIRIES.c.id)
    )


def _one(*conditions: Any) -> Any:
    """Whether there is a row, for what an enquiry named."""
    return select(literal(1)).where(*conditions).correlate(ENQUIRIES, OUTSTANDING).exists()


def _forget_named(connection: Connection, *whose: Any) -> None:
    enquiries = select(ENQUIRIES.c.id).where(*whose)
    connection.execute(delete(OUTSTANDING).where(OUTSTANDING.c.enquiry_id.in_(enquiries)))


def _our_results(connection: Connection, uids: list[str]) -> set[str]:
    return held_by(connection, RESULTS.c.sop_instance_uid, uids)


def _to_want(row: Any) -> Want:
    return Want(
        case_id=row.case_id,
        as_of=row.as_of,
        lacking=row.lacking,
        kinds=frozenset(filter(None, row.kinds.split(","))),
        opened_at=row.opened_at,
        next_attempt_at=row.next_attempt_at,
        requests=row.requests,
        settled=bool(row.settled),
    )
