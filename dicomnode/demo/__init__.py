"""`dicomnode demo`: a virtual patient through the real node, and what comes of it.

::

    patient.py    a virtual patient → CT, SPECT and RTSTRUCT as a scanner and a planning system write them
    node.py       `dicomnode serve` as a process of its own: config.toml, push, follow, stop
    timeline.py   how long each stage took, from the node's ledger
    received.py   what came back: RTDOSE → dose rates, SEG → regions, SR
    picture.py    coronal and axial CT under the dose rate, dose-rate volume histogram
    journey.py    all of it in order
"""

from dicomnode.demo.journey import run
from dicomnode.demo.patient import FULL_SIZE, SMALL_SIZE, Size

__all__ = ["FULL_SIZE", "SMALL_SIZE", "Size", "run"]
