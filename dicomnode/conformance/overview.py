"""docs/conformance.md: overview, implementation model, sending, environment (PS3.2 Annex A)."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.uid import UID

from dicomnode import __version__
from dicomnode.commands.check import PROPOSED_FOR_COMMITMENT, PROPOSED_FOR_FETCH
from dicomnode.config import Deliver, Node, Receive, Tls
from dicomnode.contexts import (
    FIND_MODELS,
    GET_MODELS,
    MOVE_MODELS,
    PUSH_MODEL,
    RESULT_CLASSES,
    SOP_CLASSES,
    VERIFICATION,
)
from dicomnode.network.send import LARGEST_PDU_BYTES, STORED
from dicomnode.query.retrieve import RETRIEVED_CLASSES

_ASKED_FOR = frozenset(uid for uids in PROPOSED_FOR_FETCH.values() for uid in uids)

_OVERVIEW = """\
## Overview

Statement for dicomnode {version}, in the order of PS3.2 Annex A; UIDs, roles, statuses and limits are those
that the code itself uses. The node receives SPECT/CT studies, computes absorbed dose rates and sends the
results to PACS.

| SOP class | as SCU | as SCP |
|---|---|---|
{classes}

*Retrieval*: C-STORE sub-operations of a peer's C-MOVE or C-GET. Media storage (PS3.10 media, DICOMDIR),
worklist, MPPS, print and web services: none. Character sets, TLS and user identity: below.

## Implementation model

### Application data flow

```
modality, PACS ──C-STORE──▶ ┌───────────┐ ──C-STORE (results, rejection note)──▶ PACS
workstation ──C-FIND, ────▶ │ one AE:   │ ──N-ACTION──▶ PACS ──N-EVENT-REPORT──▶ (the node)
   C-MOVE, C-GET            │ DICOMNODE │ ──C-FIND, C-MOVE or C-GET (what a study lacks)──▶ PACS
modality ──N-ACTION───────▶ └───────────┘ ──N-EVENT-REPORT──▶ modality
```

### Functional definition

One application entity, with the AE title `[node] ae_title` (`{ae_title}`) in both roles, listens from the
start of the service to its end and serves several associations at once. Whoever calls must be configured.

### Sequencing

A study is computed when no object has come for `[assemble] quiet_s`, nothing that is needed is missing and,
with `[fetch]`, PACS has been asked. Results are sent in one order: rejection note, Segmentation, for each
engine RT Dose and Parametric Map, report. Storage commitment is asked for after the last. New input begins
a new run, whose results reference those that they replace.

### Associations that the node initiates

| for | SOP classes, role | one association |
|---|---|---|
| sending results | Storage, SCU | for each case and destination |
| storage commitment | Push Model, SCU | for up to 16 requests; stays open for `[commitment] stay_s` |
| a report on a commitment that a peer asked for | Push Model, SCP | for each report |
| what a study lacks | Query/Retrieve, SCU; C-GET: Storage, SCP | for each study and PACS |
| a peer's C-MOVE | Storage, SCU | for each C-MOVE (more, where 128 contexts do not suffice) |
| `dicomnode check` | Verification, SCU | for each peer |
| `dicomnode check`, where `commitment = true` | {check_commitment}, SCU | for each such peer |
| `dicomnode check`, where `[fetch] ask` names it | {check_fetch}, SCU | for each such peer |

The application context is 1.2.840.10008.3.1.1.1. Every presentation context has one transfer syntax. PDUs
up to 16,382 bytes are received on these associations, and PDUs of at most {pdu:,} bytes are sent, whatever
the peer takes. There is no asynchronous operations window. SOP class extended negotiation is not proposed;
user identity is where `send_user` is set. What a peer is asked next waits for its answer for `timeout_s` of
`[deliver]` ({timeout:g} s), `[query]` or `[fetch]`. After a failure the pause doubles from `first_retry_s`
to `max_retry_s`."""

_SENDING = """\
## Sending (Storage SCU)

Results go to the `[[peers]]` that `[deliver] to` names, in Explicit VR Little Endian, one presentation
context for each SOP class. No other transfer syntax is proposed for them.

