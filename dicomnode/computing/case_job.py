"""A job in the child: files of one study → results on disk. Nothing here knows of ledger or network.

`dicomnode compute FOLDER` runs the same function in its own process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode import __version__
from dicomnode.computing.job import InputsDamaged, Job, Outcome
from dicomnode.config import Config
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import describe_file
from dicomnode.reception.spool_file import read_back
from dicomnode.records import Inputs, NewResult, NewRun
from dicomnode.results.encode import EncodedObject, encode
from dicomnode.results.findings import (
    EncodingSettings,
    EngineMap,
    Findings,
    InstanceReference,
    Predecessor,
    Provenance,
    ResultKind,
    RoiFindings,
)
from dicomnode.results.writing import uid_source
from pipeline.acquisition import Administration
from pipeline.camera import UNLISTED, camera_of
from pipeline.ct import read_ct
from pipeline.dataset import read_header, read_object
from pipeline.dose_rate import DoseRate, MonteCarloSettings, NetworkSettings
from pipeline.dose_report import administered
from pipeline.dosimetry import Dosimetry, DosimetrySettings, Region, compute_dosimetry
from pipeline.registration import registration
from pipeline.rois import Rois, read_rois
from pipeline.spect import SpectImage, read_spect
from pipeline.volume import Grid

log = logging.getLogger(__name__)
Progress = Callable[[str, float], None]
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What an engine is called in words, and what it does about tissue (RTDOSE and SR say so).

    tissue: by [dose] heterogeneity; one text under "" where that changes nothing. parameters: beside those
        that the engine itself names. data_name: what the numbers rest on, in words.
    """

    name: str
    tissue: dict[str, str]
    parameters: tuple[str, ...]
    data_name: str

    def tissue_for(self, heterogeneity: str) -> str:
        """What this engine does about tissue under that setting."""
        return self.tissue.get(heterogeneity) or self.tissue[""]


STATISTICS = "statistics=over voxels, not weighted by mass"
ALGORITHMS = {
    "dvk": Algorithm(
        "Dose-voxel-kernel convolution",
        {
            "density_scaling": "density scaling 1.04/rho of the soft-tissue dose; 0 below 0.1 g/cm3",
            "local_transport": "electrons along density-scaled rays, photons by absorption in the medium; "
            "0 below 0.1 g/cm3",
        },
        ("zero_below_g_per_cm3=0.1", "kernel=PENELOPE soft tissue 1.04 g/cm3", STATISTICS),
        "kernel",
    ),
    "mc": Algorithm(
        "Monte Carlo",
        {"": "medium and density of every voxel from the CT; 0 below 0.1 g/cm3"},
        (STATISTICS,),
        "physics and decay data",
    ),
    "cnn": Algorithm(
        "DVK with DblurDoseNet",
        {
            "": "density scaling 1.04/rho of the soft-tissue dose, corrected by the network, which sees the "
            "density; 0 at and below 0.1 g/cm3"
        },
        ("zero_below_g_per_cm3=0.1", "kernel=PENELOPE soft tissue 1.04 g/cm3", STATISTICS),
        "kernel",
    ),
}


@dataclass(slots=True)
class _Steps:
    """Names and seconds of the steps so far; tells progress."""

    tell: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    current: str = ""

    def __call__(self, what: str, part: float) -> None:
        self.close()
        self.current = what
        self.tell(what, part)

    def close(self) -> None:
        now = time.perf_counter()
        if self.current:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.began
        self.began = now


def perform(job: Job, progress: Progress = lambda _what, _part: None) -> Outcome:
    """Compute a study and write its results into `job.out`.

    raises: InputRejected or InputsDamaged when a person must act, EngineFailed or OSError when the machine is
    at fault.
    """
    steps = _Steps(progress)
    if job.checkpoint is not None:
        job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if job.spooled:
        steps("check the files", 0.0)
        _require_undamaged(job.inputs)
    ct_paths = [Path(p) for p in job.inputs.ct]
    spect_paths = [Path(p) for p in job.inputs.spect]
    steps("read the CT", 0.0)
    hu = read_ct(ct_paths)
    steps("read the SPECT", 0.1)
    spect = _registered(read_spect(spect_paths, job.config.camera), job, hu.grid)
    steps("read the ROIs", 0.12)
    rois = read_rois([Path(p) for p in job.inputs.rois], hu.grid)
    reports = [read_object(Path(p)) for p in job.inputs.dose_reports]
    given = administered(spect.administration, reports)
    dosimetry = compute_dosimetry(
        hu,
        spect,
        rois.found,
        given,
        _settings(job, _network(job.config, read_header(spect_paths[0]))),
        lambda what, part: steps(what, 0.15 + 0.55 * part),
    )
    del hu
    steps("encode", 0.7)
    findings = _findings(job, spect, rois, given, dosimetry)
    settings = replace(encoding_settings(job.config), rejection_reason=job.rejection_reason)
    uids = uid_source(job.config.encode.uid_root, job.identity, *_drawn(dosimetry))
    written = encode(findings, settings, job.out, datetime.now().astimezone(), uids)
    steps.close()
    progress("done", 1.0)
    return Outcome(_new_results(job, written), _new_run(findings, dosimetry, steps.seconds))


