"""What operators import and read (alert rules, dashboard, metrics' table, runbooks) is what the daemon exports, and whole."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from tests.support.bus_kit import BusKit
from tests.support.monitored import Scraped, monitored

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"
SCRAPE: Final = ROOT / "deploy" / "prometheus" / "scrape.yml"
DASHBOARD: Final = json.loads((ROOT / "deploy" / "grafana" / "clawbus.json").read_text(encoding="utf-8"))
EVERYBODYS: Final = {"instance", "job", "le"}  # Prometheus's own labels
PROMTOOL: Final = shutil.which("promtool")
NEEDS_PROMTOOL: Final = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Debian's package prometheus; `.ci/promtool` fetches it")  # fmt: skip


@pytest.fixture(scope="module")
async def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scraped, dict[str, set[str]]]:
    """A scrape of a bus that has worked, and each metric's labels."""
    kit = BusKit(tmp_path_factory.mktemp("exported") / "data")
    async with kit.running() as bus, monitored(kit) as watched:
        await kit.send()
        await kit.started()
        scraped = await watched.scrape()
        labels = {
            name: set(instrument._labelnames)
            for instrument in vars(bus.telemetry.metrics).values()
            if isinstance(instrument, Counter | Gauge | Histogram)
            for name in [instrument._name + ("_total" if isinstance(instrument, Counter) else "")]
        }
        labels |= {f"clawbus_{one.name}": set(one.labels) for one in watched.monitoring.exporter._bus._gauges}
    labels["clawbus_build_info"] = {"version", "python", "runtime"}
    return scraped, labels | {name: set() for name in scraped.names if name.startswith("process_")}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str, str]]:
    """(panel, expression, legend) of everything that the dashboard asks."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], note["expr"], ""


def metrics_in(expression: str) -> set[str]:
    names = set(re.findall(r"\b(?:clawbus|process)_[a-z_]+\b(?!\s*[\"'])", re.sub(r'"[^"]*"', "", expression)))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def labels_in(expression: str) -> set[str]:
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    selected = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!=|=|!~)\s*\"", expression)
    return {name.strip() for group in grouped for name in group.split(",")} | set(selected)


@pytest.mark.anyio
async def test_the_table_of_metrics_is_what_is_exported(exported: tuple[Scraped, dict[str, set[str]]]) -> None:
    scraped, labels = exported
    part = PAGE[PAGE.index("## Measure") : PAGE.index("## Traces")]
    listed = re.findall(r"`(clawbus_\w+)(?:\{([\w,]+)\})?`", part)
    told = {name: {label for label in text.split(",") if label} for name, text in listed}
    assert len(told) == len(listed)
    ours = {name for name in scraped.names if name.startswith("clawbus_")}
    assert told.keys() == ours
    assert told == {name: labels[name] for name in ours}
    assert set(re.findall(r"`(process_\w+)`", part)) <= scraped.names


@pytest.mark.anyio
async def test_alerts_and_dashboard_name_what_is_exported(exported: tuple[Scraped, dict[str, set[str]]]) -> None:
    scraped, labels = exported
    asked = [(rule["alert"], rule["expr"], "") for rule in rules()] + list(queries())
    assert len(asked) > 60, "the search for queries has gone blind"
    for where, expression, legend in asked:
        names = metrics_in(expression)
        assert names or "up{" in expression, where
        assert names <= scraped.names, f"{where}: {names - scraped.names}"
        known = EVERYBODYS.union(*(labels[name] for name in names))
        assert labels_in(expression) <= known, f"{where}: {labels_in(expression) - known}"
        assert set(re.findall(r"{{\s*(\w+)\s*}}", legend)) <= known, f"{where}: {legend}"


def test_every_alert_has_a_runbook_and_no_runbook_lacks_its_alert() -> None:
    part = PAGE[PAGE.index("## Alerts") :]
    told = re.findall(r"^### (\w+)$", part, re.MULTILINE)
    assert told == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_every_anchor_that_the_page_names_is_a_heading() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}  # fmt: skip
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


def test_the_scrape_file_has_the_form_of_scrape_config_files_and_of_prometheus_yml() -> None:
    whole = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
    assert list(whole) == ["scrape_configs"]
    assert [job["job_name"] for job in whole["scrape_configs"]] == ["clawbus"]


@pytest.mark.anyio
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_no_instrument_has_a_series_of_when_it_was_made(tmp_path: Path, accept: str) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running(), monitored(kit) as watched:
        await kit.send()
        body, _ = await watched.monitoring.exporter.render(accept)
    assert b"clawbus_messages_accepted_total{" in body
    assert b"_created" not in body


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert DASHBOARD["uid"] == "clawbus"
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert "$instance" in target["expr"], panel["title"]


def promtool(*arguments: str, text: str | None = None) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, input=text, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@NEEDS_PROMTOOL
def test_promtool_takes_rules_and_scrape_job(tmp_path: Path) -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(ALERTS))
    config = tmp_path / "prometheus.yml"
    # `scrape_config_files` is newer than Debian's Prometheus; the file has the form of a whole configuration, too.
    jobs = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump({**jobs, "rule_files": [str(ALERTS)]}), encoding="utf-8")
    promtool("check", "config", str(config))


@NEEDS_PROMTOOL
def test_promtool_takes_the_dashboard_s_queries(tmp_path: Path) -> None:
    plain = [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for _, expr, _ in queries()]
    records = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(plain)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}), encoding="utf-8")
    promtool("check", "rules", str(file))


@NEEDS_PROMTOOL
@pytest.mark.anyio
async def test_promtool_takes_a_scrape(exported: tuple[Scraped, dict[str, set[str]]]) -> None:
    scraped, _ = exported
    promtool("check", "metrics", text=scraped.text)


QUIET: Final = "0x30"
FIRES: Final = (
    ("ClawbusDown", {'up{job="clawbus",instance="h"}': "0x30"}),
    ("ClawbusNotReady", {'clawbus_ready{instance="h"}': "0x30"}),
    ("ClawbusDegraded", {'clawbus_degraded{what="runtime",instance="h"}': "1x30"}),
    ("ClawbusDeadLetters", {'clawbus_dead_letters{agent="a",instance="h"}': "2x30"}),
    ("ClawbusMessagesWait", {'clawbus_messages_oldest_waiting_seconds{agent="a",instance="h"}': "0+60x30"}),
    (
        "ClawbusDeliveryFails",
        {
            'clawbus_delivery_failures_total{channel="c",code="X",instance="h"}': "0+6x30",
            'clawbus_delivery_failures_total{channel="c",code="Y",instance="h"}': "0+3x30",
            'clawbus_delivery_duration_seconds_count{channel="c",instance="h"}': "0+10x30",
        },
    ),
    (
        "ClawbusSpawnsFail",
        {'clawbus_container_spawns_total{agent="a",outcome="IMAGE_UNUSABLE",instance="h"}': "0+1x30"},
    ),
    ("ClawbusContainersStuck", {'clawbus_container_exits_total{agent="a",reason="ceiling",instance="h"}': "0+1x30"}),
    ("ClawbusNoRoom", {'clawbus_sessions_waiting_for_container{instance="h"}': "1x30"}),
    ("ClawbusSweepLate", {'clawbus_sweep_last_completed_timestamp_seconds{instance="h"}': "60x30"}),
    (
        "ClawbusDeployFailed",
        {
            'clawbus_deploy_state{state="rolled_back",instance="h"}': "1x30",
            'clawbus_deploy_ended_timestamp_seconds{instance="h"}': "60x30",
        },
    ),
    ("ClawbusDeployUnhealthy", {'clawbus_deploy_state{state="unhealthy",instance="h"}': "1x30"}),
    ("ClawbusTracesLost", {'clawbus_trace_spans_total{outcome="failed",instance="h"}': "0+1x40"}),
)
SILENT: Final = {
    'up{job="clawbus",instance="h"}': "1x30",
    'clawbus_ready{instance="h"}': "1x30",
    'clawbus_degraded{what="runtime",instance="h"}': QUIET,
    'clawbus_dead_letters{agent="a",instance="h"}': QUIET,
    'clawbus_messages_oldest_waiting_seconds{agent="a",instance="h"}': "30x30",
    'clawbus_container_spawns_total{agent="a",outcome="started",instance="h"}': "0+9x30",
    'clawbus_container_exits_total{agent="a",reason="idle",instance="h"}': "0+9x30",
    'clawbus_delivery_failures_total{channel="c",code="X",instance="h"}': "0+1x30",
    'clawbus_delivery_duration_seconds_count{channel="c",instance="h"}': "0+10x30",
    'clawbus_sessions_waiting_for_container{instance="h"}': "1x20 0 1x8",
    'clawbus_trace_spans_total{outcome="exported",instance="h"}': "0+9x30",
    'process_start_time_seconds{job="clawbus",instance="h"}': "5x30",
    'clawbus_deploy_state{state="passed",instance="h"}': "1x30",
    'clawbus_deploy_state{state="rolled_back",instance="h"}': "0x30",
    'clawbus_deploy_ended_timestamp_seconds{instance="h"}': "60x30",
}


def fired(tmp_path: Path, series: dict[str, str], names: list[str], *, fires: bool) -> str:
    """Whether the named alerts fire after 30 minutes of these series, as promtool evaluates the rules."""
    given = [{"series": name, "values": values} for name, values in series.items()]
    expression = f'count(ALERTS{{alertname=~"{"|".join(names)}",alertstate="firing"}})'
    wanted = [{"value": 1, "labels": "{}"}] if fires else []
    file = tmp_path / "test.yml"
    test = {
        "interval": "1m",
        "input_series": given,
        "promql_expr_test": [{"expr": expression, "eval_time": "30m", "exp_samples": wanted}],
    }
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}), encoding="utf-8")
    return promtool("test", "rules", str(file))


@NEEDS_PROMTOOL
@pytest.mark.parametrize(("alert", "series"), FIRES, ids=[name for name, _ in FIRES])
def test_an_alert_fires_on_its_trouble(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    fired(tmp_path, {'up{job="clawbus",instance="h"}': "1x30", **series}, [alert], fires=True)


@NEEDS_PROMTOOL
def test_no_alert_fires_on_a_quiet_day(tmp_path: Path) -> None:
    fired(tmp_path, SILENT, [rule["alert"] for rule in rules() if rule["alert"] != "ClawbusSweepLate"], fires=False)
