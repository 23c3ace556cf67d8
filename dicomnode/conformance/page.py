"""docs/conformance.md: what of it is written from the code, so that it cannot lag behind.

python -m dicomnode.conformance [PAGE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicomnode.conformance.attributes import attributes
from dicomnode.conformance.commitment import commitment
from dicomnode.conformance.fetching import fetching
from dicomnode.conformance.overview import environment, overview, sending
from dicomnode.conformance.security import security
from dicomnode.contexts import SOP_CLASSES, VERIFICATION, transfer_syntaxes
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID
from dicomnode.query.conformance import query
from dicomnode.reception.defects import ANSWERS
from dicomnode.results import vocabulary

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
_REJECTIONS = {
    "the called AE title is the node's (`[node] ae_title`)": "1, 1, 7 called AE title not recognized",
    "the calling AE title has a `[[peers]]` entry": "1, 1, 3 calling AE title not recognized",
    "where it sets `check_host`, the call comes from its `host`": "1, 1, 3 calling AE title not recognized",
    "it calls over TLS where its entry wants that": "1, 1, 1 no reason given",
    "its certificate is the one of its entry (Security)": "1, 1, 1 no reason given",
    "it gives the user and password of its entry (Security)": "1, 1, 1 no reason given",
    "fewer than `[receive] max_associations` are open, of it fewer yet": "2, 3, 2 local limit exceeded",
    "no more than 16 new passwords are being checked": "2, 3, 1 temporary congestion",
    "the node is not stopping": "2, 3, 1 temporary congestion",
}
_ASSOCIATIONS = """\
### Associations

The node accepts an association when all of this holds; otherwise it rejects it, and its log names the
peer and the reason.

{rejections}

A peer gets the presentation contexts that its `may` allows (section Security). Others are refused with
result 3, abstract syntax not supported. Of the transfer syntaxes that a context proposes, the first in the
lists below is agreed upon. The largest PDU is `[receive] max_pdu`. There is no asynchronous operations
window; role selection is for C-GET and storage commitment. What is waited for, and how long, stands under
Limits.

The Implementation Class UID is {class_uid}, the Implementation Version Name
`DICOMNODE_` and the version: on associations in both roles, in received files and in results."""

_STORING = """\
### C-STORE

0x0000 is answered when the object is durable on disk and will be used. No attribute is changed: the data
set is kept byte for byte. The same SOP Instance UID again is accepted, and changes nothing, when pixels,
geometry and everything else that a computation reads are the same; attributes that differ are logged by
keyword. An object that is one of the node's own results is accepted and not stored again.

Every other answer has a Failure status. The sentence is sent as Error Comment. *Kept* objects lie in
`quarantine/` with a JSON file that holds the reason; the others leave nothing behind. Empty type 2
attributes, such as Patient ID, are no defect here: the case is held where they matter."""


_RESULTS = """\
## Results

Explicit VR little endian, each the only instance of its series, in the patient and study of the CT.

| object | SOP class | when |
|---|---|---|
| rejection note, TID 2010 | Key Object Selection Document | first, where results are replaced and a peer \
takes notes |
| regions: body, field of view, every ROI | Segmentation | always |
| dose rate of an engine, stored as rate x 1 h | RT Dose | one for each of `[dose] engines` |
| the same in mGy/h, float32 | Parametric Map | `[encode] parametric_map` |
| standard uncertainty (k=1) of engine mc's voxels, mGy/h | Parametric Map | `[montecarlo] uncertainty_map` |
| report, TID 1500 | Comprehensive 3D SR or Enhanced SR | always, last |

Of engine cnn, RT Dose (Image Comments) and report carry name, version and SHA-256 of the network's weights,
and what a reader must know of them: why dvk stands in their place, or that a result differs from DVK more
than their evaluation saw.

The uncertainty map names its RT Dose in Referenced Instance Sequence. DoseType ERROR is not used: it means
the difference of desired and planned dose (PS3.3 C.8.8.3).

In the report the statistical uncertainty of a mean dose rate is a property of that measurement (TID 310):
371884006 SCT, "+/-, range of measurement uncertainty" (CID 225), in the same unit, with Derivation Standard
Deviation: one standard deviation. That mean's relative uncertainty, and the mean relative uncertainty of a
voxel, are measurements of their own in the group, in %.

