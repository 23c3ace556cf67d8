"""Who may import whom, held against the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = (
    "network.receive", "reception.store", "assemble", "computing.compute", "deliver", "commitment.ask",
    "commitment.answer", "fetch", "notify", "retention",
)  # fmt: skip

# The packages of the daemon from the bottom up: each may import those before it, and none after it.
LAYERS = (
    "config", "ledger", "audit", "reception", "results", "computing", "network", "commitment", "query",
    "commands", "conformance", "demo",
)  # fmt: skip

# Module (or package) prefixes that alone may import a dependency.
DOORS = {
    "SimpleITK": ("pipeline.grid", "pipeline.learning.nifti"),
    "sqlalchemy": ("dicomnode.ledger", "dicomnode.ledger.schema", "dicomnode.migrations"),
    "alembic": ("dicomnode.ledger", "dicomnode.migrations"),
    "apscheduler": ("dicomnode.daemon",),
    "psycopg": ("dicomnode.ledger",),
    "dask": ("dicomnode.computing.cluster",),
    "distributed": ("dicomnode.computing.cluster",),
    "pynetdicom": (
        "dicomnode.network",
        "dicomnode.commitment",
        "dicomnode.query",
        "dicomnode.reception.store",
        "dicomnode.reception.defects",
        "dicomnode.contexts",
        "dicomnode.conformance",
        "dicomnode.demo.standin_pacs",
    ),
    "matplotlib": ("dicomnode.demo", "pipeline.learning.figures"),
    "safetensors": ("models.weights",),
    "numba": (
        "models.fused",
        "pipeline.heterogeneity",
        "pipeline.kernels",
        "pipeline.montecarlo",
        "pipeline.pair_distance",
        "pipeline.simulate.projector_cuda",
    ),
}
# pydicom in `pipeline` only where files are read; simulation, convolution and inference run without it.
READERS = {
    "acquisition", "activity", "camera", "ct", "dataset", "dose_report", "learning.pet_ct", "nm", "pet",
    "regions", "registration", "rois", "segments", "slices", "spect", "structures",
}  # fmt: skip
WITHOUT_PYDICOM = (
    "pipeline.volume",
    "pipeline.decay",
    "pipeline.kernels",
    "pipeline.convolve",
    "pipeline.dose_rate",
    "pipeline.dvk",
    "pipeline.engines",
    "pipeline.montecarlo.engine",
    "pipeline.montecarlo.simulate",
    "pipeline.histogram",
    "pipeline.density",
    "pipeline.simulate.patient",
    "pipeline.simulate.spect",
    "pipeline.simulate.projector",
    "pipeline.simulate.osem",
    "pipeline.simulate.acquisition",
    "pipeline.simulate.families",
    "pipeline.simulate.respiration",
    "pipeline.network",
    "pipeline.network_grid",
    "pipeline.learning.generate",
    "pipeline.learning.scene",
    "pipeline.learning.evaluation",
    "pipeline.learning.report",
    "pipeline.learning.figures",
    "pipeline.learning.foreign",
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("dicomnode", "pipeline", "models"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            yield node.module


MODULES = dict(modules())


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_downwards_only(name: str) -> None:
    below = {"dicomnode": (), "pipeline": ("dicomnode",), "models": ("dicomnode", "pipeline")}
    forbidden = below[name.partition(".")[0]]
    for target in imported(MODULES[name]):
        assert target.partition(".")[0] not in forbidden, f"{name} imports {target}"


@pytest.mark.parametrize("dependency", DOORS)
def test_a_dependency_has_one_door(dependency: str) -> None:
    for name, tree in MODULES.items():
        if any(target.partition(".")[0] == dependency for target in imported(tree)):
            assert name.startswith(DOORS[dependency]), f"{name} imports {dependency}"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_meet_only_in_the_ledger(stage: str) -> None:
    others = {f"dicomnode.{other}" for other in STAGES if other != stage}
    assert not others & set(imported(MODULES[f"dicomnode.{stage}"]))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_of_the_daemon_imports_only_what_is_below_it(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    package = f"dicomnode.{layer}"
    for name, tree in MODULES.items():
        if f"{name}.".startswith(f"{package}."):
            for target in imported(tree):
                assert not target.startswith(tuple(f"dicomnode.{other}" for other in above)), (
                    f"{name} imports {target}"
                )


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("pipeline.")])
def test_pydicom_stays_where_files_are_read(name: str) -> None:
    if name.partition(".")[2] not in READERS:
        assert not any(target.partition(".")[0] == "pydicom" for target in imported(MODULES[name]))


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}; import sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_listening_process_loads_nothing_heavy() -> None:
    loaded = loaded_by("import dicomnode.daemon")
    assert not loaded & {"torch", "scipy", "SimpleITK", "highdicom", "matplotlib", "skimage", "numba"}
    assert not loaded & {"distributed", "psycopg"}, "a node that needs neither runs without them"


def test_a_job_loads_what_its_engine_needs_when_it_needs_it() -> None:
    """Each job is a process of its own: what it loads in vain, every case waits for."""
    loaded = loaded_by("import dicomnode.computing.case_job, dicomnode.computing.child_process")
    assert not loaded & {"torch", "numba", "matplotlib", "skimage", "typer", "sqlalchemy"}


def test_the_numbers_load_without_dicom() -> None:
    """A GPU machine has numpy, scipy and torch, and neither pydicom nor SimpleITK."""
    loaded = loaded_by("import " + ", ".join(WITHOUT_PYDICOM))
    assert not loaded & {"pydicom", "SimpleITK", "torch", "highdicom"}


def test_training_needs_neither_dicom_nor_simpleitk() -> None:
    assert not loaded_by("import pipeline.learning.recipe") & {"pydicom", "SimpleITK", "highdicom"}
