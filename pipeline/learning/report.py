"""An evaluation in words and tables: Markdown for docs/network.md, and the model card of weights.

Functions of what was found alone: the date and the machine are arguments, and nothing is read or written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.learning import paper
from pipeline.learning.comparison import (
    LEAST_TO_LIMIT,
    SIGNIFICANT,
    Spread,
    Summary,
    energy_limits,
    noise_summary,
    poisson_known,
    summary,
    tally,
    worse,
)
from pipeline.learning.metrics import PairedTest
from pipeline.learning.results import CNN, DVK, MC, METRICS, Evaluation, Metric, VoiResult
from pipeline.simulate.families import FAMILIES
from pipeline.vois import BODY, LEAST_LESION_ML, LESIONS, VoiClass

if TYPE_CHECKING:
    from models.weights import Manifest

METRIC_NAMES: Mapping[Metric, str] = {
    "mean_error": "mean dose-rate error",
    "nrmse": "NRMSE",
    "dr10": "DR10 error",
    "dr30": "DR30 error",
    "dr70": "DR70 error",
    "dr90": "DR90 error",
}
NOTHING = "–"
TRUTH = "truth"
LIMITS = (
    "Judged on virtual patients with simulated images, not on people. One simulated camera and one way of "
    "reconstructing made the images of training and of tests: what the network corrects includes the bias of "
    "this scatter correction and of this number of updates, and another camera's differs. Where DVK's error "
    "here is larger than the paper's, a reduction is easier to reach."
)
SHARED = (
    " Organs and lesions of the test patients have shapes and textures that training did not see; lesions' "
    "range of contrasts, what tissues hold, the camera and the way of reconstructing are those of both."
)
SIGNIFICANT_P = 0.05


def evaluation_section(
    evaluation: Evaluation, today: str, machine: str, method: str = CNN, pictures: Sequence[str] = ()
) -> str:
    """The whole account of an evaluation.

    today: ISO date. machine: what it was computed on. method: the network that is judged by the targets.
    pictures: links to figures, relative to the page.
    """
    parts = [
        _intro(evaluation, today, machine),
        _part("Against what was asked", targets_table(evaluation, method)),
        _part("Mean dose-rate error", errors_table(evaluation, "mean_error")),
        _part("NRMSE", errors_table(evaluation, "nrmse")),
        _part("Beside the paper", reductions_table(evaluation, method)),
        _part("Paired t-tests", p_values_table(evaluation, method)),
        _part("Dose-rate volume histogram: DRx errors", drx_table(evaluation, method)),
        _part("Ensemble noise", noise_table(evaluation)),
        _part(f"Where {method} is worse than DVK", worse_section(evaluation, method)),
        _part("Energy against DVK", energy_table(evaluation, method)),
        *([_part("Pictures", "\n\n".join(f"![]({link})" for link in pictures))] if pictures else []),
        _part("Every VOI", voi_table(evaluation)),
    ]
    return "\n\n".join(parts) + "\n"


def _intro(evaluation: Evaluation, today: str, machine: str) -> str:
    families = ", ".join(sorted({patient.family for patient in evaluation.patients}))
    return (
        f"{counted(len(evaluation.patients), 'patient')} ({families}), "
        f"{counted(len(evaluation.vois(*LESIONS)), 'lesion')}, "
        f"{counted(len(evaluation.vois()), 'VOI')}; {today}, {machine}. Errors are relative to the truth and "
        "without sign: mean ± standard deviation over VOIs. DVK: the SPECT convolved with the dose-voxel "
        f"kernel; MC: Monte Carlo of the SPECT; {_names(evaluation.networks)}: networks."
    )


def targets_table(evaluation: Evaluation, method: str = CNN) -> str:
    """What the weights must reach, and whether they do, on how many patients and lesions."""
    rows = [
        (
            f"{target.what} below that of {target.against}",
            f"at least {percent(target.asked, 0)}",
            percent(target.reached, 1),
            _met(target.met, target.reached),
        )
        for target in paper.targets(evaluation, method)
    ]
    patients, lesions = len(evaluation.patients), len(evaluation.vois(VoiClass.LESION))
    zero = [p.zero_for_zero[method] for p in evaluation.patients if method in p.zero_for_zero]
    if zero:
        # Input and output are per activity: without any, the network itself is not asked.
        found = "zero, by the scaling" if all(zero) else "not zero"
        rows.append(("dose rate without activity", "zero everywhere", found, _met(all(zero))))
    rows += _bare(evaluation, method)
    rows.append(
        (
            "test patients",
            f"at least {paper.LEAST_PATIENTS}",
            str(patients),
            _met(patients >= paper.LEAST_PATIENTS),
        )
    )
    rows.append(
        (
            f"lesions of {LEAST_LESION_ML:g} mL or more, of which the figures above are",
            f"at least {paper.LEAST_LESIONS}",
            str(lesions),
            _met(lesions >= paper.LEAST_LESIONS),
        )
    )
    rows += _certainties(evaluation)
    return table((f"{method}", "asked", "reached", ""), rows)


def _bare(evaluation: Evaluation, method: str) -> list[tuple[str, str, str, str]]:
    """What the network itself would add for a SPECT of zero, of all patients the most."""
    found = [p.bare_for_zero[method] for p in evaluation.patients if method in p.bare_for_zero]
    if not found:
        return []
    highest, mean = (max(column) for column in zip(*found, strict=True))
    reached = f"up to {percent(highest, 2)} of DVK's highest, on average {percent(mean, 2)} of DVK's mean"
    return [("the network itself, given a SPECT of zero", NOTHING, reached, "never returned")]


def _certainties(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """The statistical uncertainty of the mean in the VOIs: the largest, which is judged, and the average.

    Lesions too small to be asked for stand by themselves: theirs is told and not judged.
    """
    rows = []
    small = evaluation.vois(VoiClass.SMALL_LESION)
    judged = [voi for voi in evaluation.vois() if voi.kind is not VoiClass.SMALL_LESION]
    for of, key in ((TRUTH, "label_uncertainty"), (MC, "mc_uncertainty")):
        largest, reached = _largest(judged, key)
        asked = f"at most {percent(paper.LABEL_UNCERTAINTY, 1)}"
        met = _met(largest <= paper.LABEL_UNCERTAINTY, largest)
        rows.append(
            (f"uncertainty of {of} in any VOI of {LEAST_LESION_ML:g} mL or more", asked, reached, met)
        )
        rows.append(
            (f"uncertainty of {of} in a {VoiClass.SMALL_LESION}", NOTHING, _largest(small, key)[1], "")
        )
    return rows


def _largest(vois: Iterable[VoiResult], key: str) -> tuple[float, str]:
    """Of the known ones, and in words with their mean."""
    known = [value for voi in vois if (value := float(getattr(voi, key))) > 0]
    largest = max(known, default=math.nan)
    if not known:
        return largest, NOTHING
    return largest, f"{percent(largest, 2)}, on average {percent(sum(known) / len(known), 2)}"


def errors_table(evaluation: Evaluation, metric: Metric) -> str:
    """One metric: mean ± SD of each class and method, and the paper's own network and DVK.

    Of NRMSE also the noise of the truth's voxels, and of Monte Carlo's: what no estimate can be better than.
    """
    column = {"mean_error": 0, "nrmse": 1}.get(metric)
    heading = ["VOI", "n", *(f"{method}, %" for method in evaluation.methods)]
    heading += [] if column is None else ["paper's network, %", "its DVK, %"]
    heading += [f"noise of {of}, %" for of in (TRUTH, MC)] if metric == "nrmse" else []
    rows = []
    for kind in evaluation.kinds:
        found = summary(evaluation, kind)
        row = [str(kind), str(found.vois), *(spread(found.by_method[m][metric]) for m in evaluation.methods)]
        if column is not None:
            known = paper.ERRORS.get(kind)
            row.append(NOTHING if known is None else f"{100 * known[column]:.1f}")
            row.append(number(paper.dvk_error(kind, metric), 1))
        if metric == "nrmse":
            row += [number(_mean_of(evaluation, kind, key), 1) for key in ("label_noise", "mc_noise")]
        rows.append(row)
    return table(heading, rows)


def _mean_of(evaluation: Evaluation, kind: VoiClass, key: str) -> float:
    """Of what the VOIs of a class state; NaN where they state nothing."""
    stated = (float(getattr(voi, key)) for voi in evaluation.vois(kind))
    return Spread.of([value for value in stated if value > 0]).mean


def reductions_table(evaluation: Evaluation, method: str = CNN) -> str:
    """How much lower a network's errors are than DVK's and Monte Carlo's, beside the paper's figures."""
    columns: list[tuple[Metric, str]] = [
        (metric, other) for metric in ("mean_error", "nrmse") for other in (DVK, MC)
    ]
    heading = ["VOI"]
    for metric, other in columns:
        heading += [f"{METRIC_NAMES[metric]} below {other}", "paper"]
    rows = []
    for kind in evaluation.kinds:
        found, row = summary(evaluation, kind), [str(kind)]
        for metric, other in columns:
            asked = paper.REDUCTIONS.get(kind, {}).get((metric, other), math.nan)
            row += [percent(found.reduction(metric, method, other), 1), percent(asked, 0)]
        rows.append(row)
    noise = [percent(paper.noise_reduction(evaluation, method, other), 1) for other in (DVK, MC)]
    known = [percent(paper.NOISE_REDUCTIONS[other], 0) for other in (DVK, MC)]
    rows.append(["ensemble noise", noise[0], known[0], noise[1], known[1], "", "", "", ""])
    return table(heading, rows)


def p_values_table(evaluation: Evaluation, method: str = CNN) -> str:
    """p of two-sided paired t-tests over the VOIs of each class, as the paper has them; bold below 0.05."""
    pairs = [(MC, DVK), (method, DVK), (method, MC)]
    metrics: tuple[Metric, ...] = ("mean_error", "nrmse")
    heading = ["VOI", "pairs", *(f"{METRIC_NAMES[m]}: {b}–{a}" for m in metrics for a, b in pairs)]
    rows = []
    for kind in evaluation.kinds:
        found = summary(evaluation, kind)
        tests = [_test(found, metric, *pair) for metric in metrics for pair in pairs]
        most = max((test.pairs for test in tests if test is not None), default=0)
        rows.append([str(kind), str(most), *(p_value(test) for test in tests)])
    return (
        "A pair is a VOI. Several VOIs of one patient, as lesions and vertebrae are, share his image and are "
        "no independent samples: their p is too small.\n\n" + table(heading, rows)
    )


def drx_table(evaluation: Evaluation, method: str = CNN) -> str:
    """DR10, DR30, DR70 and DR90: mean errors of DVK, Monte Carlo and the network."""
    methods = [m for m in (DVK, MC, method) if m in evaluation.methods]
    drx = [metric for metric in METRICS if metric.startswith("dr")]
    heading = ["VOI", *(f"{metric.upper()}: {m}, %" for metric in drx for m in methods)]
    rows = []
    for kind in evaluation.kinds:
        by_method = summary(evaluation, kind).by_method
        rows.append([str(kind), *(number(by_method[m][metric].mean, 1) for metric in drx for m in methods)])
    return table(heading, rows)


def noise_table(evaluation: Evaluation) -> str:
    """Ensemble noise of each method over the spheres, or why there is none."""
    spheres = [one for patient in evaluation.patients for one in patient.noise]
    if not spheres:
        return "No patient was imaged more than once: ensemble noise is not known."
    found = noise_summary(evaluation)
    rows = [
        (method, f"{100 * noise.mean:.2f}", str(noise.count)) if noise.count else (method, NOTHING, "0")
        for method, noise in found.items()
    ]
    realisations = " and ".join(str(n) for n in sorted({one.realisations for one in spheres}))
    radii = sorted(one.radius_mm for one in spheres)
    sizes = " to ".join(dict.fromkeys(f"{radius:.0f}" for radius in (radii[0], radii[-1])))
    return (
        f"{realisations} Poisson realisations; spheres of {sizes} mm radius, the deepest that fit into "
        "healthy liver and spleen.\n\n" + table(("method", "noise, % of the mean", "spheres"), rows)
    )


def worse_section(evaluation: Evaluation, method: str = CNN) -> str:
    """The criterion, how many VOIs are better and worse, and the name of every one that is worse by more."""
    metrics: tuple[Metric, ...] = ("mean_error", "nrmse")
    counts = []
    for metric in metrics:
        n = tally(evaluation, metric, method)
        counts.append(
            f"By {METRIC_NAMES[metric]}, {method} is better than DVK or equal in {n.better} VOIs, worse "
            f"within noise in {n.worse_within_noise}, worse by more than noise in {n.worse}."
        )
    poisson = (
        "the standard deviation of the difference over Poisson realisations of the same patient (the root "
        "mean square over the VOIs of a class)"
        if poisson_known(evaluation)
        else "no patient was imaged again, so that the Poisson noise of the SPECT is taken as zero here"
    )
    criterion = (
        f"More than noise: the error exceeds DVK's by more than {SIGNIFICANT:g} standard uncertainties of "
        "the difference of the two. They combine the statistical uncertainty of the label's mean in the VOI "
        f"with Poisson noise: {poisson}."
    )
    rows = [
        (
            one.patient,
            one.voi,
            f"{one.volume_ml:.3g}",
            METRIC_NAMES[one.metric],
            number(one.error, 2),
            number(one.dvk_error, 2),
            number(one.uncertainty, 2),
        )
        for one in worse(evaluation, method)
    ]
    heading = (
        "patient", "VOI", "mL", "metric", f"{method}, %", "DVK, %", "uncertainty of the difference, %"
    )  # fmt: skip
    named = table(heading, rows) if rows else "No VOI is worse by more than noise."
    return "\n\n".join((" ".join(counts), criterion, named))


def energy_table(evaluation: Evaluation, method: str = CNN) -> str:
    """Energy rate over DVK's, Σ dose rate · density: beyond what the node flags."""
    rows = [
        ("whole body" if name == BODY else "any VOI" if name == "roi" else name, f"{low:.3f}", f"{high:.3f}")
        for name, (low, high) in energy_limits(evaluation, method).items()
    ]
    if not rows:
        return (
            "Not known: there is no such network here, DVK's dose rate is zero, or there are fewer than "
            f"{LEAST_TO_LIMIT} of each kind."
        )
    return (
        f"Energy rate (Σ dose rate · density) of {method} over that of DVK: a range that holds all that were "
        "seen, and the next one with 99 %. The node flags what lies outside: of the whole body, and of each "
        "ROI by the class that its name says, else by that of any VOI.\n\n"
        + table(("where", "lowest", "highest"), rows)
    )