The rejection note (IHE RAD TF-1, Imaging Object Change Management; RAD-66) goes to destinations with
`rejection_notes = true`, before the results that replace those it names. Its title is 113001 DCM "Rejected
for Quality Reasons" or 113037 DCM "Rejected for Patient Safety Reasons" (CID 7010, `[deliver]
rejection_reason`; of one case, `dicomnode retry --rejection-reason`). It names every object of earlier
runs that the destination took or left unanswered and that no earlier note rejected (one note for all that may
have the same): SEG and Parametric Map by IMAGE, RT Dose and report by COMPOSITE, all of them in Current
Requested Procedure Evidence Sequence."""

_PRIVATE = """\
### Private codes

Coding scheme {scheme}, "{name}". Every object that uses it declares it in Coding Scheme Identification
Sequence."""


def receiving() -> str:
    """The section, from the tables that the receiver itself uses."""
    everything = transfer_syntaxes(SOP_CLASSES[0])
    few = next(syntaxes for syntaxes in map(transfer_syntaxes, SOP_CLASSES) if syntaxes != everything)
    return "\n\n".join(
        (
            "## Receiving",
            _ASSOCIATIONS.format(rejections=_rejections(), class_uid=IMPLEMENTATION_CLASS_UID),
            "### SOP classes (SCP)\n\n" + _sop_classes(),
            "### Transfer syntaxes\n\nIn the order of preference. The compressed ones are those that the "
            "installed decoders can decode.\n\n" + _syntaxes(everything, few),
            _STORING,
            _statuses(),
        )
    )


def results() -> str:
    """What the node writes, and the codes that no published scheme has."""
    single = [code for code in vars(vocabulary).values() if isinstance(code, Code)]
    of_segments = [code for pair in vocabulary.SEGMENT_PROPERTY.values() for code in pair]
    rows = [
        f"| {code.value} | {code.meaning} |"
        for code in (*single, *vocabulary.DR.values(), *of_segments)
        if code.scheme_designator == vocabulary.PRIVATE_SCHEME
    ]
    private = _PRIVATE.format(scheme=vocabulary.PRIVATE_SCHEME, name=vocabulary.PRIVATE_SCHEME_NAME)
    return "\n\n".join((_RESULTS, private, "\n".join(("| code | meaning |", "|---|---|", *rows))))


SECTIONS: dict[str, Callable[[], str]] = {
    "overview": overview,
    "receiving": receiving,
    "results": results,
    "attributes": attributes,
    "sending": sending,
    "query": query,
    "fetching": fetching,
    "commitment": commitment,
    "security": security,
    "environment": environment,
}


def updated(page: str) -> str:
    """`page` with its sections replaced."""
    for name, section in SECTIONS.items():
        begin, end = marks(name)
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page lacks the lines {begin!r} and {end!r}")
        page = f"{before}{begin}\n\n{section()}\n\n{end}{after}"
    return page


def marks(section: str) -> tuple[str, str]:
    """The lines before and after a section."""
    return f"<!-- {section}: written by python -m dicomnode.conformance -->", f"<!-- end of {section} -->"


def _rejections() -> str:
    rows = [f"| {condition} | {code} |" for condition, code in _REJECTIONS.items()]
    heading = "| what must hold | otherwise A-ASSOCIATE-RJ with result, source, reason |"
    return "\n".join((heading, "|---|---|", *rows))


def _sop_classes() -> str:
    everything = transfer_syntaxes(SOP_CLASSES[0])
    rows = [f"| {VERIFICATION.name} | {VERIFICATION} | implicit and explicit little endian |"]
    for uid in SOP_CLASSES:
        accepted = "all below" if transfer_syntaxes(uid) == everything else "the uncompressed below"
        rows.append(f"| {uid.name} | {uid} | {accepted} |")
    return "\n".join(("| SOP class | UID | transfer syntaxes |", "|---|---|---|", *rows))


def _syntaxes(everything: tuple[UID, ...], uncompressed: tuple[UID, ...]) -> str:
    rows = [
        f"| {uid.name} | {uid} | {'uncompressed' if uid in uncompressed else 'compressed'} |"
        for uid in everything
    ]
    return "\n".join(("| transfer syntax | UID | |", "|---|---|---|", *rows))


def _statuses() -> str:
    rows = [
        f"| {defect} | 0x{answer.status:04X} | {'yes' if answer.quarantined else 'no'} | {answer.sentence} |"
        for defect, answer in ANSWERS.items()
    ]
    return "\n".join(("| defect | status | kept | sentence |", "|---|---|---|---|", *rows))


def _new_page() -> str:
    return "# DICOM conformance\n\n" + "\n\n".join("\n".join(marks(name)) for name in SECTIONS) + "\n"


def main() -> None:
    """Write the page."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else _new_page()
    page.write_text(updated(text), encoding="utf-8")
