"""Whose objects are: for the audit trail."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import in_chunks
from dicomnode.ledger.schema import HELD_INSTANCES, HELD_SERIES, HELD_STUDIES, INSTANCES, RESULTS, RUNS
from dicomnode.records import Belonging, Kept


class Whose(Database):
    """To which study and patient an object belongs."""

    def belongings(self, sop_instance_uids: Sequence[str]) -> list[Belonging]:
        """Study, patient and SOP class of each of these objects that the node offers to others."""
        joined = HELD_INSTANCES.join(HELD_SERIES, HELD_SERIES.c.id == HELD_INSTANCES.c.series_id).join(
            HELD_STUDIES, HELD_STUDIES.c.id == HELD_SERIES.c.study_id
        )
        columns = HELD_STUDIES.c.study_instance_uid, HELD_STUDIES.c.patient_id, HELD_INSTANCES.c.sop_class_uid
        found: list[Belonging] = []
        with self._read() as connection:
            for chunk in in_chunks(sop_instance_uids):
                chosen = HELD_INSTANCES.c.sop_instance_uid.in_(chunk)
                rows = connection.execute(select(*columns).select_from(joined).where(chosen)).all()
                found += [Belonging(*row) for row in rows]
        return found

    def kept_classes(self, what: Kept, case_id: int) -> list[str]:
        """SOP Class UID of every received object, or of every result, of a case whose files are there."""
        if what == "inputs":
            query = select(INSTANCES.c.sop_class_uid).where(INSTANCES.c.case_id == case_id)
        else:
            query = (
                select(RESULTS.c.sop_class_uid)
                .join(RUNS, RUNS.c.id == RESULTS.c.run_id)
                .where(RUNS.c.case_id == case_id, RUNS.c.removed_at.is_(None))
            )
        with self._read() as connection:
            return list(connection.execute(query).scalars())