| answer to C-STORE | then |
|---|---|
| {stored} | the destination has it; the statuses but 0x0000 are warnings and logged |
| 0xA7xx but for those below | trouble of the destination, no refusal: what it did not take is sent again, \
for ever or for `[deliver] give_up_after_h`, under the same UIDs; meanwhile nothing else is sent there |
| no answer, A-ABORT, A-ASSOCIATE-RJ (permanent or transient), no connection | the same |
| 0xA770 to a rejection note: duplicate | it has the note, with a warning |
| 0xA774, 0xA772 to a rejection note: already rejected, no such instance | it took nothing of the note: one \
for each object that it names, of the same series, is sent in its place; where it names one only, the \
destination does not need it. Then the results follow |
| 0xA773, 0xA775, 0xA776 to a rejection note; 0xA771, 0xA777 to 0xA779 | refused |
| any other status | refused: sent again `[deliver] max_refusals` times, then the case is FAILED |
| no context accepted | refused |

0xA770 to 0xA779 are statuses of dcm4chee-arc's own."""

_ENVIRONMENT = """\
## Network, configuration, media

- **Network**: TCP over IPv4, or IPv6 where `[node] bind` is an IPv6 address; with `::` both, and a caller
  over IPv4 is known by its IPv4 address. Host names are resolved by the system. Audit messages go by
  syslog. The node speaks neither DHCP nor LDAP, and relies on the system's clock (NTP).
- **Configuration**: config.toml, which describes each setting. Those that matter to peers, with their
  defaults: AE title `{ae_title}`, port {port}, TLS port {tls_port}, largest PDU received {max_pdu:,} bytes,
  associations {associations} ({of_peer} of a peer), AE title, host and port of every peer.
- **Media**: none. Files on the node's disk are its own affair, although they are Part 10 files.
- **Extensions**: no standard extended, specialized or private SOP classes; no private attributes are
  written, and private attributes of received objects are kept. Private codes: section Results.

## Character sets

| where | character sets |
|---|---|
| received objects | kept as they are, in any; for queries read in all of PS3.3 C.12.1.1.2, unknown ones as \
ISO_IR 100 |
| results | the CT's; ISO_IR 192 where that cannot write every text; for ASCII none where the CT has none |
| queries | keys and answers: section Query/Retrieve |
| what the node asks PACS | identifiers are UIDs and codes in ASCII, without Specific Character Set |"""


def overview() -> str:
    """Network services and the implementation model."""
    classes = "\n".join(_rows())
    return _OVERVIEW.format(
        version=__version__,
        classes=classes,
        ae_title=Node().ae_title,
        timeout=Deliver().timeout_s,
        pdu=LARGEST_PDU_BYTES,
        check_commitment=", ".join(uid.name.removesuffix(" SOP Class") for uid in PROPOSED_FOR_COMMITMENT),
        check_fetch=_for_fetch(),
    )


def sending() -> str:
    """The Storage SCU."""
    return _SENDING.format(stored=", ".join(f"0x{status:04X}" for status in sorted(STORED)))


def environment() -> str:
    """What is not an association."""
    receive, node, tls = Receive(), Node(), Tls()
    return _ENVIRONMENT.format(
        ae_title=node.ae_title,
        port=node.port,
        tls_port=tls.port or "none (2762 is registered)",
        max_pdu=receive.max_pdu,
        associations=receive.max_associations,
        of_peer=receive.max_associations_per_peer,
    )


def _for_fetch() -> str:
    """Every name ends in ' - FIND', ' - MOVE' or ' - GET'."""
    commands = (" and ".join(uid.name.rpartition(" - ")[2] for uid in u) for u in PROPOSED_FOR_FETCH.values())
    return f"Query/Retrieve Study Root {' or '.join(commands)}"


def _rows() -> Iterable[str]:
    yield _row(VERIFICATION, "`dicomnode check`", "yes")
    for uid in dict.fromkeys((*SOP_CLASSES, *RETRIEVED_CLASSES, *RESULT_CLASSES)):
        used = ["results"] * (uid in RESULT_CLASSES) + ["retrieval"] * (uid in RETRIEVED_CLASSES)
        yield _row(uid, ", ".join(used), "yes" if uid in SOP_CLASSES else "no")
    for uid in (*FIND_MODELS, *MOVE_MODELS, *GET_MODELS):
        yield _row(uid, "with `[fetch]`" if uid in _ASKED_FOR else "no", "yes")
    yield _row(PUSH_MODEL, "with `commitment = true`", "yes")


def _row(uid: UID, scu: str, scp: str) -> str:
    return f"| {uid.name} | {scu} | {scp} |"
