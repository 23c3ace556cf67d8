"""A DICOM node for radionuclide therapy: SPECT/CT in, voxel dose-rate maps back to PACS."""

__version__ = "0.1.0"
