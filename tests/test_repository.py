"""What the repository says about itself is true: docs, image, change log, links, settings."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from prefix_store.errors import PrefixStoreError
from server.demo.tasks import DEMO_TASKS
from server.engine.ipc.messages import EngineStats
from server.errors import ServerError
from server.metrics import Metrics
from server.settings import Settings
from tests.checkout import ROOT, files, read


def error_codes(cls: type[PrefixStoreError] | type[ServerError]) -> set[str]:
    return {cls.code}.union(*(error_codes(sub) for sub in cls.__subclasses__()))


def test_every_setting_is_described_in_operations() -> None:
    rows = dict(
        re.findall(r"^\| `FOREWORD_(\w+)` \|.*\| (.*) \|$", read("docs/operations.md"), re.M)
    )

    assert rows == {
        name.upper(): field.description for name, field in Settings.model_fields.items()
    }


def test_every_metric_is_described_in_operations() -> None:
    metrics = Metrics(max_task_labels=1)
    metrics.watch_engine(EngineStats, lambda: 0)
    metrics.watch_build("0", "tiny", str)
    families = text_string_to_metric_families(metrics.render().decode())
    names = {family.name for family in families if not family.name.endswith("_created")}

    listed = re.findall(r"^\| `(foreword_\w+)` \|", read("docs/operations.md"), re.M)
    assert names <= set(listed)


def test_every_error_code_is_listed_in_the_http_api() -> None:
    listed = set(re.findall(r"`([a-z_]+)`", read("docs/http-api.md").partition("## Errors")[2]))

    assert error_codes(PrefixStoreError) | error_codes(ServerError) <= listed


def test_every_file_has_its_line_in_the_architecture() -> None:
    described = read("docs/architecture.md")
    modules = [*ROOT.glob("server/**/*.py"), *ROOT.glob("prefix_store/**/*.py")]

    missing = [
        str(path.relative_to(ROOT))
        for path in modules
        if path.name != "__init__.py"
        and path.parent.name != "versions"  # of the schema: one line for all of them
        and not re.search(rf"`(\w+/)?{path.name}`", described)
    ]
    assert missing == []


def test_no_file_names_the_machine_it_was_written_on() -> None:
    paths = ["/" + "work/", "/" + "root/", "/tmp/" + "w/"]

    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in files()
        for word in paths
        if word in path.read_text("utf-8", errors="replace")
    ]
    assert found == []


def test_the_change_log_and_the_compose_file_know_the_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]

    assert re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", read("CHANGELOG.md"), re.M
    )
    assert f"image: foreword:{version}\n" in read("docker/compose.yml")


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = read("constraints.txt").splitlines()
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}

    assert [pin for pin in pins if not re.fullmatch(r"[\w.\-]+==[\w.]+", pin)] == []
    names = {re.split(r"[<>=~\[]", need)[0].lower().replace("_", "-") for need in wanted}
    assert names - {"foreword-client"} <= pinned


def test_no_package_hides_another() -> None:
    roots = ("docker", "tests", "clients")

    assert [path for root in roots for path in ROOT.glob(f"{root}/__init__.py")] == []
    assert list(ROOT.glob("tests/**/__init__.py")) == []


def test_the_image_runs_unprivileged_and_gets_its_signals() -> None:
    dockerfile = read("Dockerfile")
    stages = re.findall(r"^FROM (\S+)", dockerfile, re.M)

    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", stage) for stage in stages)
    assert dockerfile.index("\nUSER 10001\n") > dockerfile.rindex("\nFROM ")
    assert '\nENTRYPOINT ["foreword", "serve"]\n' in dockerfile  # a shell would swallow SIGTERM
    assert re.search(r'^HEALTHCHECK .*\\\n +CMD \["python"', dockerfile, re.M)


def test_the_console_is_in_the_wheel_and_in_the_image() -> None:
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    install = read("Dockerfile").index("pip install --constraint constraints.txt '.[")

    # See server/api/http/assets.py.
    assert wheel["force-include"] == {"clients/console": "server/console"}
    assert read("Dockerfile").index("COPY clients/console clients/console") < install
    assert "!clients/console" in read(".dockerignore").splitlines()


def test_the_container_has_no_more_rights_than_it_needs() -> None:
    server = yaml.safe_load(read("docker/compose.yml"))["services"]["server"]
    drain_timeout_s = int(server["environment"]["FOREWORD_DRAIN_TIMEOUT_S"])

    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert int(server["stop_grace_period"].removesuffix("s")) >= drain_timeout_s + 10
    known = {f"FOREWORD_{name.upper()}" for name in Settings.model_fields}
    in_image = set(re.findall(r"^ +(FOREWORD_\w+)=", read("Dockerfile"), re.M))
    assert in_image | server["environment"].keys() <= known


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_whether_the_server_is_ready(status: int, exit_code: int) -> None:
    with answering("/readyz", status) as port:
        assert check_health(port) == exit_code


def test_the_health_check_fails_where_nobody_listens() -> None:
    with answering("/readyz", 200) as port:
        pass

    assert check_health(port) == 1


@contextmanager
def answering(path: str, status: int) -> Iterator[int]:
    """A server on loopback that knows one path; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not into the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check_health(port: int) -> int:
    command = [sys.executable, "-I", str(ROOT / "docker/healthcheck.py")]
    return subprocess.run(command, env={"FOREWORD_PORT": str(port)}, timeout=30).returncode


def test_demo_tasks_are_whole_and_the_readme_uses_them() -> None:
    names = {task.name for task in DEMO_TASKS}

    assert len(names) == len(DEMO_TASKS)
    for task in DEMO_TASKS:
        made_of = [task.text, task.messages, task.folder]
        assert sum(part is not None for part in made_of) == 1
        assert task.profile.chat == (task.messages is not None)
        assert task.profile.template is None or "{prompt}" in task.profile.template
    own = set(re.findall(r"/tasks/(\w+)/prefix", read("README.md")))
    assert set(re.findall(r"generate\?task=(\w+)", read("README.md"))) <= names | own


def test_tuned_demo_tasks_are_small_and_say_where_they_come_from() -> None:
    folders = [task.folder for task in DEMO_TASKS if task.folder is not None]

    assert len(folders) == 3
    for folder in folders:
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        assert files.keys() == {
            "adapter_config.json", "adapter_model.safetensors", "evaluation.json", "golden.jsonl"
        }  # fmt: skip
        assert sum(files.values()) < 2_000_000
        assert f"`{folder.name}`" in read("server/demo/tuned/README.md")
