"""docs/conformance.md, section Query/Retrieve as SCU: what `[fetch]` asks of PACS."""

from __future__ import annotations

from dicomnode.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE
from dicomnode.query.scu import MOST_MATCHES, UIDS_PER_REQUEST

_FETCHING = """\
## Query/Retrieve as SCU

With `[fetch] ask` the node asks PACS for what a study lacks, in the Study Root model, over one association
a round.

| SOP class (SCU) | UID | used |
|---|---|---|
| Study Root Query/Retrieve Information Model - FIND | {find} | always, levels SERIES and IMAGE |
| Study Root Query/Retrieve Information Model - MOVE | {move} | `by = "move"`; destination: our AE title |
| Study Root Query/Retrieve Information Model - GET | {get} | `by = "get"`; SCP role of the classes below |

Keys: SERIES: StudyInstanceUID (single value), SeriesInstanceUID, Modality, NumberOfSeriesRelatedInstances.
IMAGE, only of series whose number is larger than ours or that are wanted whole: StudyInstanceUID,
SeriesInstanceUID, SOPInstanceUID, SOPClassUID. Retrieval is at IMAGE level with lists of at most {uids} SOP
Instance UIDs. A peer that returns neither number nor class will do. A peer that answers with more than
{matches:,} matches is cut off.

Pulled are CT Image, Nuclear Medicine Image and Positron Emission Tomography Image Storage; of series that
came in part also RT Structure Set, Spatial Registration and Radiopharmaceutical Radiation Dose SR. Never
Segmentation, RT Dose and other reports: those are what the node makes. Never a study of which no peer sent
an object; never what is here, was refused or was set aside.

What comes by C-GET is answered with the statuses of C-STORE above, in every transfer syntax listed there."""


def fetching() -> str:
    """The section."""
    return _FETCHING.format(
        find=STUDY_ROOT_FIND,
        move=STUDY_ROOT_MOVE,
        get=STUDY_ROOT_GET,
        uids=UIDS_PER_REQUEST,
        matches=MOST_MATCHES,
    )
