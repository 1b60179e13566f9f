"""What is deployed beside the server: compose files, Kubernetes, Prometheus, Grafana.

No container engine runs here. So the files are held to their schemas, to promtool, and to what the
server really has: its settings, its metrics with their labels, its routes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from prefix_store.digest import Digest
from server.engine.ipc.messages import EngineStats
from server.generation.completion import Target
from server.metrics import Metrics
from server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = sorted(DOCKER.glob("compose*.yml"))
MANIFESTS = sorted(DOCKER.glob("kubernetes/*.yaml"))
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/foreword.json").read_text())
ALERTS = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())
OF_PROMETHEUS = {"instance", "job", "le"}
SERIES = re.compile(r"\b(?:foreword|process)_\w+")
SETTINGS = {f"FOREWORD_{name.upper()}" for name in Settings.model_fields}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is in Debian's package prometheus"
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def tool(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=DOCKER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_keep_to_the_specification(path: Path) -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    tool(*checker, path)


def test_what_compose_mounts_is_there_and_ports_are_on_loopback() -> None:
    for path in COMPOSE:
        compose = load(path)
        for service in compose["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
            assert set(service.get("environment", {})) - SETTINGS <= {
                *("TRITON_CACHE_DIR",),
                *(name for name in service.get("environment", {}) if name.startswith("GF_")),
            }
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (DOCKER / source).is_dir()
                else:
                    assert source in compose["volumes"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_keep_to_kubernetes_schemas(path: Path) -> None:
    manifest = load(path)
    if path.name == "kustomization.yaml":
        assert all((path.parent / name).is_file() for name in manifest["resources"])
    else:
        kubernetes_validate.validate(manifest, "1.33", strict=True)


@pytest.mark.parametrize("name", ["deployment.yaml", "first-key.yaml"])
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    pod = load(DOCKER / "kubernetes" / name)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    rights = container["securityContext"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # as in the Dockerfile
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert {variable["name"] for variable in container["env"]} <= SETTINGS
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    [secret] = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert secret["defaultMode"] & 0o007 == 0  # else the server takes no pepper


def test_a_pod_is_drained_before_it_is_killed_and_asked_for_what_there_is() -> None:
    pod = load(DOCKER / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    drain_s = int(environment["FOREWORD_DRAIN_TIMEOUT_S"])
    pre_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pod["terminationGracePeriodSeconds"] >= pre_stop_s + drain_s + 10
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    hang_s = Settings(_cli_parse_args=False).engine_hang_timeout_s
    patience = container["livenessProbe"]
    assert patience["periodSeconds"] * patience["failureThreshold"] > hang_s


def test_the_service_finds_the_pods_and_images_have_one_version() -> None:
    deployment = load(DOCKER / "kubernetes/deployment.yaml")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    service = load(DOCKER / "kubernetes/service.yaml")["spec"]

    assert deployment["selector"]["matchLabels"] == labels == service["selector"]
    names = {port["name"] for port in deployment["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= names
    tag = load(DOCKER / "kubernetes/kustomization.yaml")["images"][0]["newTag"]
    job = load(DOCKER / "kubernetes/first-key.yaml")["spec"]["template"]["spec"]
    assert job["containers"][0]["image"] == f"foreword:{tag}"
    assert f"image: foreword:{tag}\n" in (DOCKER / "compose.yml").read_text()


@needs_promtool
def test_promtool_takes_the_configuration_and_alerts_fire_when_they_should() -> None:
    tool("promtool", "check", "config", "--lint=all", "--lint-fatal", "prometheus/prometheus.yml")
    tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", "prometheus/alerts.yml")
    tool("promtool", "test", "rules", ROOT / "tests/docker/alerts_test.yml")


def test_every_alert_is_tested() -> None:
    tested = set(
        re.findall(r'alertname="(\w+)"', (ROOT / "tests/docker/alerts_test.yml").read_text())
    )

    assert tested == {rule["alert"] for rule in ALERTS["groups"][0]["rules"]}


@needs_promtool
def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}", "expr": re.sub(r"\$__rate_interval", "1m", expr)}
        for i, expr in enumerate(dashboard_expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    tool("promtool", "check", "rules", file)


def dashboard_expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def test_the_dashboard_is_whole_and_provisioned() -> None:
    [source] = load(DOCKER / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    [provider] = load(DOCKER / "grafana/provisioning/dashboards/foreword.yml")["providers"]
    panels = DASHBOARD["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels) >= 20
    assert all(
        panel["datasource"]["uid"] == source["uid"] for panel in panels if "datasource" in panel
    )
    assert all(panel["targets"] for panel in panels if panel["type"] != "row")
    corners = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(corners)) == len(corners)
    mounted = load(DOCKER / "compose.monitoring.yml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounted
    assert source["url"] == "http://prometheus:9090"


def served() -> dict[str, set[str]]:
    """Every series that the server has, and its labels."""
    metrics = Metrics(max_task_labels=9)
    metrics.watch_engine(EngineStats, lambda: 0)
    metrics.watch_quarantine(lambda: 0)
    metrics.watch_storage(tuple, float)
    metrics.watch_build("0", "tiny", str)
    metrics.watch_processes(os.getpid)
    metrics.completed(_Completed())  # type: ignore[arg-type]
    metrics.refused("overloaded")
    metrics.uploaded("created")
    metrics.denied("unauthenticated")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


class _Completed:
    """A request that has ended, as far as the metrics look at it."""

    target = Target("x", 1, Digest("sha256:" + "a" * 64), 3)
    outcome = "stop"
    error = None
    num_prompt_tokens = num_completion_tokens = 2
    queue_s = total_s = time_to_first_token_s = first_token_s = 0.1
    ended_s = 0.2


def test_dashboard_and_alerts_ask_for_what_the_server_has_and_miss_nothing() -> None:
    series = served()
    expressions = [*dashboard_expressions()]
    expressions += [rule["expr"] for rule in ALERTS["groups"][0]["rules"]]
    asked = {name for expr in expressions for name in SERIES.findall(expr)}

    assert asked - series.keys() == set()
    histograms = {
        name for name in series if name.endswith(("_bucket", "_sum", "_count", "_created"))
    }
    of_processes = {name for name in series if "process_" in name}
    assert series.keys() - histograms - of_processes - asked == set()
    for expr in expressions:
        labels = set(re.findall(r"(\w+)=~?\"", expr))
        for grouped in re.findall(r"\bby \(([\w, ]+)\)", expr):
            labels |= set(grouped.split(", "))
        [*names] = SERIES.findall(expr) or ["up"]
        known = set.intersection(*(series.get(name, set()) for name in names))
        assert labels - OF_PROMETHEUS <= known, expr


def test_the_labels_of_every_metric_are_in_operations() -> None:
    page = (ROOT / "docs/operations.md").read_text().partition("## Metrics")[2]
    told: dict[str, set[str]] = {}
    for names, labels in re.findall(
        r"^\| ((?:`foreword_\w+`,? ?)+) \| ((?:`\w+`,? ?)+) \|", page, re.M
    ):
        for name in re.findall(r"`(\w+)`", names):
            told[name] = set(re.findall(r"`(\w+)`", labels))

    labelled = {
        re.sub("_(total|bucket|sum|count)$", "", name): labels - {"le"}
        for name, labels in served().items()
        if labels - {"le"} and not name.endswith("_created")
    }
    assert told == labelled
