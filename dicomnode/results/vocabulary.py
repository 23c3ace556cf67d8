"""Every code that the results use, in one place.

DCM, SCT, LN and UCUM are published schemes. No scheme has a code for an absorbed dose *rate* or
for DR10 … DR90 (PS3.16 knows absorbed dose, DCM 128513, and percentiles of image intensities
only), so these stand in a private scheme, which every object that uses it declares
(PS3.3 C.12.1.1.7).
"""

from __future__ import annotations

from pydicom import Dataset
from pydicom.sr.coding import Code

from pipeline.histogram import RegionKind

PRIVATE_SCHEME = "99RNT"
PRIVATE_SCHEME_NAME = "dicomnode radionuclide therapy"


def _private(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE_SCHEME, meaning)


# References and equipment (PS3.16 CID 7202, 7005).
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
SOURCE_SERIES = Code("121323", "DCM", "Source series for image processing operation")
SOURCE_OF_MEASUREMENT = Code("121112", "DCM", "Source of Measurement")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
REPLACED_RESULT = _private("REPLACED", "Result that this one replaces")
OTHER_SOURCE = _private("OTHER_SOURCE", "Other object that was used")
SOURCE_OF_REGION = _private("ROI_SOURCE", "Object that the region came with")

# Titles of a rejection note (PS3.16 CID 7010), by [deliver] rejection_reason.
REJECTION_TITLES = {
    "quality": Code("113001", "DCM", "Rejected for Quality Reasons"),
    "patient_safety": Code("113037", "DCM", "Rejected for Patient Safety Reasons"),
}

# Units.
MGY_PER_H = Code("mGy/h", "UCUM", "mGy/h")
MBQ = Code("MBq", "UCUM", "MBq")
ML = Code("ml", "UCUM", "ml")
GRAM = Code("g", "UCUM", "g")
PERCENT = Code("%", "UCUM", "%")

# What is measured in a region.
VOLUME = Code("118565006", "SCT", "Volume")
MASS = Code("118538004", "SCT", "Mass")
ACTIVITY = _private("ACTIVITY", "Activity in the region at the reference time")
DOSE_RATE = _private("DOSE_RATE", "Absorbed dose rate")
# PS3.16 CID 7464, as modifiers of DOSE_RATE.
MEAN = Code("373098007", "SCT", "Mean")
MAXIMUM = Code("56851009", "SCT", "Maximum")
MINIMUM = Code("255605001", "SCT", "Minimum")
STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")
DR = {
    percent: _private(f"DR{percent}", f"Minimum absorbed dose rate to the hottest {percent} % of the region")
    for percent in (10, 30, 70, 90)
}
# How certain that is, of an engine with statistics. PS3.16 TID 310 hangs a measurement's uncertainty on it by
# a concept of CID 225; no scheme has a code for the mean of the voxels' own, nor for a map of them.
UNCERTAINTY_RANGE = Code("371884006", "SCT", "+/-, range of measurement uncertainty")
MEAN_UNCERTAINTY = _private("MEAN_UNCERT", "Statistical standard uncertainty (k=1) of the mean dose rate")
VOXEL_UNCERTAINTY = _private("VOXEL_UNCERT", "Mean statistical standard uncertainty (k=1) of a voxel")
DOSE_RATE_UNCERTAINTY = _private("DOSE_RATE_UNCERT", "Standard uncertainty (k=1) of the absorbed dose rate")
UNCERTAINTY_OF = _private("UNCERTAINTY_OF", "Dose rate whose uncertainty this is")

# The report as a whole.
REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
PROCEDURE = Code("49118-3", "LN", "NM unspecified body region")  # PS3.16 CID 100
CALCULATION = _private("CALCULATION", "Dose rate calculation")
REFERENCE_TIME = _private("REFERENCE_TIME", "Reference time of activity and dose rate")
RADIONUCLIDE = Code("89457008", "SCT", "Radionuclide")
ADMINISTERED_ACTIVITY = Code("113507", "DCM", "Administered activity")
ADMINISTRATION_START = Code("123003", "DCM", "Radiopharmaceutical Start DateTime")
FRACTION_FOUND = _private("FRACTION_FOUND", "Fraction of the administered activity found")
COMMENT = Code("121106", "DCM", "Comment")
PROVENANCE = _private("PROVENANCE", "Provenance")

# What a segment is: (category, type); PS3.16 CID 7150, 7151.
SEGMENT_PROPERTY = {
    RegionKind.BODY: (
        Code("91723000", "SCT", "Anatomical Structure"),
        Code("38266002", "SCT", "Entire body"),
    ),
    RegionKind.FIELD_OF_VIEW: (
        Code("309825002", "SCT", "Spatial and Relational Concept"),
        _private("FOV", "Part of the body in the field of view of SPECT and CT"),
    ),
    RegionKind.ROI: (Code("85756007", "SCT", "Tissue"), Code("85756007", "SCT", "Tissue")),
}
# PS3.16 CID 7162: thresholds, connected regions and filled holes.
SEGMENTATION_FAMILY = Code("123104", "DCM", "Morphological Operations")


def code_item(code: Code) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item
