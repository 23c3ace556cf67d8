"""What manifest and card state of training is what was done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import InputRejected
from pipeline.learning import example as examples
from pipeline.learning import facts
from pipeline.simulate.camera import medium_energy_lu177
from tests.pipeline.learning import synthetic

CAMERA = medium_energy_lu177()
OLD = {
    "family": "trunk",
    "texture": "mixed",
    "camera": CAMERA.name,
    "counts": 4e6,
    "radius_mm": [190.0, 260.0],
}
NEW = {
    **OLD,
    "family": "harmonic",
    "counts": 9e6,
    "radius_mm": [201.0, 280.5],
    "electron_decays": 15_000_000,
    "rounds": 1,
    "fwhm_mm_at_100_mm": round(CAMERA.fwhm_mm(100.0), 3),
    "label_uncertainty": {"spleen": {"of_mean": 0.004}, "lesion 1": {"of_mean": 0.0112}},
}
CHECKPOINT = {
    "settings": json.dumps({"batch": 2, "slab": 16, "crop": 128, "seconds": 3600.0}),
    "step": 1000,
    "elapsed": 3601.0,
}
LOG = [{"step": 500, "samples": 12}, {"step": 1000, "samples": 19}, {"step": 1000, "validation": 0.1}]


def test_patients_are_those_that_the_training_had_and_not_the_files_that_are_there_now() -> None:
    found = facts.training_facts([NEW] * 25, CHECKPOINT, LOG)
    assert (found["patients"], found["examples"]) == (19, 25)
    assert found["voxels"] == 1000 * 2 * 16 * 128**2
    assert found["hours"] == 1.0
    assert found["settings"]["seconds"] == 3600.0
    assert facts.training_facts([NEW], CHECKPOINT, [])["patients"] == facts.NOT_STATED


def test_what_examples_do_not_say_is_not_stated() -> None:
    found = facts.training_facts([OLD, OLD], CHECKPOINT, LOG)
    assert found["electron_decays"] == found["largest_label_uncertainty"] == facts.NOT_STATED
    mixed = facts.training_facts([OLD, NEW, NEW], CHECKPOINT, LOG)
    assert mixed["electron_decays"] == "1.5e+07 to 1.5e+07 in 2 of 3 examples, else not stated"
    assert mixed["largest_label_uncertainty"] == 0.0112
    assert mixed["families"] == ["harmonic", "trunk"]


def test_the_camera_is_that_of_the_examples() -> None:
    found = facts.camera_facts([OLD, NEW], CAMERA)
    assert found["counts"] == [4e6, 9e6]
    assert found["radius_mm"] == [190.0, 280.5]
    fwhm = CAMERA.fwhm_mm(100.0)
    assert found["resolution_fwhm_mm"] == pytest.approx([0.9 * fwhm, 1.1 * fwhm], abs=0.01)
    assert found["clearance_mm"] == facts.NOT_STATED


@pytest.mark.parametrize("change", [{"name": "another"}, {"hole_mm": 2.0}])
def test_another_camera_than_that_of_the_examples_is_refused(change: dict[str, object]) -> None:
    other = replace(CAMERA, **change)  # type: ignore[arg-type]
    with pytest.raises(InputRejected, match=f"the examples were made with the camera {CAMERA.name}"):
        facts.camera_facts([OLD, NEW], other)


def test_an_example_is_described_without_its_maps(tmp_path: Path) -> None:
    one = synthetic.example(1)
    examples.save(replace(one, meta={"counts": 3.0}), tmp_path / "a.npz")
    assert examples.described(tmp_path / "a.npz") == {
        "counts": 3.0,
        "family": one.family,
        "texture": one.texture,
        "spacing_mm": one.grid.spacing_mm,
    }
    examples.save_volume(tmp_path / "b.npz", one.volume("density"))
    with pytest.raises(InputRejected, match=r"b\.npz is no 'dicomnode example 1'"):
        examples.described(tmp_path / "b.npz")
