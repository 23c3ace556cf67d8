"""The gamma camera's geometry, its resolution and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.simulate.camera import SpectCamera, from_toml, medium_energy_lu177


def test_the_medium_energy_camera_resolves_as_specified() -> None:
    widths = medium_energy_lu177().fwhm_mm(np.array([0.0, 100.0, 250.0]))
    np.testing.assert_array_equal(np.round(widths, 1), (4.8, 11.1, 21.9))


def test_the_effective_length_follows_from_the_collimator_where_it_is_not_set() -> None:
    camera = replace(medium_energy_lu177(), effective_length_mm=0.0)
    # Septa of lead at 208 keV: µ = 10.3 /cm.
    assert camera.collimator_length_mm == pytest.approx(40.64 - 2 / 1.034, rel=1e-6)
    assert camera.fwhm_mm(0.0) == pytest.approx(np.hypot(2.94, 3.8))
    assert camera.fwhm_mm(100.0) == pytest.approx(medium_energy_lu177().fwhm_mm(100.0), rel=0.02)


def test_resolution_does_not_improve_behind_the_face() -> None:
    camera = medium_energy_lu177()
    assert camera.fwhm_mm(-30.0) == camera.fwhm_mm(0.0)


def test_the_scatter_windows_adjoin_the_photopeak() -> None:
    lower, photopeak, upper = medium_energy_lu177().windows
    assert photopeak.width == pytest.approx(0.2 * 208.37)
    assert (photopeak.low + photopeak.high) / 2 == pytest.approx(208.37)
    assert lower.high == photopeak.low
    assert upper.low == photopeak.high
    assert lower.width == pytest.approx(upper.width)
    assert lower.width == pytest.approx(0.1 * 208.37)


def test_views_go_once_round_from_the_front() -> None:
    angles = replace(medium_energy_lu177(), views=8).view_angles
    assert angles[0] == 0.0
    np.testing.assert_allclose(np.diff(angles), np.pi / 4)
    assert angles[-1] == pytest.approx(2 * np.pi * 7 / 8)


def test_the_file_in_the_documentation_is_a_camera(tmp_path: Path) -> None:
    text = SpectCamera.__doc__ or ""
    lines = [line.strip() for line in text.splitlines() if " = " in line and line.startswith("        ")]
    path = tmp_path / "camera.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert len(lines) == 12
    assert from_toml(path) == replace(medium_energy_lu177(), name="Camera 2, ME", effective_length_mm=0.0)


@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        ('name = "A"\nradius = 200.0', "'radius'", "'radius_mm'"),
        ('name = "A"\nfrobnicate = 1', "'frobnicate'", "There are name, nuclide"),
        ("radius_mm = 200.0", "does not name", "name ="),
        ('name = "A"\nradius_mm = "far"', "radius_mm = 'far'", "a number"),
        ('name = "A"\nbins = 128.5', "bins = 128.5", "whole number"),
        ('name = "A"\nviews = true', "views = True", "whole number"),
        ('name = "A"\npixel_mm = -4.8', "pixel_mm = -4.8", "above 0"),
        ('name = "A"\nradius_mm = nan', "radius_mm = nan", "finite"),
        ('name = "A"\npenetration_fraction = 2', "penetration_fraction = 2", "part of 1"),
        ('name = "A"\nviews = 4\norbit_mm = [200, 200]', "orbit_mm = '2 numbers", "list of 4 distances"),
        ('name = "A"\nviews = 2\norbit_mm = [200, -1]', "orbit_mm", "above 0"),
        ('name = "A"\norbit_mm = 200', "orbit_mm = 200", "list of 128"),
        ('name = "A"\nviews = 1\norbit_mm = ["far"]', "orbit_mm = ['far']", "list of 1"),
        ('name = "A"\nhole_length_mm = 1', "hole_length_mm", "more than 2 /"),
        ("name = ", "not TOML", "key = value"),
    ],
)
def test_a_file_that_is_no_camera_is_refused_by_name(
    tmp_path: Path, text: str, reason: str, remedy: str
) -> None:
    path = tmp_path / "camera.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputRejected) as caught:
        from_toml(path)
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="cannot read the camera file"):
        from_toml(tmp_path / "none.toml")


def test_whole_numbers_serve_as_lengths(tmp_path: Path) -> None:
    path = tmp_path / "camera.toml"
    path.write_text('name = "A"\nradius_mm = 200', encoding="utf-8")
    assert from_toml(path).radius_mm == 200.0


def test_an_orbit_may_follow_the_body(tmp_path: Path) -> None:
    path = tmp_path / "camera.toml"
    path.write_text('name = "A"\nviews = 4\norbit_mm = [180, 240.0, 170, 250]', encoding="utf-8")
    camera = from_toml(path)
    np.testing.assert_array_equal(camera.radii_mm, (180, 240, 170, 250))
    # Between views in proportion, and from the last to the first as between others.
    np.testing.assert_allclose(camera.radius_at(np.pi * np.array([0, 0.25, 0.5, 1.75])), (180, 210, 240, 215))
    np.testing.assert_array_equal(replace(camera, orbit_mm=(), radius_mm=200).radii_mm, np.full(4, 200.0))
