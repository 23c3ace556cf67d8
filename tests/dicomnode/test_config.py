"""config.toml: the shipped file is true, and a wrong one is told plainly."""

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dicomnode.config import Config, load, parse, with_engines
from dicomnode.errors import ConfigurationError

SHIPPED = Path(__file__).parents[2] / "config.toml"
# Settings that are lists of tables, or off by default, stand in the file as comments.
COMMENTED = {
    "camera", "dose.grid_spacing_mm", "dose.memory_limit_gb",
    "cluster.ca", "cluster.certificate", "cluster.key",
    "tls.port", "tls.certificate", "tls.key", "tls.ca", "tls.crl",
    "audit.file", "audit.syslog_port", "audit.ca", "audit.certificate", "audit.key",
}  # fmt: skip


def problem(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(data)
    return str(caught.value)


def test_the_shipped_file_is_valid() -> None:
    assert load(SHIPPED).node.ae_title == "DICOMNODE"


def test_the_shipped_file_shows_every_setting_with_its_default() -> None:
    shown = tomllib.loads(SHIPPED.read_text())
    defaults = Config().model_dump(mode="json")
    for table, settings in defaults.items():
        if table in ("peers", "camera"):
            continue
        assert set(shown[table]) == set(settings) - {
            k.partition(".")[2] for k in COMMENTED if k.startswith(table)
        }
        for name, value in shown[table].items():
            if (table, name) != ("deliver", "to"):  # the example's own PACS
                assert value == settings[name], f"[{table}] {name}"


def test_the_commented_camera_is_valid_and_shows_every_setting() -> None:
    text = SHIPPED.read_text()
    block = text[text.index("# [[camera]]\n") : text.index("[density]")]
    uncommented = "\n".join(
        line.removeprefix("# ") for line in block.splitlines() if re.match(r"# [\[a-z]", line)
    )
    camera = parse(tomllib.loads(uncommented)).camera[0]
    assert camera.calibrations[0].valid_from == date(2026, 1, 1)
    for kind in (camera, camera.calibrations[0]):
        for name in kind.__dataclass_fields__:
            assert re.search(rf"^{name} = |^\[\[camera\.{name}\]\]", uncommented, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted(COMMENTED - {"camera"}))
def test_a_setting_that_is_off_stands_in_the_file_as_a_comment(name: str) -> None:
    assert re.search(rf"^# {name.partition('.')[2]} = ", SHIPPED.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"receive": {"max_pud": 1}}, "[receive] has no setting 'max_pud'. Did you mean 'max_pdu'?"),
        ({"receive": {"prot": 1}}, "[receive] has no setting 'prot'. Did you mean 'port' of [node]?"),
        ({"rceive": {}}, "there is no table [rceive]. Did you mean [receive]?"),
        ({"node": {"port": 70000}}, "[node] port: input should be less than or equal to 65535, not 70000"),
        ({"node": {"ae_title": "SEVENTEEN_LETTERS"}}, "[node] ae_title"),
        ({"peers": [{"name": "PACS", "ae_tilte": "X"}]}, "[[peers]] \"PACS\" has no setting 'ae_tilte'"),
        ({"peers": [{"ae_title": "X"}]}, "[[peers]] lacks the setting 'name'"),
        (
            {"peers": [{"name": "a", "ae_title": "X"}, {"name": "b", "ae_title": "X"}]},
            "two [[peers]] have the ae_title 'X'",
        ),
        (
            {"peers": [{"name": "PACS", "ae_title": "X"}], "deliver": {"to": ["PASC"]}},
            "[deliver] to names 'PASC', which is no peer. Did you mean 'PACS'?",
        ),
        ({"peers": [{"name": "PACS", "ae_title": "X"}], "deliver": {"to": ["PACS"]}}, "lacks host or port"),
        ({"density": {"curve": [[0, 1], [-1, 2]]}}, "[density] curve: the density curve's CT numbers do not"),
        ({"dose": {"engines": ["dkv"]}}, "[dose] engines"),
        (
            {"dose": {"engines": ["mc"], "timeout_s": 600}},
            "[montecarlo] time_limit_s = 1200 is too close to [dose] timeout_s = 600, at which an attempt is "
            "killed: set time_limit_s to 450 at most, or timeout_s to 1600 at least",
        ),
        (
            {"montecarlo": {"mean_uncertainty": 0.5}},
            "[montecarlo] mean_uncertainty: it is a fraction, 0.005 means 0.5 %; 0.5 would be 50%",
        ),
        ({"montecarlo": {"mean_uncertainty": 0}}, "[montecarlo] mean_uncertainty: input should be greater"),
        (
            {"dose": {"engines": ["mc"]}, "montecarlo": {"time_limit_s": float("inf")}},
            "[montecarlo] time_limit_s: input should be a finite number",
        ),
        ({"montecarlo": {"seeds": 1}}, "[montecarlo] has no setting 'seeds'. Did you mean 'seed'?"),
        ({"dose": {"heterogeneity": "scaling"}}, "[dose] heterogeneity: input should be 'density_scaling'"),
        ({"assemble": {"quiet_s": 60, "max_wait_s": 1}}, "max_wait_s must not be shorter than quiet_s"),
        ({"notify": {"email_to": ["a@b"]}}, "smtp_host is empty"),
        (
            {
                "camera": [
                    {"name": "NM2", "match": {"StationName": "x"}, "calibrations": [{"nuclid": "Lu-177"}]}
                ]
            },
            "[[camera]] \"NM2\" has no setting 'nuclid'. Did you mean 'nuclide'?",
        ),
        (
            {
                "camera": [
                    {
                        "name": "NM2",
                        "match": {"StationName": "x"},
                        "calibrations": [{"nuclide": "Lu-176", "sensitivity_cps_per_mbq": 9.0}],
                    }
                ]
            },
            "there is no dose kernel for the nuclide 'Lu-176'",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(data: dict[str, Any], text: str) -> None:
    assert text in problem(data)


def test_every_problem_is_told_at_once() -> None:
    assert "2 problem(s)" in problem({"node": {"port": 0}, "receive": {"max_pdu": 1}})


def test_a_missing_file_and_broken_toml_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*none\.toml.*--config"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[node\n")
    with pytest.raises(ConfigurationError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load(broken)


def test_the_end_of_a_monte_carlo_matters_only_where_one_runs() -> None:
    assert parse({"dose": {"timeout_s": 600}}).montecarlo.time_limit_s == 1200
    both = {"dose": {"engines": ["dvk", "mc"], "timeout_s": 1600}}
    assert parse(both).dose.engines == ("dvk", "mc")


def test_engines_can_be_replaced_for_one_computation() -> None:
    config = parse({"dose": {"engines": ["dvk"]}, "montecarlo": {"seed": 7}})
    changed = with_engines(config, ["mc"])
    assert (changed.dose.engines, changed.montecarlo.seed) == (("mc",), 7)
    assert changed.sha256 != config.sha256
    with pytest.raises(ConfigurationError, match=r"(?s)--engine has .* 'dvk', 'mc' or 'cnn', not 'mcc'"):
        with_engines(config, ["mcc"])


def test_the_hash_follows_the_settings() -> None:
    assert parse({}).sha256 == parse({}).sha256 != parse({"dose": {"device": "cpu"}}).sha256
