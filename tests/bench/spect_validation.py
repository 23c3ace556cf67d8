"""Tables of the simulated gamma camera against what it should see: Markdown on standard output.

python -m tests.bench.spect_validation                    all of it (minutes on two cores)
python -m tests.bench.spect_validation --only response,counts,point,sphere,noise,chain,speed
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate import acquisition
from pipeline.simulate.camera import FWHM_PER_SIGMA, medium_energy_lu177
from pipeline.simulate.osem import osem
from pipeline.simulate.projector import Projector
from pipeline.volume import Grid, Volume
from tests.bench.machine import machine
from tests.pipeline.simulate.spect_phantoms import WATER_PER_MM, cylinder, sphere

Float32 = NDArray[np.float32]
Rows = Iterable[tuple[object, ...]]

CAMERA = medium_energy_lu177()
PIXEL = CAMERA.pixel_mm
THREADS = 2

# The sphere of 26.5 mL: 57 mm beside the axis, as in the phantom of NEMA NU 1, in a cylinder of 20 cm.
SPHERE_MM = 18.5
CENTRE_MM = (2.0, 57.0, 1.0)
SHAPE = (61, 48, 48)


class Scene(NamedTuple):
    """A hot sphere in a warm cylinder of water; parts of voxels, on voxels of half a pixel and of a pixel."""

    fine_body: Float32
    fine_hot: Float32
    body: Float32
    hot: Float32

    def activity(self, ratio: float, background: float = 1.0) -> Float32:
        """(z, y, x) fine voxels, in parts of what a voxel of a pixel's side holds at concentration 1."""
        return (background * self.fine_body * (1 - self.fine_hot) + ratio * self.fine_hot) / np.float32(8)


def scene() -> Scene:
    """With the shape of `SHAPE`."""
    parts = []
    for finer in (2, 1):
        shape = (SHAPE[0] * finer, SHAPE[1] * finer, SHAPE[2] * finer)
        parts += [
            cylinder(shape, PIXEL / finer, (100.0, 100.0), 90.0),
            sphere(shape, PIXEL / finer, CENTRE_MM, SPHERE_MM),
        ]
    return Scene(*parts)


def response() -> Rows:
    """Widths of a point's projections, by a straight line through the logarithm of their profile."""
    yield "distance, mm", "modelled FWHM, mm", "across, mm", "along, mm", "largest difference, %"
    camera = replace(CAMERA, penetration_fraction=0.0, bins=320, slices=161, pixel_mm=1.2, views=32)
    air = np.zeros((161, 260, 260), np.float32)
    support = np.zeros(air.shape[1:], bool)
    for place in (10, 60, 130, 200, 250):
        support[:] = False
        support[place, 129] = True
        image = air.copy()
        image[80, place, 129] = 1.0
        projector = Projector(air, 1.2, camera, support=support, threads=THREADS)
        distance = camera.radius_mm + (place - 129.5) * 1.2
        modelled = camera.fwhm_mm(distance)
        # Voxels are boxes and pixels have an area: both are taken off again.
        view = projector.forward(image, [0])[0]
        widths = [
            math.sqrt(fitted_fwhm(view.sum(axis=axis), 1.2) ** 2 - 1.2**2 / 6 * FWHM_PER_SIGMA**2)
            for axis in (0, 1)
        ]
        off = max(abs(width / modelled - 1) for width in widths) * 100
        yield f"{distance:.0f}", f"{modelled:.2f}", f"{widths[0]:.2f}", f"{widths[1]:.2f}", f"{off:.2f}"


def fitted_fwhm(profile: Float32, side_mm: float) -> float:
    """Of the Gaussian through what exceeds a tenth of the maximum, mm."""
    place = (np.arange(profile.size) - profile.size / 2) * side_mm
    high = profile > 0.1 * profile.max()
    curvature = np.polyfit(place[high], np.log(profile[high]), 2)[0]
    return float(FWHM_PER_SIGMA / math.sqrt(-2 * curvature))