def _require_undamaged(inputs: Inputs) -> None:
    """A bit that the disk turned makes another dose that looks as right as this one."""
    damaged = []
    for file in inputs.files:
        try:
            read_back(Path(file))
        except Flawed:
            damaged.append(file)
    if damaged:
        raise InputsDamaged(
            f"{len(damaged)} of its {len(inputs.files)} files are not what was received: "
            f"{', '.join(Path(file).name for file in damaged[:_NAMED])}",
            "Check the disk, have these objects sent again, then `dicomnode retry`",
            tuple(damaged),
        )


def encoding_settings(config: Config) -> EncodingSettings:
    """[encode] and who we are. The device's UID stays as long as host name and AE title do."""
    name = f"dicomnode {platform.node()} {config.node.ae_title}"
    device = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"
    return EncodingSettings(
        **config.encode.model_dump(),
        device_uid=device,
        uncertainty_map=config.montecarlo.uncertainty_map,
    )


def _drawn(dosimetry: Dosimetry) -> Iterator[str]:
    """What the UIDs must also depend on, beside inputs and settings.

    Of numbers that chance had a part in: the numbers themselves, since when a run ends depends on the
    machine's speed. Of a network: its weights, since the configuration names them, and a folder may change;
    and the device where fewer digits are computed with, since each rounds in its own way.
    """
    for map_ in dosimetry.maps:
        if map_.weights is not None:
            yield f"{map_.engine} {map_.weights.sha256}"
            if "precision=fast" in map_.parameters:
                yield f"{map_.engine} {map_.device}"
        if map_.uncertainty is not None:
            yield f"{map_.engine} {hashlib.sha256(map_.volume.array.tobytes()).hexdigest()}"


def _network(config: Config, spect: Dataset) -> NetworkSettings:
    """The weights that are approved for the camera that made the SPECT."""
    camera = camera_of(spect, config.camera)
    name = "of this SPECT, which is not listed" if camera is UNLISTED else repr(camera.name)
    return NetworkSettings(
        camera.cnn_weights,
        camera.resolution_fwhm_mm,
        name,
        config.network.precision,
        camera.cnn_weights_sha256,
    )


def _settings(job: Job, network: NetworkSettings) -> DosimetrySettings:
    dose, montecarlo = job.config.dose, job.config.montecarlo
    return DosimetrySettings(
        curve=job.config.density.curve,
        engines=dose.engines,
        device=dose.device,
        grid_spacing_mm=dose.grid_spacing_mm,
        grid_field=dose.grid_field,
        plausibility_limit=dose.plausibility_limit,
        max_outside_ct=dose.max_outside_ct,
        heterogeneity=dose.heterogeneity,
        kernel_cache=job.kernel_cache,
        montecarlo=MonteCarloSettings(
            mean_uncertainty=montecarlo.mean_uncertainty,
            time_limit_s=montecarlo.time_limit_s,
            seed=montecarlo.seed,
            checkpoint=job.checkpoint,
        ),
        network=network,
    )


def _registered(spect: SpectImage, job: Job, ct: Grid) -> SpectImage:
    """The SPECT in the CT's frame of reference."""
    frame = spect.activity.grid.frame_of_reference_uid
    if frame == ct.frame_of_reference_uid or not job.inputs.registrations:
        return spect
    objects = [read_object(Path(p)) for p in job.inputs.registrations]
    motion = registration(objects, frame, ct.frame_of_reference_uid)
    note = "the SPECT was moved into the CT's frame of reference by the study's Spatial Registration"
    return replace(spect, activity=motion.move(spect.activity), notes=(*spect.notes, note))


# ── numbers to findings ──────────────────────────────────────────────────────────────────────────


def _findings(
    job: Job, spect: SpectImage, rois: Rois, given: Administration, dosimetry: Dosimetry
) -> Findings:
    headers = [read_header(Path(p)) for p in (*job.inputs.ct, *job.inputs.spect)]
    ct, emission = headers[: len(job.inputs.ct)], headers[len(job.inputs.ct) :]
    others = [
        read_header(Path(p)) for p in (*job.inputs.rois, *job.inputs.registrations, *job.inputs.dose_reports)
    ]
    sources = {str(h.SOPInstanceUID): _reference(h) for h in others}
    checked = dosimetry.plausibility
    return Findings(
        ct_headers=tuple(ct),
        spect_headers=tuple(emission),
        nuclide=spect.nuclide,
        reference_time=dosimetry.reference_time,
        maps=tuple(_engine_map(m, job.config) for m in dosimetry.maps),
        rois=tuple(_roi_findings(r, sources) for r in dosimetry.regions),
        provenance=_provenance(job.config, spect, dosimetry),
        administered_bq=given.activity_bq,
        administered_at=given.administered_at,
        fraction_found=None if checked is None else checked.fraction,
        # An engine's own notes stand beside its map.
        notes=(*job.inputs.notes, *_common(dosimetry), *_left_behind(job, dosimetry), *rois.problems),
        other_sources=tuple(sources.values()),
        predecessors=tuple(_predecessor(p, str(ct[0].StudyInstanceUID)) for p in job.predecessors),
        rejected=tuple(
            tuple(_predecessor(p, str(ct[0].StudyInstanceUID)) for p in rejection.results)
            for rejection in job.rejections
        ),
    )


