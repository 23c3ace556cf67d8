"""`dicomnode make-phantom FOLDER`: a diagnostic PET/CT in DICOM as a virtual patient to train on.

::

    OUT/NAME/activity.npz, density.npz, vois/VOI.npz, data.toml     as `dicomnode train --data OUT` takes them
    OUT/NAME/phantom.json                                           where it comes from; no name, ID or date
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dicomnode import __version__
from dicomnode.errors import ConfigurationError
from pipeline.errors import InputRejected
from pipeline.learning import pet_ct, phantom
from pipeline.rois import Roi

_NAME = re.compile(r"\w[\w .+-]*")


def make_phantom(
    folder: Path,
    out_folder: Path,
    console: Console,
    *,
    name: str | None = None,
    activity_mbq: float = 1000.0,
    nuclide: str = "Lu-177",
    rescale: Sequence[str] = (),
    overwrite: bool = False,
    series: Sequence[str] = (),
    centre_mm: float | None = None,
) -> Path:
    """Read the PET/CT under `folder`, scale it and write it as ``out_folder/name``, which is returned.

    name: a pseudonym; None: one made of the images' UIDs, the same for the same images. rescale: texts
    ``VOI=factor``. series, centre_mm: as `pet_ct.choose` and `phantom.Wanted` have them.
    raises: InputRejected and ConfigurationError with what to do; nothing is written then.
    """
    wanted = phantom.Wanted(activity_mbq, nuclide, _factors(rescale), centre_mm)
    chosen = pet_ct.choose(folder, series)
    to = out_folder / (f"pet-{chosen.sha256[:12]}" if name is None else _pseudonym(name, chosen))
    phantom.require_free(to, overwrite)
    with console.status("reading PET and CT"):
        images = pet_ct.read(chosen)
    rois, renamed = _without_names(images.rois, chosen)
    with console.status("making the phantom"):
        made = phantom.phantom(images.pet, images.hu, rois, wanted)
        source = {**images.facts, "notes": list(images.notes), "software": f"dicomnode {__version__}"}
        try:
            phantom.save(made, to, source, overwrite=overwrite)
        except OSError as error:
            raise ConfigurationError(
                f"{to} cannot be written: {error.strerror}", "Name another folder with --out"
            ) from error
    for line in _account(made, images):
        console.print(line, highlight=False)
    for note in (*images.notes, *images.problems, *made.notes, *renamed):
        console.print(note, style="yellow", highlight=False)
    console.print(str(to), highlight=False)
    return to


def _account(made: phantom.Phantom, images: pet_ct.PetCt) -> list[str]:
    """What was found and what became of it, in a few lines."""
    activity, scaling, field = (made.account[key] for key in ("activity", "scaling", "field"))
    hours = images.facts["hours_after_injection"]
    when = "at an unknown time" if hours is None else f"{hours:g} h"
    return [
        f"PET: {images.facts['radionuclide']}, {when} after the injection, {activity['pet_mbq']:.4g} MBq",
        f"field: {field['z_mm'][0]:.0f} to {field['z_mm'][1]:.0f} mm; {activity['used_mbq']:.4g} MBq used, "
        f"{activity['outside_ct_mbq']:.3g} outside the CT, {activity['outside_field_mbq']:.3g} outside the "
        f"field, {activity['outside_body_mbq']:.3g} outside the body",
        f"scaled to {scaling['activity_mbq']:g} MBq of {scaling['nuclide']} (factor {scaling['factor']:.4g})",
        *(
            f"{name}: {voi['volume_ml']:.1f} mL, {voi['mbq']:.4g} MBq"
            + (f", after factor {scaling['rescaled'][name]:g}" if name in scaling["rescaled"] else "")
            for name, voi in made.account["vois"].items()
        ),
        "the distribution is the tracer's at the time of the PET, with the PET's blur: see phantom.json",
    ]


def _pseudonym(name: str, chosen: pet_ct.Chosen) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"--name {name!r} is no folder's name", "Use letters, digits, blanks, and . + - _"
        )
    if _tells(name, chosen):
        raise InputRejected(
            "--name holds a name or number of the patient", "Give a pseudonym, or leave --name out"
        )
    return name


def _without_names(rois: Sequence[Roi], chosen: pet_ct.Chosen) -> tuple[list[Roi], list[str]]:
    """VOIs become names of files: one that holds a name or number of the patient is called by its number."""
    kept = [replace(roi, name=f"ROI {roi.number}") if _tells(roi.name, chosen) else roi for roi in rois]
    notes = [
        f"a VOI whose name holds a name or number of the patient is called {roi.name}"
        for roi, before in zip(kept, rois, strict=True)
        if roi is not before
    ]
    return kept, notes


def _tells(text: str, chosen: pet_ct.Chosen) -> bool:
    """Whether a text holds a name or number of the patient, as a word of its own."""
    return any(re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text.lower()) for word in chosen.words)


def _factors(texts: Sequence[str]) -> dict[str, float]:
    """``VOI=factor`` each; a VOI's name may hold the sign itself."""
    factors: dict[str, float] = {}
    for text in texts:
        name, sign, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            sign = ""
            factor = 0.0
        if not (sign and name.strip()):
            raise ConfigurationError(
                f"--rescale {text!r} names no VOI and factor", 'Write it as "left kidney=1.5"'
            )
        if name.strip() in factors:
            raise ConfigurationError(
                f"--rescale names {name.strip()!r} twice", "Give one factor for each VOI"
            )
        factors[name.strip()] = factor
    return factors
