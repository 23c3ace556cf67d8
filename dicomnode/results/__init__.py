"""Findings -> DICOM objects: RT Dose, Parametric Map, Segmentation, SR, rejection note."""
