"""SOP classes: what the node accepts, in which transfer syntaxes, and the UIDs of its services.

The transfer syntaxes are those whose pixel data pydicom can decode with the decoders that are
installed, asked once at import: what cannot be decoded later must not be accepted now.
"""

from __future__ import annotations

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    NuclearMedicineImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RadiopharmaceuticalRadiationDoseSRStorage,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    SpatialRegistrationStorage,
)
from pynetdicom.presentation import PresentationContext, build_context

VERIFICATION = UID("1.2.840.10008.1.1")
# PS3.4 C.6.1.3 and C.6.2.3.
PATIENT_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.1.1")
PATIENT_ROOT_MOVE = UID("1.2.840.10008.5.1.4.1.2.1.2")
PATIENT_ROOT_GET = UID("1.2.840.10008.5.1.4.1.2.1.3")
STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
STUDY_ROOT_MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
STUDY_ROOT_GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
FIND_MODELS = (PATIENT_ROOT_FIND, STUDY_ROOT_FIND)
MOVE_MODELS = (PATIENT_ROOT_MOVE, STUDY_ROOT_MOVE)
GET_MODELS = (PATIENT_ROOT_GET, STUDY_ROOT_GET)
# PS3.4 J.3.5: Storage Commitment, and the one instance of its class, known to everybody.
PUSH_MODEL = UID("1.2.840.10008.1.20.1")
PUSH_MODEL_INSTANCE = UID("1.2.840.10008.1.20.1.1")

# Of these an object without pixel data is of no use.
IMAGE_CLASSES = (
    CTImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    SegmentationStorage,
)
# RT Dose may consist of a dose-volume histogram alone (PS3.3 A.18).
SOP_CLASSES = (
    *IMAGE_CLASSES,
    RTDoseStorage,
    RTStructureSetStorage,
    SpatialRegistrationStorage,
    BasicTextSRStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
    RadiopharmaceuticalRadiationDoseSRStorage,
)
# What the node makes and sends by itself.
RESULT_CLASSES = (
    SegmentationStorage,
    RTDoseStorage,
    ParametricMapStorage,
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
)
# An object of these classes is never a result of ours that comes back.
NEVER_RESULTS = frozenset(SOP_CLASSES) - frozenset(RESULT_CLASSES)
_WITH_PIXELS = frozenset({*IMAGE_CLASSES, RTDoseStorage})

# The first that the peer proposes too is agreed upon: least work for both sides first.
_UNCOMPRESSED = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)


def _decodable(uid: UID) -> bool:
    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False


COMPRESSED: tuple[UID, ...] = tuple(
    uid for uid in AllTransferSyntaxes if uid not in _UNCOMPRESSED and _decodable(uid)
)


def transfer_syntaxes(sop_class: str) -> tuple[UID, ...]:
    """What is accepted for a SOP class, in the order of preference."""
    return (*_UNCOMPRESSED, *COMPRESSED) if sop_class in _WITH_PIXELS else _UNCOMPRESSED


def storage_contexts() -> list[PresentationContext]:
    """For a peer that may store."""
    return [build_context(uid, list(transfer_syntaxes(uid))) for uid in SOP_CLASSES]


def echo_contexts() -> list[PresentationContext]:
    """For a peer that may echo."""
    return [build_context(VERIFICATION, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])]
