"""config.toml: the shipped file is true, and a wrong one is told plainly."""

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dicomnode.config import Config, Peer, load, parse, with_engines
from dicomnode.config.wording import FORMS
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
        ({"node": {"port": 70000}}, "[node] port: 70000 is out of range: at most 65535"),
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
        (
            {"dose": {"engines": ["dkv"]}},
            '[dose] engines: "dkv" is none of "dvk", "mc", "cnn". Did you mean "dvk"?',
        ),
        ({"dose": {"engines": []}}, "[dose] engines: needs at least 1 value, not []"),
        ({"dose": {"grid_spacing_mm": [1.0]}}, "[dose] grid_spacing_mm: has too few values: [1.0]"),
        (
            {"peers": [{"name": "PACS", "ae_title": "X", "may": "echo"}]},
            '[[peers]] "PACS" may: needs a list, such as ["echo"], not "echo"',
        ),
        (
            {"peers": [{"name": "PACS", "ae_title": "X", "may": ["echo", "stor"]}]},
            '[[peers]] "PACS" may: "stor" is none of "echo", "store", "find", "move", "get", "commit". '
            'Did you mean "store"?',
        ),
        ({"peers": [{"name": "PACS", "ae_title": "X"}, {"ae_title": "Y"}]}, "[[peers]] no. 2 lacks the"),
        ({"peers": {"name": "PACS"}}, "peers is a list of tables: write [[peers]] above each of them"),
        ({"node": 5}, "[node]: needs a table of settings, not 5"),
        ({"node": {"port": "x"}}, '[node] port: needs a whole number, not "x"'),
        ({"node": {"log_level": "info"}}, 'Did you mean "INFO"?'),
        ({"tls": {"only": "perhaps"}}, '[tls] only: needs true or false, not "perhaps"'),
        ({"tls": {"port": 2762}}, "  [tls]: port is set but certificate and key are not: name the files"),
        ({"encode": {"bits": 24}}, "[encode] bits: 24 is none of 16, 32"),
        (
            {"deliver": {"first_retry_s": 5, "max_retry_s": 1}},
            "[deliver]: max_retry_s = 1 is below first_retry_s = 5, from which pauses double: "
            "raise max_retry_s, or lower first_retry_s",
        ),
        ({"fetch": {"max_retry_s": 10}}, "[fetch]: max_retry_s = 10 is below first_retry_s = 60"),
        ({"commitment": {"ask_again_h": 72}}, "max_ask_again_h = 48 is below ask_again_h = 72"),
        (
            {"dose": {"engines": ["mc"], "timeout_s": 600}},
            "[montecarlo] time_limit_s = 1200 is too close to [dose] timeout_s = 600, at which an attempt is "
            "killed: set time_limit_s to 450 at most, or timeout_s to 1600 at least",
        ),
        (
            {"montecarlo": {"mean_uncertainty": 0.5}},
            "[montecarlo] mean_uncertainty: it is a fraction, 0.005 means 0.5 %; 0.5 would be 50%",
        ),
        ({"montecarlo": {"mean_uncertainty": 0}}, "[montecarlo] mean_uncertainty: 0 is out of range: more"),
        (
            {"dose": {"engines": ["mc"]}, "montecarlo": {"time_limit_s": float("inf")}},
            "[montecarlo] time_limit_s: needs a finite number, not inf",
        ),
        ({"montecarlo": {"seeds": 1}}, "[montecarlo] has no setting 'seeds'. Did you mean 'seed'?"),
        (
            {"dose": {"heterogeneity": "scaling"}},
            '[dose] heterogeneity: "scaling" is none of "density_scaling"',
        ),
        ({"assemble": {"quiet_s": 60, "max_wait_s": 1}}, "max_wait_s must not be shorter than quiet_s"),
        ({"notify": {"email_to": ["a@b"]}}, "smtp_host is empty"),
        (
            {
                "camera": [
                    {"name": "NM2", "match": {"StationName": "x"}, "calibrations": [{"nuclid": "Lu-177"}]}
                ]
            },
            "[[camera.calibrations]] no. 1 has no setting 'nuclid'. Did you mean 'nuclide'?",
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


WRONG_VALUES: tuple[Any, ...] = (
    5, -1, 1.5, "x", "", "x" * 500, True, [], ["x"], [5], [[1, 2, 3]], [1, 2], {}, {"x": 1}, float("nan"),
    float("inf"), date(2026, 1, 1),
)  # fmt: skip


@pytest.mark.parametrize("table", [t for t in Config.model_fields if t not in ("peers", "camera")])
def test_no_value_of_any_setting_is_answered_in_words_that_are_not_of_the_file(table: str) -> None:
    words = "input|tuple|dictionary|instance|string|parse|match|validation|class"
    foreign = re.compile(rf"\b({words})\b|: *:|[a-z]\.\d", re.IGNORECASE)
    model = Config.model_fields[table].annotation
    assert model is not None
    settings = model.model_fields if hasattr(model, "model_fields") else {}
    told = 0
    for name in settings:
        for value in WRONG_VALUES:
            try:
                parse({table: {name: value}})
            except ConfigurationError as error:
                lines = str(error).splitlines()[1:]
                assert not [line for line in lines if foreign.search(line)], lines
                told += 1
    assert told > len(settings)


def test_a_wrong_entry_of_a_list_is_one_problem() -> None:
    assert "1 problem(s)" in problem({"dose": {"engines": ["dvkk"]}})
    assert "1 problem(s)" in problem({"dose": {"grid_spacing_mm": [1.0]}})


def test_what_a_pattern_wants_is_told_in_words() -> None:
    for table, field in Config.model_fields.items():
        model: Any = Peer if table == "peers" else field.annotation
        for name, setting in getattr(model, "model_fields", {}).items():
            if any(getattr(part, "pattern", None) for part in setting.metadata):
                assert name in FORMS, f"[{table}] {name}"


def test_a_table_within_an_entry_is_told_by_its_number() -> None:
    calibrations = [{"nuclide": "Lu-177", "sensitivity_cps_per_mbq": 9.0}, {"nuclide": "Lu-177"}]
    data = {"camera": [{"name": "NM2", "match": {"StationName": "x"}, "calibrations": calibrations}]}
    assert (
        "[[camera]] \"NM2\", [[camera.calibrations]] no. 2 lacks the setting 'sensitivity_cps_per_mbq'"
        in problem(data)
    )


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
    with pytest.raises(ConfigurationError, match=r'(?s)--engine has .* "mcc" is none of "dvk", "mc"'):
        with_engines(config, ["mcc"])


def test_the_hash_follows_the_settings() -> None:
    assert parse({}).sha256 == parse({}).sha256 != parse({"dose": {"device": "cpu"}}).sha256
