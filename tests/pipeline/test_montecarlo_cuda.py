"""The CUDA driver: in numba's simulator, compiled for cards without one, and on a card where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import EngineFailed, InputRejected
from pipeline.montecarlo import cuda
from pipeline.montecarlo.batches import Region, empty_estimate
from pipeline.montecarlo.geometry import EMITTED, ESCAPED, tally_size
from pipeline.montecarlo.threads import ThreadRunner
from tests.bench.cuda_compile import assembled, ptx
from tests.pipeline.montecarlo_scene import small_transport

ROOT = Path(__file__).parents[2]
DECAYS = 200


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    pytest.importorskip("numba.cuda", reason="numba-cuda is an extra: pip install .[gpu]")
    path = tmp_path_factory.mktemp("cuda") / "simulated.npz"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.pipeline.simulated_cuda", str(path), str(DECAYS)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"},
        check=True,
        timeout=120,
    )
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(("photons", "name"), [(False, "electrons"), (True, "photons")])
def test_the_simulated_card_leaves_what_the_processor_leaves(
    simulated: dict[str, np.ndarray], photons: bool, name: str
) -> None:
    runner = ThreadRunner(small_transport(), seed=7, threads=1)
    assert runner.run(photons, 5, DECAYS, never)
    tally, account = simulated[f"{name}_tally"], simulated[f"{name}_account"]
    np.testing.assert_allclose(account, runner.accounts[0], rtol=1e-4)
    # Elementary functions round differently: 7e-7 of the energy lay elsewhere when this was written.
    assert np.abs(tally - runner.tallies[0]).sum() < 1e-4 * tally.sum()
    assert tally.sum() + account[ESCAPED] == pytest.approx(account[EMITTED], rel=1e-6)


@pytest.mark.parametrize(("photons", "name"), [(False, "electrons"), (True, "photons")])
def test_sums_on_the_card_are_those_of_the_processor(
    simulated: dict[str, np.ndarray], photons: bool, name: str
) -> None:
    transport = small_transport()
    runner = ThreadRunner(transport, seed=7, threads=1)
    estimate = empty_estimate(tally_size(transport.geometry))
    region = Region("some", np.arange(10, 60), np.linspace(1.0, 2.0, 50))
    for first, size in ((0, DECAYS // 2), (DECAYS // 2, DECAYS // 4)):
        runner.run(photons, first, size, never)
        estimate.add(runner.tallies, runner.accounts, size, (region,))
    total = estimate.total.sum()
    assert np.abs(simulated[f"{name}_total"] - estimate.total).sum() < 1e-4 * total
    np.testing.assert_allclose(simulated[f"{name}_spread"].sum(), estimate.spread.sum(), rtol=1e-3)
    np.testing.assert_allclose(simulated[f"{name}_region"], estimate.regions["some"], rtol=1e-3)
    np.testing.assert_allclose(simulated[f"{name}_summed"], estimate.account, rtol=1e-3)


def test_a_stopped_batch_leaves_nothing(simulated: dict[str, np.ndarray]) -> None:
    assert not simulated["electrons_stopped"].any()
    assert not simulated["photons_stopped"].any()


@pytest.fixture(scope="module")
def oldest() -> tuple[str, tuple[int, int]]:
    """The electrons' kernel, which holds the photons too, for the oldest card that CUDA here knows."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is an extra: pip install .[gpu]")
    unsupported = pytest.importorskip("numba.cuda.cudadrv.error").CCSupportError
    try:
        return ptx("electrons", (7, 0)), (7, 0)
    except unsupported:  # CUDA 13 begins at 7.5; extra gpu-cu12 has the older one
        return ptx("electrons", (7, 5)), (7, 5)


def test_the_kernel_compiles_without_a_card(oldest: tuple[str, tuple[int, int]]) -> None:
    code, (major, minor) = oldest
    assert f".target sm_{major}{minor}" in code
    assert "atom.global.add.f64" in code, "tallies are float64, and many threads add to them"