def counts() -> Rows:
    """What is counted, of what there is."""
    yield "quantity", "value"
    shape = (41, 96, 96)
    body = cylinder(shape, PIXEL, (120.0, 200.0), 60.0)
    camera = replace(CAMERA, slices=41, penetration_fraction=0.0)
    air = np.zeros(shape, np.float32)
    seen = Projector(air, PIXEL, camera, threads=THREADS).forward(body).sum(axis=(1, 2), dtype=np.float64)
    off = np.abs(seen / body.sum(dtype=np.float64) - 1)
    yield (
        "a body 40 cm wide in air, a view's sum against the activity, largest difference",
        f"{off.max():.1e}",
    )
    projector = Projector(body * np.float32(WATER_PER_MM), PIXEL, replace(CAMERA, slices=41), threads=THREADS)
    rng = np.random.default_rng(1)
    image, other = rng.random(shape) * projector.support, rng.random((128, 41, 128))
    there = np.sum(projector.forward(image).astype(np.float64) * other)
    back = np.sum(projector.backward(other).astype(np.float64) * image)
    yield "forward and backward, <A x, y> / <x, A' y> − 1", f"{there / back - 1:.1e}"
    disc = cylinder(shape, PIXEL, (100.0, 100.0), 1000.0)
    source = sphere(shape, PIXEL, (0, 0, 0), 6.0)
    sums = [
        Projector(disc * np.float32(mu), PIXEL, camera, support=disc[0] > 0, threads=THREADS)
        .forward(source)
        .sum()
        for mu in (WATER_PER_MM, 0.0)
    ]
    off = sums[0] / sums[1] / math.exp(-WATER_PER_MM * 100) - 1
    yield "a source in the middle of 20 cm of water, transmitted against exp(−µ r)", f"{off:+.2%}"


def point() -> Rows:
    """A point reconstructed: how wide, where, how much."""
    yield "place (y, x), mm", "updates", "FWHM y, mm", "FWHM x, mm", "off place, mm", "sum / true"
    camera = replace(CAMERA, slices=21, penetration_fraction=0.0)
    shape = (21, 64, 64)
    body = cylinder(shape, PIXEL, (110.0, 150.0), 1000.0) * np.float32(WATER_PER_MM)
    fine = np.kron(body, np.ones((2, 2, 2), np.float32))
    simulated = Projector(fine, PIXEL / 2, camera, threads=THREADS)
    projector = Projector(body, PIXEL, camera, threads=THREADS)
    for y, x in ((64, 64), (84, 30)):
        image = np.zeros(fine.shape, np.float32)
        image[20:22, y : y + 2, x : x + 2] = 12.5
        measured = simulated.forward(image)
        for iterations in (4, 16):
            found = osem(measured, None, projector, iterations)
            profiles = [found.sum(axis=(0, 2)), found.sum(axis=(0, 1))]
            place = (np.arange(64) - 31.5) * PIXEL
            centres = [np.average(place, weights=p) for p in profiles]
            widths = [
                math.sqrt(np.average((place - c) ** 2, weights=p)) * FWHM_PER_SIGMA
                for p, c in zip(profiles, centres, strict=True)
            ]
            true = [(v + 0.5 - 63.5) * PIXEL / 2 for v in (y, x)]
            yield (
                f"{true[0]:.0f}, {true[1]:.0f}", 4 * iterations, f"{widths[0]:.1f}", f"{widths[1]:.1f}",
                f"{math.dist(true, centres):.2f}", f"{found.sum() / 100:.3f}",
            )  # fmt: skip


class Setting(NamedTuple):
    """How the sphere is imaged. counts: 0 without noise."""

    radius_mm: float = 250.0
    ratio: float = 9.0
    background: float = 1.0
    iterations: int = 16
    penetration: bool = True
    counts: float = 0.0
    seed: int = 0


def imaged(of: Scene, setting: Setting) -> tuple[float, float, float]:
    """(recovery in the sphere's volume, background's mean, its coefficient of variation)."""
    camera = replace(CAMERA, slices=SHAPE[0], radius_mm=setting.radius_mm)
    simulated = Projector(
        of.fine_body * np.float32(WATER_PER_MM), PIXEL / 2, camera,
        penetration=setting.penetration, threads=THREADS,
    )  # fmt: skip
    measured = simulated.forward(of.activity(setting.ratio, setting.background))
    if setting.counts:
        scale = np.float32(setting.counts / measured.sum(dtype=np.float64))
        noisy = np.random.default_rng(setting.seed).poisson(measured * scale)
        measured = noisy.astype(np.float32) / scale
    mu = of.body * np.float32(WATER_PER_MM)
    projector = Projector(mu, PIXEL, camera, penetration=False, threads=THREADS)
    return figures(osem(measured, None, projector, setting.iterations), of, setting.ratio)


