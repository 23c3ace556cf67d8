"""docs/conformance.md, section Storage commitment: both roles, with the statuses that the code answers."""

from __future__ import annotations

from dicomnode.commitment.answer import RELEASES_WITHIN_S
from dicomnode.commitment.message import (
    MOST_OBJECTS,
    REQUEST_STORAGE_COMMITMENT,
    EventType,
    FailureReason,
    Status,
    words,
)
from dicomnode.commitment.scp import MAX_UNANSWERED
from dicomnode.contexts import PUSH_MODEL, PUSH_MODEL_INSTANCE

_COMMITMENT = """\
## Storage commitment

Storage Commitment Push Model SOP Class, {push_model}, both roles, implicit and explicit little endian.

### As SCU

After every result is delivered to a destination with `commitment = true`, one N-ACTION (action type
{action}) with a Transaction UID of its own and every result of the run in ReferencedSOPSequence. The
association stays open for `[commitment] stay_s`, or until the reports have come; it is released when each
of them is answered. Reports are taken over it, and at any later time over associations that the peer opens
and in which it proposes the SCP role (SCP/SCU role selection, PS3.7 D.3.3.4; without it the context is
rejected).

| N-EVENT-REPORT | status | then |
|---|---|---|
| event type {all}, or {some}, of a transaction that the peer was asked for | {SUCCESS} | recorded; what \
failed is sent and asked about again |
| the same again, or of results that a person had sent again since | {SUCCESS} | logged, nothing changes |
| of a transaction that was not asked, or asked of another peer | {INVALID_ARGUMENT} | logged, nothing \
changes |
| Transaction UID, objects, or their UIDs missing or no UIDs; a data set that cannot be read | \
{INVALID_ARGUMENT} | logged, nothing changes |
| a sequence that is none | {MISTYPED_ARGUMENT} | logged, nothing changes |
| another event type | {NO_SUCH_EVENT_TYPE} | logged, nothing changes |
| another SOP instance than {instance} | {NO_SUCH_INSTANCE} | logged, nothing changes |
| the database does not answer | {PROCESSING_FAILURE} | logged; the peer is asked again when no report \
comes |

What a report of event type {some} names in both sequences counts as failed, what neither names as not
reported. A report on a transaction that was asked again meanwhile still counts. Event Information is
otherwise not used (Retrieve AE Title, Storage Media). N-ACTION answered with a warning counts as taken,
with a failure as refused.

### As SCP

For peers whose `may` holds `commit`:

| N-ACTION | status |
|---|---|
| action type {action} | {SUCCESS} |
| the same transaction again, about the same objects in any order | {SUCCESS}; reported on again |
| the Transaction UID of a request of the same peer about other objects | {DUPLICATE_TRANSACTION_UID} \
(duplicate transaction UID, as Failure Reason of PS3.3 C.14.1.1 has it); the first request stands |
| Transaction UID, objects, or their UIDs missing or no UIDs; a data set that cannot be read | \
{INVALID_ARGUMENT} |
| a sequence that is none | {MISTYPED_ARGUMENT} |
| another action type | {NO_SUCH_ACTION} |
| another SOP instance than {instance} | {NO_SUCH_INSTANCE} |
| its right was taken away while the association was open | {NOT_AUTHORIZED} |
| more than {objects:,} objects, {unanswered:,} requests of the peer wait to be reported on, the node is \
stopping, or the database does not answer | {RESOURCE_LIMITATION} |

The objects are looked at when the report is made, {wait} later at the earliest. Event type {all} when all
are committed to, otherwise {some}; Retrieve AE Title is ours.

| an object | FailureReason |
|---|---|
| is of the class that was asked about, and its file, read again from the disk from end to end, has the \
checksum (CRC-32) that was taken of what came | committed |
| is one of our results: of its size, readable to the end, its header that of the object | committed |
| never came, was refused, was removed by retention, or its file is gone | {failed_NO_SUCH_OBJECT_INSTANCE} |
| is of another SOP class | {failed_CLASS_INSTANCE_CONFLICT} |
| is damaged or cannot be read | {failed_PROCESSING_FAILURE} |

A received object that is damaged is set aside and its case HELD; sent again, it is stored, and committed to
when that is asked. While the folder of the objects is away, no report is made.

The report goes over the association of the request if its requestor still has it open after {wait}
and asks nothing over it just then;
otherwise over one that the node opens to the peer's `host` and `port`, proposing the SCP role. A peer that
does not take it is told again, with pauses from `[deliver] first_retry_s` to `max_retry_s`, across
restarts, for `[commitment] report_for_h`.

**What a commitment of the node means.** The object was written and flushed to disk before C-STORE was
answered, is part of its study's case unless a person set it aside, and stays until `[retention]` removes
it: not before its case is DONE with every result delivered (and committed to, where that is asked), and not
before `inputs_days`; without `[retention]` settings, never. The node is no archive. Give `commit` to a
modality that deletes what is committed to only if PACS gets the images too."""


def commitment() -> str:
    """The section."""
    return _COMMITMENT.format(
        push_model=PUSH_MODEL,
        instance=PUSH_MODEL_INSTANCE,
        action=REQUEST_STORAGE_COMMITMENT,
        all=int(EventType.ALL_COMMITTED),
        some=int(EventType.SOME_FAILED),
        objects=MOST_OBJECTS,
        unanswered=MAX_UNANSWERED,
        wait=f"{RELEASES_WITHIN_S:g} s",
        **{status.name: f"0x{status:04X}" for status in Status},
        **{f"failed_{reason.name}": words(reason) for reason in FailureReason},
    )
