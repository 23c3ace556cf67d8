"""The ledger: what was decided about each case. The only package that speaks SQL.

::

    database.py   connections, durability, migrations          rows.py    rows → records
    received.py   objects that arrived or were set aside       steps.py   what happens inside a transaction
    cases.py      cases and their transitions
    attempts.py   tries at computing and sending
    results.py    runs, results and their deliveries
    closing.py    when a case that was sent is done
    commitments.py storage commitment that we ask for           promises.py  that we are asked for
    enquiries.py  what cases lack, and who was asked for it
    retention.py  what is kept and what was removed
    rejections.py which earlier results a rejection note names
    whose.py      whose objects are, for the audit trail
    index.py      what Query/Retrieve answers from          search.py its questions; nested.py its sequences

Durability. SQLite runs in WAL mode with two kinds of connection: received instances are committed
in batches at ``synchronous=NORMAL`` (a power cut may lose the last ones; the spool has them and
`missing_from` finds them again), every decision about a case at ``synchronous=FULL``. Writers take
the lock at once (``BEGIN IMMEDIATE``), so that two of them never deadlock half-way.
"""

from dicomnode.ledger.attempts import Attempts
from dicomnode.ledger.cases import Cases
from dicomnode.ledger.commitments import Commitments
from dicomnode.ledger.enquiries import Enquiries
from dicomnode.ledger.index import Index
from dicomnode.ledger.promises import Promises
from dicomnode.ledger.received import Received
from dicomnode.ledger.rejections import Rejections
from dicomnode.ledger.results import Results
from dicomnode.ledger.retention import Retention
from dicomnode.ledger.search import Search
from dicomnode.ledger.whose import Whose


class Ledger(
    Received,
    Cases,
    Attempts,
    Results,
    Commitments,
    Promises,
    Enquiries,
    Retention,
    Rejections,
    Index,
    Search,
    Whose,
):
    """Cases, instances, transitions, attempts, runs, results and deliveries.

    Every method is one transaction and may be called from any thread. Any of them raises
    LedgerUnavailable when the database is locked or gone.
    """


__all__ = ["Ledger"]