def voi_table(evaluation: Evaluation) -> str:
    """Each VOI of each patient: the true mean, and each method's with its error and NRMSE."""
    heading = ["patient", "VOI", "mL", "truth, nGy/(MBq s)"]
    for method in evaluation.methods:
        heading += [f"{method}, nGy/(MBq s)", "error, %", "NRMSE, %"]
    rows = [
        [
            patient.patient,
            voi.name,
            f"{voi.volume_ml:.3g}",
            f"{voi.true_mean:.4g}",
            *_of_methods(evaluation, voi),
        ]
        for patient in evaluation.patients
        for voi in patient.vois
    ]
    left_out = [f"{p.patient}: {why}" for p in evaluation.patients for why in p.skipped]
    after = "\n\nLeft out: " + "; ".join(left_out) if left_out else ""
    return table(heading, rows) + after


def _of_methods(evaluation: Evaluation, voi: VoiResult) -> Iterable[str]:
    for method in evaluation.methods:
        found = voi.by_method.get(method)
        if found is None:
            yield from (NOTHING, NOTHING, NOTHING)
        else:
            yield from (f"{found.mean:.4g}", f"{100 * (found.ratio - 1):+.1f}", f"{100 * found.nrmse:.1f}")


# ── the model card ───────────────────────────────────────────────────────────────────────────────