def test_old_and_new_cards_take_the_kernel_without_spilling(
    oldest: tuple[str, tuple[int, int]], tmp_path: Path
) -> None:
    code, capability = oldest
    for target in (capability, (9, 0)):
        figures = assembled(code, target, tmp_path)
        if figures is None:
            pytest.skip("no ptxas that knows this PTX: it comes with the extra gpu-cu12")
        assert figures.spilled_bytes == 0
        assert figures.registers <= 128


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:3", 3)])
def test_devices_have_numbers(name: str, number: int) -> None:
    assert cuda.device_number(name) == number


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps:0"])
def test_another_name_of_a_device_is_refused(name: str) -> None:
    with pytest.raises(InputRejected, match="no device"):
        cuda.device_number(name)


def test_without_a_card_the_processor_computes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_unavailable", lambda _: "there is no CUDA device")
    transport = small_transport()
    assert cuda.cuda_runner(transport, 1, "cuda") == (
        None,
        ("there is no CUDA device: computed on the processor",),
    )
    assert cuda.cuda_runner(transport, 1, "auto") == (None, ())


def test_without_numba_cuda_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba.cuda", None)
    assert cuda.why_unavailable() == "numba-cuda is not installed"


def test_too_little_memory_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_unavailable", lambda _: None)

    def small_card(*_: object) -> None:
        cuda.require_memory(3 << 30, 1 << 30)

    monkeypatch.setattr(cuda, "CudaRunner", small_card)
    runner, notes = cuda.cuda_runner(small_transport(), 1, "cuda")
    assert runner is None
    assert notes == ("the GPU has 1024 MiB free, the Monte Carlo takes 3072: computed on the processor",)


def test_the_memory_of_a_run_is_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = small_transport()
    voxels = tally_size(transport.geometry)
    few, many = cuda.required_bytes(transport), cuda.required_bytes(transport, multiprocessors=132)
    assert few > cuda.RESERVE_BYTES + voxels * (1 + 4 + 8 + 2 * 12)
    assert many - few == 132 * cuda.RESIDENT_THREADS * cuda.BANK_BYTES


@pytest.mark.parametrize(
    ("message", "kind"),
    [("CUDA_ERROR_OUT_OF_MEMORY", cuda.TooLittleMemory), ("CUDA_ERROR_ILLEGAL_ADDRESS", EngineFailed)],
)
def test_faults_of_the_driver_carry_a_remedy(message: str, kind: type[EngineFailed]) -> None:
    error = pytest.importorskip("numba.cuda.cudadrv.error", reason="numba-cuda is an extra")
    with pytest.raises(EngineFailed, match=message) as caught, cuda.driver_faults():
        raise error.CudaDriverError(message)
    assert type(caught.value) is kind
    assert caught.value.remedy


@pytest.mark.gpu
@pytest.mark.parametrize("photons", [False, True])
def test_the_card_agrees_with_the_processor_within_three_sigma(photons: bool) -> None:
    reason = cuda.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    transport = small_transport((12, 14, 16))
    voxels = tally_size(transport.geometry)
    everywhere = np.arange(voxels)
    regions = tuple(
        Region(str(i), part, np.ones(part.size)) for i, part in enumerate(np.array_split(everywhere, 12))
    )
    card, processor = cuda.CudaRunner(transport, seed=1), ThreadRunner(transport, seed=2)
    theirs, ours = empty_estimate(voxels), empty_estimate(voxels)
    for _ in range(20):
        card.run(photons, theirs.decays, 50_000, never)
        card.take_in(theirs, 50_000, regions)
        processor.run(photons, ours.decays, 20_000, never)
        ours.add(processor.tallies, processor.accounts, 20_000, regions)
    card.settle(theirs)
    assert theirs.total.sum() + theirs.escaped_kev == pytest.approx(theirs.emitted_kev, rel=1e-6)
    for region in regions:
        (a, variance_a), (b, variance_b) = theirs.region_mean(region.name), ours.region_mean(region.name)
        assert abs(a - b) <= 3.5 * np.sqrt(variance_a + variance_b)