def figures(image: Float32, of: Scene, ratio: float) -> tuple[float, float, float]:
    """See `imaged`; the background is that of the cylinder's other half, 2 cm from its wall."""
    inner = cylinder(image.shape, PIXEL, (80.0, 80.0), 60.0) > 0.999
    inner[:, image.shape[1] // 2 - 3 :] = False
    inside = image[inner]
    recovery = float(np.sum(image * of.hot, dtype=np.float64) / of.hot.sum(dtype=np.float64)) / ratio
    return recovery, float(inside.mean()), float(inside.std() / max(float(inside.mean()), 1e-9))


def sphere_recovery() -> Rows:
    """Against 0.80 after 72 updates (J. Tran-Gia and M. Lassmann, J Nucl Med 60:50, 2019)."""
    yield "orbit, mm", "sphere : background", "through septa", "counts", "updates", "recovery", "background"
    of = scene()
    for setting in (
        Setting(),
        Setting(iterations=18),
        Setting(penetration=False),
        Setting(penetration=False, iterations=18),
        Setting(radius_mm=170.0),
        Setting(radius_mm=170.0, iterations=18),
        Setting(ratio=4.0),
        Setting(background=0.0),
        *(Setting(counts=8e6, seed=seed) for seed in range(3)),
    ):
        recovery, background, _ = imaged(of, setting)
        yield (
            f"{setting.radius_mm:.0f}",
            f"{setting.ratio:g} : {setting.background:g}",
            "2 %" if setting.penetration else "none",
            f"{setting.counts / 1e6:g} M" if setting.counts else "no noise",
            setting.iterations * 4,
            f"{recovery:.3f}",
            f"{background:.3f}",
        )


def noise() -> Rows:
    """Noise of the background against counts, with the same 64 updates."""
    yield "counts", "background, mean of 3", "coefficient of variation, %", "without noise, %"
    of = scene()
    ripple = imaged(of, Setting())[2]
    for wanted in (3e6, 8e6, 20e6):
        found = [imaged(of, Setting(counts=wanted, seed=seed)) for seed in range(3)]
        mean, variation = (np.mean([each[i] for each in found]) for i in (1, 2))
        yield f"{wanted / 1e6:g} M", f"{mean:.3f}", f"{variation:.1%}", f"{ripple:.1%}"


def chain() -> Rows:
    """The same sphere through `acquisition.simulated_spect`: scatter, three windows, noise, calibration."""
    yield (
        "counts",
        "recovery",
        "background",
        "scatter fraction",
        "TEW / true scatter",
        "image / true activity",
    )
    of = scene()
    camera = replace(CAMERA, slices=SHAPE[0], bins=SHAPE[1])
    coarse = Grid(SHAPE, tuple(-PIXEL * (n - 1) / 2 for n in SHAPE[::-1]), (PIXEL,) * 3)
    shape = (SHAPE[0] * 2, SHAPE[1] * 2, SHAPE[2] * 2)
    fine = Grid(shape, tuple(-PIXEL / 2 * (n - 1) / 2 for n in shape[::-1]), (PIXEL / 2,) * 3)
    activity = Volume(of.activity(9.0) * np.float32(8e5), fine, "Bq/mL")
    density = Volume(np.maximum(of.fine_body, np.float32(0.0012)), fine, "g/cm3")
    made = acquisition.simulated_spect(activity, density, camera, coarse, 8e6, 1, threads=THREADS)
    recovery, background, _ = figures(made.image.array / np.float32(1e5), of, 9.0)
    yield (
        f"{made.counts / 1e6:.2f} M", f"{recovery:.3f}", f"{background:.3f}", f"{made.scatter_fraction:.3f}",
        f"{made.tew_ratio:.3f}", f"{made.image_mbq / made.true_mbq:.3f}",
    )  # fmt: skip


def speed() -> Rows:
    """At full size, a body of 38 x 26 cm that fills the field."""
    yield "what", "seconds", "processor seconds"
    shape = (81, 128, 128)
    body = cylinder(shape, PIXEL, (130.0, 190.0), 1000.0)
    projector = Projector(body * np.float32(WATER_PER_MM), PIXEL, CAMERA, penetration=False, threads=THREADS)
    projector.backward(projector.forward(body, [0]), [0])  # compiles
    seen: list[Float32] = []
    yield "forward, 128 views", *timed(lambda: seen.append(projector.forward(body)))
    yield "backward, 128 views", *timed(lambda: projector.backward(seen[0]))
    yield "OSEM, 16 x 4", *timed(lambda: osem(seen[0], None, projector))
    fine = np.kron(body, np.ones((2, 2, 2), np.float32))
    simulated = Projector(fine * np.float32(WATER_PER_MM), PIXEL / 2, CAMERA, threads=THREADS)
    yield "forward, 128 views, 162 x 256 x 256 of 2.4 mm", *timed(lambda: simulated.forward(fine))


def timed(work: Callable[[], Any]) -> tuple[str, str]:
    started, used = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - started:.1f}", f"{time.process_time() - used:.1f}"


SECTIONS: dict[str, Callable[[], Rows]] = {
    "response": response,
    "counts": counts,
    "point": point,
    "sphere": sphere_recovery,
    "noise": noise,
    "chain": chain,
    "speed": speed,
}


def main() -> None:
    """Print the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    names = parser.parse_args().only.split(",")
    if unknown := sorted(set(names) - set(SECTIONS)):
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    print(f"*{CAMERA.name}; {machine()}, {THREADS} threads*")
    for name in names:
        print(f"\n## {name}\n\n{SECTIONS[name].__doc__}\n")
        for number, row in enumerate(SECTIONS[name]()):
            print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)
            if number == 0:
                print("|" + " --- |" * len(row))


if __name__ == "__main__":
    main()
