"""Who may read what the node keeps, and what its log may say.

Received objects, results, ledger and audit trail hold patients' data: the service's account alone reads them.
`serve` sets the umask, so that this also holds for what others create for it (SQLite's journals, a computing
child's files); what the node itself creates names its mode, whatever the umask is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dicomnode.records import Case

FILE_MODE = 0o600
FOLDER_MODE = 0o700
UMASK = 0o777 & ~FOLDER_MODE
# Shorter identifiers are also ordinary words and numbers of a reason.
SHORTEST_IDENTIFIER = 4


def opener(path: str, flags: int) -> int:
    """For `open(..., opener=opener)`: what it creates is nobody else's to read."""
    return os.open(path, flags, FILE_MODE)


def is_open_to_others(path: Path) -> bool:
    """Whether accounts beside the owner's and the group's can look into a folder or file."""
    return bool(path.stat().st_mode & 0o007)


def without_identity(text: str, case: Case) -> str:
    """`text` with the case's Patient ID and Accession Number replaced by these words."""
    identity = case.identity
    numbers = {identity.patient_id: "Patient ID", identity.accession_number: "Accession Number"}
    for number, words in numbers.items():
        if len(number) >= SHORTEST_IDENTIFIER:
            text = re.sub(rf"(?<!\w){re.escape(number)}(?!\w)", f"[{words}]", text)
    return text
