"""docs/conformance.md, section Receiving: written from the code, so that it cannot lag behind.

python -m dicomnode.conformance [PAGE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydicom.uid import UID

from dicomnode.contexts import SOP_CLASSES, VERIFICATION, transfer_syntaxes
from dicomnode.defects import ANSWERS
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID

PAGE = Path(__file__).parent.parent / "docs" / "conformance.md"
BEGIN = "<!-- receiving: written by python -m dicomnode.conformance -->"
END = "<!-- end of receiving -->"
_NEW_PAGE = f"# DICOM conformance\n\n{BEGIN}\n{END}\n"

_REJECTIONS = {
    "the called AE title is the node's (`[node] ae_title`)": "1, 1, 7 called AE title not recognized",
    "the calling AE title has a `[[peers]]` entry": "1, 1, 3 calling AE title not recognized",
    "where it sets `check_host`, the call comes from its `host`": "1, 1, 3 calling AE title not recognized",
    "fewer than `[receive] max_associations` are open": "2, 3, 2 local limit exceeded",
}
_ASSOCIATIONS = """\
### Associations

The node accepts an association when all of this holds; otherwise it rejects it, and its log names the
peer and the reason.

{rejections}

A peer gets the presentation contexts that its `may` allows: Verification for `echo`, the storage classes
for `store`. Others are refused with result 3, abstract syntax not supported. Of the transfer syntaxes
that a context proposes, the first in the lists below is agreed upon. The largest PDU is
`[receive] max_pdu`. There is no asynchronous operations window, no user identity and no role selection.
A connection that sends nothing ends after `acse_timeout_s`, a PDU that has begun and an association that
is silent after `network_timeout_s`.

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


def updated(page: str) -> str:
    """`page` with its section replaced."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{receiving()}\n\n{END}{after}"


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


def main() -> None:
    """Write the page."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else _NEW_PAGE
    page.write_text(updated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
