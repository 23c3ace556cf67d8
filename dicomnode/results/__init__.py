"""Findings -> DICOM objects: RT Dose, Parametric Map, Segmentation, SR, rejection note."""

# The folder below data_dir: RESULTS/CASE/ATTEMPT/.
RESULTS = "results"