def _common(dosimetry: Dosimetry) -> tuple[str, ...]:
    by_engine = {note for map_ in dosimetry.maps for note in map_.notes}
    return tuple(note for note in dosimetry.notes if note not in by_engine)


def _left_behind(job: Job, dosimetry: Dosimetry) -> Iterator[str]:
    """What an earlier run made that no map of this one replaces: an archive goes on showing it."""
    engines = {"", *(map_.engine for map_ in dosimetry.maps)}
    for old in job.predecessors:
        if old.engine not in engines:
            yield (
                f"the {old.kind} of engine {old.engine} that an earlier run made, {old.sop_instance_uid}, "
                "does not belong to this report: that engine computed nothing this time"
            )


def _engine_map(map_: DoseRate, config: Config) -> EngineMap:
    algorithm = ALGORITHMS[map_.engine]
    return EngineMap(
        engine=map_.engine,
        dose_rate=map_.volume,
        algorithm_name=algorithm.name,
        algorithm_version=__version__,
        parameters=(*map_.parameters, *(p for p in algorithm.parameters if p not in map_.parameters)),
        kernel_sha256=map_.kernel_sha256,
        heterogeneity=algorithm.tissue_for(config.dose.heterogeneity),
        notes=map_.notes,
        uncertainty=map_.uncertainty,
        device=map_.device,
        data_name=algorithm.data_name,
        weights=map_.weights,
    )


def _roi_findings(region: Region, sources: dict[str, InstanceReference]) -> RoiFindings:
    source = None if region.roi is None else sources.get(region.roi.source_uid)
    return RoiFindings(region.name, region.kind, region.mask, region.statistics, source, region.uncertainty)


def _provenance(config: Config, spect: SpectImage, dosimetry: Dosimetry) -> Provenance:
    return Provenance(
        software_version=__version__,
        config_sha256=config.sha256,
        calibration_text=f"camera {spect.camera}: {spect.conversion}",
        calibration_sha256=spect.calibration_sha256,
    )


def _predecessor(result: NewResult, study_uid: str) -> Predecessor:
    reference = InstanceReference(
        result.sop_class_uid, result.sop_instance_uid, result.series_instance_uid, study_uid
    )
    return Predecessor(reference, ResultKind(result.kind), result.engine)


def _reference(header: Dataset) -> InstanceReference:
    return InstanceReference(
        str(header.SOPClassUID),
        str(header.SOPInstanceUID),
        str(header.SeriesInstanceUID),
        str(header.StudyInstanceUID),
    )


# ── for the ledger ───────────────────────────────────────────────────────────────────────────────


def _new_results(job: Job, written: Sequence[EncodedObject]) -> tuple[NewResult, ...]:
    """The notes come first, in the order of the job's."""
    notes = [replace(_new_result(w), only_for=r.peers) for w, r in zip(written, job.rejections, strict=False)]
    return (*notes, *(_new_result(w) for w in written[len(notes) :]))


def _new_result(written: EncodedObject) -> NewResult:
    return NewResult(
        sop_instance_uid=written.sop_instance_uid,
        sop_class_uid=written.sop_class_uid,
        series_instance_uid=written.series_instance_uid,
        transfer_syntax_uid=str(ExplicitVRLittleEndian),
        kind=str(written.kind),
        engine=written.engine,
        path=str(written.path),
        size_bytes=written.path.stat().st_size,
        attributes=describe_file(written.path, ExplicitVRLittleEndian),
    )


def _new_run(findings: Findings, dosimetry: Dosimetry, seconds: dict[str, float]) -> NewRun:
    provenance = findings.provenance
    details = {
        "seconds": {what: round(s, 3) for what, s in seconds.items()},
        "device": {map_.engine: map_.device for map_ in dosimetry.maps},
        "fraction_found": findings.fraction_found,
        "activity_outside_ct_mbq": dosimetry.resampling.outside_ct_mbq,
        "resampling_difference": dosimetry.resampling.common_difference,
        "notes": findings.notes,
        "flags": dosimetry.flags,
        "uncertainty": {
            map_.engine: [str(region) for region in map_.regions] for map_ in dosimetry.maps if map_.regions
        },
    }
    return NewRun(
        inputs_sha256="",
        software_version=provenance.software_version,
        config_sha256=provenance.config_sha256,
        calibration_sha256=provenance.calibration_sha256 or "",
        kernel_sha256=" ".join(map_.kernel_sha256 for map_ in dosimetry.maps),
        weights_sha256=" ".join(m.weights.sha256 for m in findings.maps if m.weights is not None),
        details_json=json.dumps(details),
    )
