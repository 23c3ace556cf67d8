"""Engine cnn: against the plain network window by window, and what it refuses, falls back from and flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.averaging import averaged
from pipeline.decay import nuclide
from pipeline.dose_rate import DoseRate, DoseRequest, NetworkSettings
from pipeline.dvk import dvk_dose_rate
from pipeline.engines import engine
from pipeline.errors import EngineFailed, InputRejected
from pipeline.kernels import kernel_sha256
from pipeline.network import cnn_dose_rate, unsuitable
from pipeline.volume import Grid, Volume
from tests import untrained_weights
from tests.pipeline.network_scene import VOXEL_MM, energy, grid_of, scene, turned

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

LUTETIUM, YTTRIUM = nuclide("Lu-177"), nuclide("Y-90")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "untrained"
    untrained_weights.write(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def request(weights: Path | str, activity: Volume, density: Volume, **changes: Any) -> DoseRequest:
    return DoseRequest(activity, density, LUTETIUM, network=NetworkSettings(str(weights), 11.0), **changes)


def cut(of: Volume, box: tuple[slice, slice, slice]) -> Volume:
    return of.boxed(box)


SMALL = (slice(3, 16), slice(20, 66), slice(25, 70))  # body, air and lung, of the scene on the network's grid


def small(weights: Path, **changes: Any) -> DoseRequest:
    of = scene(VOXEL_MM)
    return request(weights, cut(of.activity, SMALL), cut(of.density, SMALL), **changes)


def by_windows(folder: Path, found: DoseRequest, total_bq: float) -> np.ndarray:
    """mGy/h by the network's own `forward`, as published: one window a slice, edges repeated."""
    from models import weights
    from models.scaling import DOSE_SCALE, SPECT_SCALE

    network = weights.load(folder).network
    grid = found.density.grid
    dvk = dvk_dose_rate(found).volume.array
    spect = found.activity.array * (SPECT_SCALE / total_bq)
    per_mgy_h = DOSE_SCALE / 3600 / (total_bq / 1e6)
    height, width = grid.shape[1:]
    padded = [(5, 5), (0, -height % 16), (0, -width % 16)]
    stack = [np.pad(a, ((0, 0), *padded[1:])) for a in (spect, found.density.array * 1000)]
    # Around the box: half of the fill on either side, as the lattice has it.
    shift = [(-n % 16) // 2 for n in (height, width)]
    stack = [np.roll(a, shift, axis=(1, 2)) for a in stack]
    dvk_padded = np.roll(np.pad(dvk * per_mgy_h, ((0, 0), *padded[1:])), shift, axis=(1, 2))
    stack = [np.pad(a, (padded[0], (0, 0), (0, 0)), mode="edge") for a in stack]
    result = np.empty(grid.shape, np.float32)
    with torch.inference_mode():
        for z in range(grid.shape[0]):
            window = [
                torch.from_numpy(np.moveaxis(a[z : z + 11], 0, -1).astype(np.float32))[None, None]
                for a in stack
            ]
            dose = network(*window, torch.from_numpy(dvk_padded[z].astype(np.float32))[None, None])[0, 0]
            result[z] = dose[shift[0] : shift[0] + height, shift[1] : shift[1] + width].numpy() / per_mgy_h
    return result


def test_on_the_networks_own_grid_it_is_the_published_network(weights: Path) -> None:
    """Two steps of their own meet: streaming by slices, and one window after the other."""
    asked = small(weights)
    # Air beside the box is not exactly nothing: here both have nothing.
    asked = replace(asked, surroundings=_in_vacuum(asked.density))
    total = float(asked.activity.array.sum(dtype=np.float64)) * asked.activity.grid.voxel_volume_ml
    expected = by_windows(weights, asked, total)
    found = cnn_dose_rate(asked).volume
    dvk = dvk_dose_rate(asked).volume.array
    changed = np.abs(expected - dvk).max()
    assert changed > 0.01 * dvk.max()
    np.testing.assert_allclose(found.array, expected, rtol=0, atol=2e-4 * changed)


def _in_vacuum(density: Volume) -> Volume:
    z, y, x = density.grid.shape
    wide = density.grid.boxed((0, -16, -16), (z, y + 32, x + 32))
    array = np.zeros(wide.shape, np.float32)
    array[:, 16:-16, 16:-16] = density.array
    return Volume(array, wide, density.unit)


def test_activity_outside_the_density_counts_in_the_total(weights: Path) -> None:
    """The SPECT is a fraction of all that was found; what lies beyond the box only makes it smaller."""
    asked = replace(small(weights), surroundings=_in_vacuum(small(weights).density))
    grid = asked.activity.grid
    z, y, x = grid.shape
    far = Volume(np.zeros((z + 40, y, x), np.float32), grid.boxed((-40, 0, 0), (z + 40, y, x)), "Bq/mL")
    far.array[40:] = asked.activity.array
    far.array[2] = 0.1 * asked.activity.array.max()
    total = float(far.array.sum(dtype=np.float64)) * grid.voxel_volume_ml
    of_box = by_windows(weights, asked, total) - dvk_dose_rate(asked).volume.array
    longer = replace(asked, activity=far)
    found = cnn_dose_rate(longer).volume.array
    dvk = dvk_dose_rate(longer).volume.array
    inside = (asked.density.array > 0.1) & (dvk + of_box > 0) & (found > 0)
    np.testing.assert_allclose(
        (found - dvk)[inside], of_box[inside], rtol=0, atol=2e-3 * np.abs(of_box).max()
    )


@pytest.mark.parametrize(("order", "backwards"), [((0, 1, 2), (0, 1)), ((1, 2, 0), (2,))])
def test_the_result_does_not_depend_on_how_the_ct_is_stored(
    weights: Path, order: tuple[int, int, int], backwards: tuple[int, ...]
) -> None:
    asked = small(weights)
    expected = turned(cnn_dose_rate(asked).volume, order, backwards)
    other = replace(
        asked,
        activity=turned(asked.activity, order, backwards),
        density=turned(asked.density, order, backwards),
    )
    found = cnn_dose_rate(other).volume
    assert found.grid.same_as(expected.grid)
    np.testing.assert_allclose(found.array, expected.array, rtol=0, atol=1e-4 * expected.array.max())


def test_the_result_tells_where_it_came_from(weights: Path) -> None:
    told: list[tuple[str, float]] = []
    asked = replace(small(weights), heterogeneity="local_transport")
    found = cnn_dose_rate(asked, lambda *at: told.append(at))
    assert isinstance(found, DoseRate)
    assert (found.engine, found.device, found.volume.unit) == ("cnn", "cpu", "mGy/h")
    assert found.volume.grid is asked.density.grid
    assert found.kernel_sha256 == kernel_sha256(LUTETIUM, asked.density.grid.spacing_mm)
    from models.weights import manifest_of

    manifest = manifest_of(weights)
    assert found.weights is not None
    assert (found.weights.name, found.weights.version) == ("untrained", "7")
    assert found.weights.sha256 == manifest.sha256
    assert {"weights=untrained", f"weights_sha256={manifest.sha256}", "precision=exact"} <= set(
        found.parameters
    )
    # DVK is the one that the network was trained on, whatever dvk itself is set to.
    assert "heterogeneity=density_scaling" in found.parameters
    parts = [part for _, part in told]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert {"network"} <= {what for what, _ in told}
    assert not found.flags


def test_no_activity_gives_no_dose_rate(weights: Path) -> None:
    asked = small(weights)
    nothing = replace(asked, activity=asked.activity.with_array(np.zeros_like(asked.activity.array)))
    found = cnn_dose_rate(nothing)
    assert not found.volume.array.any()
    assert found.volume.unit == "mGy/h"


@pytest.mark.parametrize("which", ["activity", "density"])
def test_a_value_that_is_not_a_number_is_rejected(weights: Path, which: str) -> None:
    asked = small(weights)
    spoiled = getattr(asked, which).array.copy()
    spoiled[3, 4, 5] = np.nan
    with pytest.raises(InputRejected, match=f"{which} map holds 1 voxels that are not finite"):
        cnn_dose_rate(replace(asked, **{which: getattr(asked, which).with_array(spoiled)}))


def test_a_volume_smaller_than_the_networks_field_is_computed_as_if_its_ends_went_on(weights: Path) -> None:
    grid = Grid((2, 5, 7), (0.0, 0.0, 0.0), VOXEL_MM)
    asked = request(
        weights,
        Volume(np.full(grid.shape, 1e5, np.float32), grid, "Bq/mL"),
        Volume(np.full(grid.shape, 1.04, np.float32), grid, "g/cm3"),
    )
    found = cnn_dose_rate(asked).volume.array
    assert found.shape == grid.shape
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_the_network_is_given_the_image_itself_where_the_ct_is_coarse(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models import streaming

    seen: list[np.ndarray] = []

    def spy(_self: Any, spect: np.ndarray, density: np.ndarray, *_: Any) -> np.ndarray:
        seen.append(spect)
        return np.zeros_like(spect)

    monkeypatch.setattr(streaming.Streaming, "residual", spy)
    coarse, fine = scene((5.0, 5.0, 5.0)), scene((1.5, 1.5, 1.5))
    asked = request(weights, coarse.activity, coarse.density)
    cnn_dose_rate(asked)
    cnn_dose_rate(replace(asked, image=fine.activity))
    from models import weights as files
    from models.scaling import SPECT_SCALE
    from pipeline.network import lattice_for

    lattice = lattice_for(coarse.density.grid, files.manifest_of(weights)).grid
    expected = averaged(fine.activity, lattice).array * (SPECT_SCALE / coarse.activity.integral)
    np.testing.assert_allclose(seen[1], expected, rtol=1e-5, atol=1e-3)
    assert seen[0].max() < seen[1].max()


@pytest.mark.parametrize("spacing", [(3.0, 0.9765625, 0.9765625), (5.0, 1.4, 1.4)], ids=str)
def test_energy_is_that_of_the_networks_own_grid(weights: Path, spacing: Any) -> None:
    of = scene(spacing)
    found = cnn_dose_rate(request(weights, of.activity, of.density)).volume.array
    own_grid = scene(VOXEL_MM)
    own = cnn_dose_rate(request(weights, own_grid.activity, own_grid.density)).volume.array
    assert energy(found, of.density) == pytest.approx(energy(own, own_grid.density), rel=0.02)


# ── what is said about it ────────────────────────────────────────────────────────────────────────


def test_a_result_outside_the_range_of_the_evaluation_is_flagged_with_region_and_ratio(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "narrow"
    untrained_weights.write(folder, ood={"body": (5.0, 6.0), "roi": (7.0, 8.0)})
    asked = small(folder)
    mask = np.zeros(asked.density.grid.shape, bool)
    mask[4:8, 20:26, 15:25] = True
    found = cnn_dose_rate(replace(asked, regions={"Liver": mask}))
    dvk = dvk_dose_rate(asked).volume.array
    rho = asked.density.array
    body, roi = found.flags
    of_body = float((found.volume.array * rho).sum() / (dvk * rho).sum())
    of_roi = float((found.volume.array * rho)[mask].sum() / (dvk * rho)[mask].sum())
    assert f"{of_body:.3g} times DVK's" in body
    assert "expects 5 to 6" in body
    assert "'Liver'" in roi
    assert f"{of_roi:.3g} times DVK's" in roi
    assert "expects 7 to 8" in roi
    assert set(found.flags) <= set(found.notes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Left Kidney", "3 to 4"),
        ("lesion 2", "5 to 6"),
        ("Liver", "7 to 8"),  # with its lesions: not the class "healthy liver"
        ("healthy liver", "1.5 to 2"),
        ("GTV", "7 to 8"),
    ],
)
def test_a_region_is_held_to_the_range_of_its_class(tmp_path: Path, name: str, expected: str) -> None:
    folder = tmp_path / "of-classes"
    classes = {"left kidney": (3.0, 4.0), "lesion": (5.0, 6.0), "healthy liver": (1.5, 2.0)}
    untrained_weights.write(folder, ood={"body": (0.01, 100.0), "roi": (7.0, 8.0), **classes})
    asked = small(folder)
    mask = np.zeros(asked.density.grid.shape, bool)
    mask[4:8, 20:26, 15:25] = True
    (flag,) = cnn_dose_rate(replace(asked, regions={name: mask})).flags
    assert f"expects {expected}: judge it" in flag


def test_where_dvk_finds_no_energy_at_all_the_result_is_flagged_and_not_lost(weights: Path) -> None:
    """All activity lies farther off than DVK's kernel reaches."""
    from pipeline.network import _unusual, manifest_of

    asked = small(weights)
    nothing = np.zeros(asked.density.grid.shape, np.float32)
    (flag,) = _unusual(asked, manifest_of(str(weights)), nothing, nothing)
    assert "in the whole map" in flag


def test_weights_without_a_range_say_so(tmp_path: Path) -> None:
    untrained_weights.write(tmp_path / "silent", ood={})
    (flag,) = cnn_dose_rate(small(tmp_path / "silent")).flags
    assert "do not state how far their evaluation differed from DVK" in flag


def test_the_fast_precision_is_labelled(weights: Path) -> None:
    asked = small(weights)
    found = cnn_dose_rate(replace(asked, network=NetworkSettings(str(weights), 11.0, "", "fast")))
    assert "precision=fast" in found.parameters
    assert any("fast precision" in note for note in found.notes)
    exact = cnn_dose_rate(asked).volume.array
    assert not np.array_equal(found.volume.array, exact)
    np.testing.assert_allclose(found.volume.array, exact, rtol=0, atol=0.05 * exact.max())


# ── what it falls back from ──────────────────────────────────────────────────────────────────────


def test_without_room_on_the_gpu_the_cpu_computes_and_says_so(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import network

    on_the_way = network._on_the_way

    def crowded(asked: Any, loaded: Any, dvk: Any, device: str, progress: Any) -> Any:
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return on_the_way(asked, loaded, dvk, device, progress)

    monkeypatch.setattr(network, "usable_device", lambda device: ("cuda", ()))
    monkeypatch.setattr(network, "_on_the_way", crowded)
    found = cnn_dose_rate(small(weights))
    assert found.device == "cpu"
    assert "GPU memory did not suffice on cuda: the network ran on the CPU" in found.notes


def test_a_gpu_that_breaks_is_a_failed_attempt(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models import streaming

    def broken(*_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(streaming.Streaming, "residual", broken)
    with pytest.raises(EngineFailed, match="illegal memory access") as failed:
        cnn_dose_rate(small(weights))
    assert "new process" in failed.value.remedy


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("models.streaming.Streaming.residual", MemoryError("the memory of cpu did not suffice")),
        (
            "pipeline.network_grid.NetworkGrid.brought_back",
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ),
        ("models.streaming.Streaming.residual", RuntimeError("CUDA error: out of memory")),
        ("models.streaming.Streaming.residual", RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
        ("models.streaming.Streaming.residual", RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")),
    ],
    ids=["in the network", "on the way back", "CUDA", "cuDNN", "cuBLAS"],
)
def test_memory_that_does_not_suffice_is_a_failed_attempt(
    weights: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def crowded(*_: Any, **__: Any) -> np.ndarray:
        raise error

    monkeypatch.setattr(where, crowded)
    with pytest.raises(EngineFailed, match="memory did not suffice for the network"):
        cnn_dose_rate(small(weights))


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="there are no weights") as rejected:
        cnn_dose_rate(small(tmp_path / "none"))
    assert "manifest.json" in rejected.value.remedy


def test_altered_weights_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    untrained_weights.write(folder)
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    for attempt in (
        lambda: cnn_dose_rate(small(folder)),
        lambda: unsuitable(NetworkSettings(str(folder), 11.0), LUTETIUM, grid_of(VOXEL_MM)),
    ):
        with pytest.raises(InputRejected, match="is not what its manifest states") as rejected:
            attempt()
        assert rejected.value.remedy


def test_weights_for_another_nuclide_or_of_another_kind_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(InputRejected, match=r"are for Lu-177, the SPECT is of Y-90"):
        cnn_dose_rate(replace(small(weights), nuclide=YTTRIUM))
    untrained_weights.write(tmp_path / "other", architecture="no-residual")
    settings = NetworkSettings(str(tmp_path / "other"), 11.0)
    for attempt in (
        lambda: cnn_dose_rate(small(tmp_path / "other")),
        lambda: unsuitable(settings, LUTETIUM, grid_of(VOXEL_MM)),
    ):
        with pytest.raises(InputRejected, match="no correction of DVK's"):
            attempt()


def test_what_runs_a_network_is_missed_before_other_engines_compute(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(InputRejected, match="torch not installed") as rejected:
        unsuitable(NetworkSettings(str(weights), 11.0), LUTETIUM, grid_of(VOXEL_MM))
    assert "dicomnode[gpu]" in rejected.value.remedy


def test_without_weights_there_is_nothing_to_run(weights: Path) -> None:
    with pytest.raises(InputRejected, match="no network weights are named"):
        engine("cnn")(replace(small(weights), network=None))


# ── for which study ──────────────────────────────────────────────────────────────────────────────


def test_approved_weights_that_hold_may_be_used(weights: Path) -> None:
    settings = NetworkSettings(str(weights), 11.0, "'NM1'")
    for spacing in ((3.0, 1.0, 1.0), (5.0, 1.0, 1.0)):
        assert unsuitable(settings, LUTETIUM, grid_of(spacing)) == ""


@pytest.mark.parametrize(
    ("changes", "of", "spacing", "reason"),
    [
        ({"weights": ""}, LUTETIUM, VOXEL_MM, "no network weights are approved for the camera 'NM1'"),
        ({}, YTTRIUM, VOXEL_MM, "are for Lu-177, the SPECT is of Y-90"),
        ({"resolution_fwhm_mm": 7.5}, LUTETIUM, VOXEL_MM, "of 8 to 14 mm, and the camera 'NM1' has 7.5 mm"),
        ({"resolution_fwhm_mm": 14.5}, LUTETIUM, VOXEL_MM, "has 14.5 mm"),
        ({"sha256": "0123456789ab"}, LUTETIUM, VOXEL_MM, "are not those that were approved"),
        ({}, LUTETIUM, (5.5, 1.0, 1.0), "voxels of the dose grid are 5.5 mm wide"),
    ],
)  # fmt: skip
def test_why_weights_may_not_be_used(
    weights: Path, changes: dict[str, Any], of: Any, spacing: Any, reason: str
) -> None:
    settings = replace(NetworkSettings(str(weights), 11.0, "'NM1'"), **changes)
    grid = replace(grid_of((5.0, 5.0, 5.0)), spacing_mm=spacing)
    assert reason in unsuitable(settings, of, grid)
