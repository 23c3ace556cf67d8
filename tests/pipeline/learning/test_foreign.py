"""Truth of other people: NPZ and NIfTI, wherever their axes run, and what is wrong with it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from pipeline.errors import InputRejected
from pipeline.grid import image_of
from pipeline.learning import example as examples
from pipeline.learning import foreign, nifti
from pipeline.learning.example import Example
from pipeline.volume import Grid, Volume
from tests.pipeline.learning import synthetic

UNITS = '[units]\ntruth = "mGy/h"\nspect = "Bq/mL"\ndensity = "g/cm3"\ndvk = "mGy/h"\nmc_on_spect = "mGy/h"\n'
PATIENT = synthetic.example(1)


def write_npz(
    folder: Path, of: Example = PATIENT, names: tuple[str, ...] = ("truth", "spect", "density")
) -> Path:
    for name in names:
        examples.save_volume(folder / f"{name}.npz", of.volume(name))
    for name in ("liver", "lesion 1"):
        mask = of.vois[name].astype(np.float32)
        examples.save_volume(folder / "vois" / f"{name}.npz", Volume(mask, of.grid, "1"))
    return folder


def write_nifti(
    folder: Path, change: Callable[[sitk.Image], sitk.Image] = lambda image: image, ending: str = ".nii.gz"
) -> Path:
    (folder / "vois").mkdir(parents=True)
    for name in ("truth", "spect", "density"):
        sitk.WriteImage(change(image_of(PATIENT.volume(name))), str(folder / f"{name}{ending}"))
    mask = image_of(Volume(PATIENT.vois["spleen"].astype(np.float32), PATIENT.grid, "1"))
    sitk.WriteImage(sitk.Cast(change(mask), sitk.sitkUInt8), str(folder / "vois" / f"spleen{ending}"))
    (folder.parent / "data.toml").write_text(UNITS)
    return folder


def read(folder: Path) -> Example:
    (source,) = foreign.sources(folder)
    return foreign.read(source)


# ── what is read ─────────────────────────────────────────────────────────────────────────────────


def test_npz_volumes_become_an_example(tmp_path: Path) -> None:
    write_npz(tmp_path / "data" / "A")
    found = read(tmp_path / "data")
    assert (found.patient_id, found.family) == ("A", "data")
    assert_array_equal(found.truth, PATIENT.truth)
    assert_array_equal(found.vois["liver"], PATIENT.vois["liver"])
    assert found.grid == PATIENT.grid
    assert found.mc_on_spect is None
    mbq = PATIENT.spect.sum(dtype=np.float64) * PATIENT.grid.voxel_volume_ml / 1e6
    assert found.total_mbq == pytest.approx(mbq)


def test_what_is_absent_is_computed_by_the_engine(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    dvk = read(tmp_path).dvk
    # Energy is conserved: Lu-177 leaves 147.9 keV of electrons per decay, and 6 to 14 % more by photons here.
    grid = PATIENT.grid
    joule = 1.602176634e-16 * PATIENT.spect.sum(dtype=np.float64) * grid.voxel_volume_ml  # per keV
    watt = float((dvk * PATIENT.density).sum(dtype=np.float64)) * grid.voxel_volume_ml * 1e-6 / 3600
    assert 1.0 < watt / (147.9 * joule) < 1.2


def test_what_is_there_is_not_computed(tmp_path: Path) -> None:
    write_npz(tmp_path / "A", names=("truth", "spect", "density", "dvk", "mc_on_spect"))
    found = read(tmp_path)
    assert_array_equal(found.dvk, PATIENT.dvk)
    assert found.mc_on_spect is not None
    assert_array_equal(found.mc_on_spect, PATIENT.mc_on_spect)


def test_examples_and_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_npz(tmp_path / "B")
    examples.save(PATIENT, tmp_path / "C.npz")
    write_npz(tmp_path / "A")
    (tmp_path / "figures").mkdir()
    found = foreign.sources(tmp_path)
    assert [source.name for source in found] == ["A", "B", "C"]
    last = list(foreign.read_all(found))[-1]
    assert last.patient_id == PATIENT.patient_id
    assert_allclose(last.truth, PATIENT.truth, rtol=1e-3)


def test_activity_beside_the_volumes_counts(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    (tmp_path / "A" / "data.toml").write_text("total_mbq = 1e6\n")
    assert read(tmp_path).total_mbq == 1e6
    (tmp_path / "A" / "data.toml").write_text("total_mbq = 1.0\n")
    with pytest.raises(InputRejected, match=r"total_mbq of .*data\.toml is 1\.0, and the SPECT alone holds"):
        read(tmp_path)


# ── NIfTI and its axes ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_is_read_in_place(tmp_path: Path, ending: str) -> None:
    write_nifti(tmp_path / "A", ending=ending)
    found = read(tmp_path)
    assert found.grid.same_as(PATIENT.grid, 1e-3)
    assert_array_equal(found.truth, PATIENT.truth)
    assert_array_equal(found.vois["spleen"], PATIENT.vois["spleen"])


def test_nifti_says_ras_and_is_read_as_lps(tmp_path: Path) -> None:
    """The header itself, not the library's reading of it: x and y change their sign."""
    write_nifti(tmp_path / "A", ending=".nii")
    header = (tmp_path / "A" / "truth.nii").read_bytes()[:352]
    rows = np.frombuffer(header, "<f4", 12, 280).reshape(3, 4)  # srow_x, srow_y, srow_z (nifti1.h)
    x, y, z = PATIENT.grid.origin_mm
    assert_allclose(rows[:, 3], (-x, -y, z), atol=1e-3)
    assert read(tmp_path).grid.origin_mm == pytest.approx((x, y, z), abs=1e-3)