def model_card(
    manifest: Manifest, evaluation: Evaluation, parameters: int, again: str, method: str = CNN
) -> str:
    """What a physicist must know before weights are approved for a camera.

    manifest: of the weights. parameters: how many numbers they are. again: the command that makes them.
    method: their name in the evaluation.
    """
    voxel = " x ".join(f"{mm:.6g}" for mm in manifest.voxel_mm)
    sections = {
        "What it is": (
            f"Weights of the architecture `{manifest.architecture}` with {parameters:,} parameters, "
            f"version {manifest.version}, {manifest.date}, made with {manifest.software}.\n\n"
            f"`sha256 {manifest.sha256}`\n\n"
            "They add to DVK's dose-rate map what it lacks because of the SPECT's resolution (Li 2022, doi "
            "10.1002/mp.15397)."
        ),
        "Intended use": (
            f"Dose-rate maps of {manifest.nuclide} from quantitative SPECT/CT, beside DVK's map and never "
            "without it, read by a qualified medical physicist. Research; not a medical device.\n\n"
            "Not for other nuclides, for cameras whose resolution lies outside of the range below, for "
            "slices thicker than 5 mm, or where a result is flagged as outside of what the evaluation saw."
        ),
        "Camera": _facts(manifest.camera),
        "Voxel size": f"{voxel} mm (z, y, x). Other grids are resampled onto it and back.",
        "Training data": _facts(manifest.training),
        "How good it is": "\n\n".join(
            (
                f"On {counted(len(evaluation.patients), 'virtual patient')} with "
                f"{counted(len(evaluation.vois(*LESIONS)), 'lesion')}, whose truth is known. What is asked "
                f"of lesions is asked of those of {LEAST_LESION_ML:g} mL or more.",
                targets_table(evaluation, method),
                errors_table(evaluation, "mean_error"),
                errors_table(evaluation, "nrmse"),
            )
        ),
        "Where it is worse than DVK": worse_section(evaluation, method),
        "Limits": (f"{_limits(manifest, evaluation)}\n\n" + energy_table(evaluation, method)),
        "How to make it again": f"```sh\n{again}\n```",
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    return f"# {manifest.name}\n\n{body}\n"


def _limits(manifest: Manifest, evaluation: Evaluation) -> str:
    trained, judged = set(manifest.training.get("families", ())), {p.family for p in evaluation.patients}
    return LIMITS + (SHARED if judged <= FAMILIES.keys() - trained else "")


def manifest_metrics(evaluation: Evaluation, method: str = CNN) -> dict[str, Any]:
    """The figures for `Manifest.metrics`, rounded to four digits.

    By class of VOIs: their number, mean error and NRMSE of DVK and of `method`, and the reductions.
    """
    of_classes: dict[str, Any] = {}
    for kind in evaluation.kinds:
        found = summary(evaluation, kind)
        figures: dict[str, Any] = {"vois": found.vois}
        metrics: tuple[Metric, ...] = ("mean_error", "nrmse")
        for metric in metrics:
            for one in (DVK, method):
                figures[f"{metric}_{one}"] = _rounded(found.by_method[one][metric].mean)
            for other in (DVK, MC):
                figures[f"{metric}_below_{other}"] = _rounded(found.reduction(metric, method, other))
        of_classes[str(kind)] = {name: value for name, value in figures.items() if value is not None}
    noise = paper.noise_reduction(evaluation, method, DVK)
    return {
        "patients": len(evaluation.patients),
        "families": sorted({patient.family for patient in evaluation.patients}),
        "vois": of_classes,
        "ensemble_noise_below_DVK": _rounded(noise),
        "worse_than_DVK_by_more_than_noise": len(worse(evaluation, method)),
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _facts(facts: Mapping[str, Any]) -> str:
    """A list of names and values; a pair of numbers is a range."""
    return "\n".join(f"- {name.replace('_', ' ')}: {_said(value)}" for name, value in facts.items())


def _said(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return f"{value[0]:g} to {value[1]:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_said(one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. What follows the first column is set to the right where all of it is a number."""
    rows = [list(row) for row in rows]
    right = [all(_is_figure(row[k]) for row in rows) for k in range(len(heading))]
    rule = ["---:" if r and k else "---" for k, r in enumerate(right)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (list(heading), rule, *rows))


def percent(part: float, digits: int) -> str:
    """A part as per cent; a dash where it is not known."""
    return f"{100 * part:.{digits}f} %" if math.isfinite(part) else NOTHING


def number(part: float, digits: int) -> str:
    """Likewise, without the sign of per cent."""
    return f"{100 * part:.{digits}f}" if math.isfinite(part) else NOTHING


def spread(of: Spread) -> str:
    """Mean ± SD in per cent."""
    if not of.count:
        return NOTHING
    return f"{100 * of.mean:.1f} ± {100 * of.sd:.1f}" if of.count > 1 else f"{100 * of.mean:.1f}"


def p_value(test: PairedTest | None) -> str:
    """As journals print it."""
    if test is None or not math.isfinite(test.p):
        return NOTHING
    text = "< 0.001" if test.p < 0.001 else f"{test.p:.3f}"
    return f"**{text}**" if test.p < SIGNIFICANT_P else text


def counted(n: int, what: str) -> str:
    """ "1 lesion", "2 lesions"."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _is_figure(text: str) -> bool:
    return text in ("", NOTHING) or any(c.isdigit() for c in text[:3])


def _test(found: Summary, metric: Metric, method: str, other: str) -> PairedTest | None:
    compared = found.comparisons[metric]
    return next((c.test for c in compared if (c.method, c.other) == (method, other)), None)


def _met(met: bool, value: float = 0.0) -> str:
    return "not measured" if math.isnan(value) else "reached" if met else "**not reached**"


def _names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _part(heading: str, text: str) -> str:
    return f"### {heading}\n\n{text}"