@pytest.mark.parametrize("order", ["LPS", "RAS", "RAI", "PIR", "SLA", "ASL"])
def test_any_order_and_sense_of_the_axes_is_the_same_patient(tmp_path: Path, order: str) -> None:
    write_nifti(tmp_path / "A", lambda image: sitk.DICOMOrient(image, order))
    found = read(tmp_path)
    assert found.grid.same_as(PATIENT.grid, 1e-3)
    assert_array_equal(found.truth, PATIENT.truth)
    assert_array_equal(found.vois["spleen"], PATIENT.vois["spleen"])


def test_files_of_one_patient_may_run_differently(tmp_path: Path) -> None:
    orders = iter(["LPS", "RAS", "PIR", "SLA"])
    write_nifti(tmp_path / "A", lambda image: sitk.DICOMOrient(image, next(orders)))
    found = read(tmp_path)
    assert_array_equal(found.spect, PATIENT.spect)
    assert_array_equal(found.vois["spleen"], PATIENT.vois["spleen"])


def test_an_oblique_file_stays_oblique_and_every_voxel_in_its_place(tmp_path: Path) -> None:
    axes = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix()

    def tilted(image: sitk.Image) -> sitk.Image:
        image.SetDirection(axes.ravel().tolist())
        return sitk.Flip(image, (True, False, True))  # keeps the positions, reverses the axes

    write_nifti(tmp_path / "A", tilted)
    found = read(tmp_path)
    direction = tuple(tuple(float(v) for v in axes[:, column]) for column in (2, 1, 0))
    expected = replace(PATIENT.grid, direction=direction)
    assert found.grid.same_as(expected, 0.01)
    assert_array_equal(found.truth, PATIENT.truth)


def test_laid_axial_moves_no_voxel() -> None:
    rng = np.random.default_rng(1)
    array = rng.random((3, 4, 5), dtype=np.float32)
    grid = Grid(
        (3, 4, 5), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    )
    laid = nifti.laid_axial(Volume(array, grid, "mGy/h"))
    assert laid.grid.direction == ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert laid.grid.shape == (4, 5, 3)
    for index in np.ndindex(*grid.shape):
        there = np.rint(laid.grid.indices(grid.positions(index))).astype(int)
        assert laid.array[tuple(there)] == array[index]


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="there is no folder"):
        foreign.sources(tmp_path / "none")
    with pytest.raises(InputRejected, match="holds no patient"):
        foreign.sources(tmp_path)


@pytest.mark.parametrize("name", ["truth", "spect", "density"])
def test_a_missing_file_is_named_before_any_patient_is_read(tmp_path: Path, name: str) -> None:
    write_npz(tmp_path / "A")
    write_npz(tmp_path / "B")
    (tmp_path / "B" / f"{name}.npz").unlink()
    with pytest.raises(InputRejected, match=rf"B has no {name}\.npz and no {name}\.nii\.gz"):
        foreign.sources(tmp_path)


def test_a_patient_without_vois(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    for path in (tmp_path / "A" / "vois").iterdir():
        path.unlink()
    with pytest.raises(InputRejected, match="vois holds no volume of interest"):
        foreign.sources(tmp_path)


def test_the_same_volume_twice(tmp_path: Path) -> None:
    write_npz(write_nifti(tmp_path / "A"))
    with pytest.raises(InputRejected, match=r"more than once: truth\.npz, truth\.nii\.gz"):
        foreign.sources(tmp_path)


def rewritten(path: Path, change: Callable[[np.ndarray], np.ndarray], **grid: object) -> None:
    with np.load(path) as file:
        content = {key: file[key] for key in file.files} | grid
    np.savez(path, **content | {"array": change(content["array"])})


def test_a_nan_is_named_with_its_file(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    rewritten(tmp_path / "A" / "truth.npz", lambda a: np.where(a == a.max(), np.nan, a))
    with pytest.raises(InputRejected, match=r"A/truth\.npz holds 1 voxels that are not finite"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [sitk.sitkFloat32, sitk.sitkFloat64])
def test_a_nan_in_nifti_too_though_the_library_makes_it_zero(tmp_path: Path, ending: str, kind: int) -> None:
    folder = write_nifti(tmp_path / "A", ending=ending)
    array = PATIENT.spect.copy()
    array[3, 4, 5], array[4, 5, 6] = np.nan, np.inf
    path = folder / f"spect{ending}"
    sitk.WriteImage(sitk.Cast(image_of(Volume(array, PATIENT.grid, "Bq/mL")), kind), str(path))
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).all()
    with pytest.raises(InputRejected, match=r"spect\.nii.* holds 2 voxels that are not finite"):
        read(tmp_path)


def test_another_shape_is_named_with_both(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    rewritten(tmp_path / "A" / "spect.npz", lambda a: a[1:])
    with pytest.raises(
        InputRejected, match=r"spect\.npz has \(27, 40, 48\) .* truth\.npz has \(28, 40, 48\)"
    ):
        read(tmp_path)


def test_another_place_is_named_with_both(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    x, y, z = PATIENT.grid.origin_mm
    rewritten(tmp_path / "A" / "vois" / "liver.npz", lambda a: a, origin_mm=np.array([x, y + 3, z]))
    with pytest.raises(InputRejected, match=r"liver\.npz lies elsewhere than truth\.npz") as caught:
        read(tmp_path)
    assert "Resample it onto the grid of truth.npz" in caught.value.remedy


@pytest.mark.parametrize(("name", "unit"), [("truth", "Gy/h"), ("spect", "kBq/mL"), ("density", "mg/cm3")])
def test_another_unit_is_refused(tmp_path: Path, name: str, unit: str) -> None:
    write_npz(tmp_path / "A")
    rewritten(tmp_path / "A" / f"{name}.npz", lambda a: a, unit=np.array(unit))
    with pytest.raises(InputRejected, match=rf"{name}\.npz is in '{unit}'"):
        read(tmp_path)
    write_nifti(tmp_path / "nifti" / "A")
    right = examples.UNITS[name]
    (tmp_path / "nifti" / "data.toml").write_text(UNITS.replace(f'{name} = "{right}"', f'{name} = "{unit}"'))
    with pytest.raises(InputRejected, match=rf"{name}\.nii\.gz is in '{unit}'\. Convert it to {right}"):
        read(tmp_path / "nifti")


def test_nifti_without_a_unit_is_refused_with_what_to_write(tmp_path: Path) -> None:
    write_nifti(tmp_path / "A")
    (tmp_path / "data.toml").unlink()
    with pytest.raises(InputRejected, match="nothing says the unit of") as caught:
        read(tmp_path)
    assert 'truth = "mGy/h" under [units]' in caught.value.remedy


def test_a_unit_that_lies_is_found_by_the_energy(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    rewritten(tmp_path / "A" / "truth.npz", lambda a: a / 1000)
    with pytest.raises(InputRejected, match=r"energy rate of .*truth\.npz is .* times that of DVK"):
        read(tmp_path)
    rewritten(tmp_path / "A" / "density.npz", lambda a: a * 1000)
    with pytest.raises(InputRejected, match=r"highest density in .*density\.npz is 1000"):
        read(tmp_path)


def test_negative_values_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    rewritten(tmp_path / "A" / "density.npz", lambda a: 1000 * (a - 1))
    with pytest.raises(InputRejected, match=r"density\.npz is negative in \d+ voxels") as caught:
        read(tmp_path)
    assert "CT numbers" in caught.value.remedy


def test_an_empty_voi_is_named(tmp_path: Path) -> None:
    write_npz(tmp_path / "A")
    rewritten(tmp_path / "A" / "vois" / "liver.npz", np.zeros_like)
    with pytest.raises(InputRejected, match=r"liver\.npz is zero everywhere"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["truth.nii.gz", "vois/spleen.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"no image", gzip.compress(b"no image", mtime=0), None])
def test_a_file_that_is_no_nifti(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = write_nifti(tmp_path / "A")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputRejected, match=rf"{name} cannot be read"):
        read(tmp_path)


def test_a_sheared_nifti_is_refused(tmp_path: Path) -> None:
    folder = write_nifti(tmp_path / "A", ending=".nii")
    path = folder / "truth.nii"
    content = bytearray(path.read_bytes())
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # only the affine counts: qform 0, sform 1
    content[280:328] = np.array([[7, 4, 0, 0], [0, 7, 0, 0], [0, 0, 6, 0]], "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(InputRejected, match=r"truth\.nii cannot be read") as caught:
        read(tmp_path)
    assert "orthogonal" in caught.value.remedy


@pytest.mark.parametrize("content", ["nuclid = 1", "units = 3", "= broken"])
def test_wrong_settings_are_named(tmp_path: Path, content: str) -> None:
    write_npz(tmp_path / "A")
    (tmp_path / "data.toml").write_text(content)
    with pytest.raises(InputRejected, match=r"data\.toml"):
        read(tmp_path)
