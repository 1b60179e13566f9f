"""A server is asked before training what would refuse the result, and which base model it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foreword_client import (
    APIStatusError,
    AuthenticationError,
    Client,
    NoServerError,
    PermissionDeniedError,
    UnknownTaskError,
)
from foreword_tuner import base as bases
from foreword_tuner import target
from foreword_tuner.errors import TunerError
from foreword_tuner.fingerprint import fingerprint
from foreword_tuner.settings import DType
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import Grant, KeyStore
from server.default_model import default_folder
from server.engine.model import fingerprint as servers
from tests.clients.tuner.tiny_base import save_base
from tests.server.conftest import (
    app,
    audit,
    engine,
    keys,
    live,
    registry,
    settings,
    store,
    stored,
    tokenizer,
)
from tests.server.fakes import INFO
from tests.server.live import LiveServer

__all__ = [
    "app", "audit", "engine", "keys", "live",
    "registry", "settings", "store", "stored", "tokenizer",
]  # fmt: skip

MakeKey = Callable[..., str]
DEFINITION = {"template": "{prompt}\n", "chat": False, "defaults": {"temperature": 0.0}}


@pytest.fixture
def make_key(keys: KeyStore) -> MakeKey:
    """Make a key. From the first one on, the server asks for keys."""
    return lambda *scopes, **grant: keys.create(Grant(name="test", scopes=scopes, **grant))[1]


def test_a_server_that_takes_the_push_says_what_it_runs(live: LiveServer, audit: AuditLog) -> None:
    found = target.of_push("new", live.url, None)

    assert found.info is not None
    assert (found.info.fingerprint, found.profile) == (INFO.fingerprint, None)
    with Client(live.url) as client:
        assert client.tasks() == []
    assert audit.entries() == []


@pytest.mark.parametrize(("scopes", "said"), [(("read",), "write"), (("read", "write"), "promote")])
def test_a_key_that_may_not_push_is_refused(
    live: LiveServer, make_key: MakeKey, scopes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(PermissionDeniedError, match=said):
        target.of_push("new", live.url, make_key(*scopes))


def test_a_key_for_other_tasks_is_refused(live: LiveServer, make_key: MakeKey) -> None:
    key = make_key("write", "promote", tasks=("mine-*",))

    with pytest.raises(UnknownTaskError):
        target.of_push("yours", live.url, key)
    assert target.of_push("mine-1", live.url, key).info is None


def test_a_wrong_key_and_none_are_refused(live: LiveServer, make_key: MakeKey) -> None:
    make_key("admin")

    for key in (None, "fwd_" + "x" * 43):
        with pytest.raises(AuthenticationError):
            target.of_push("new", live.url, key)


def test_a_name_that_no_task_can_have_is_refused(live: LiveServer) -> None:
    with pytest.raises(APIStatusError) as refused:
        target.of_push("Bad name", live.url, None)

    assert refused.value.code == "invalid_name"


def test_a_server_that_is_not_there_is_refused() -> None:
    with pytest.raises(NoServerError):
        target.of_push("new", "http://127.0.0.1:1", None)


def test_a_definition_is_compared_with_the_tasks(live: LiveServer) -> None:
    with Client(live.url) as client:
        client.push("old", text="Sort it.", template="Q: {prompt}", defaults={"max_tokens": 3})

    found = target.of_push("old", live.url, None)

    assert found.differences(DEFINITION) == [
        "max_tokens 3 becomes unset",
        "temperature unset becomes 0.0",
        r"template 'Q: {prompt}' becomes '{prompt}\n'",
    ]
    same = {"template": "Q: {prompt}", "chat": False, "defaults": {"max_tokens": 3}}
    assert found.differences(same) == []
    assert target.of_push("new", live.url, None).differences(DEFINITION) == []


def test_a_prefix_longer_than_the_server_takes_is_refused(live: LiveServer) -> None:
    found = target.of_push("new", live.url, None)
    assert found.info is not None
    limit = found.info.limits.max_prefix_tokens or 0

    found.check_length(limit)
    with pytest.raises(TunerError, match=f"at most {limit}"):
        found.check_length(limit + 1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fingerprint_is_the_servers(tmp_path: Path, family: str, dtype: DType) -> None:
    save_base(tmp_path / "base", family)

    loaded = bases.load(str(tmp_path / "base"), dtype)

    exact = bases.load(str(tmp_path / "base"), "float32")
    assert fingerprint(loaded.model) == servers.fingerprint(exact.model)


def test_another_base_model_is_refused(live: LiveServer) -> None:
    found = target.of_push("new", live.url, None)

    found.check_base("mine", INFO.fingerprint)
    with pytest.raises(TunerError, match=r"the base model mine is not the one .* tiny: their weig"):
        found.check_base("mine", "sha256:" + "0" * 64)


# --- the base model ---


def test_the_base_model_is_the_servers(
    live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = target.of_push("new", live.url, None)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(TunerError, match=r"the folder tiny, and tells no path: .* --base"):
        target.base_of("", found, None)
    save_base(tmp_path / "tiny")
    assert target.base_of("", found, None) == "tiny"
    monkeypatch.setenv("FOREWORD_URL", live.url)
    assert target.base_of("", None, None) == "tiny"
    assert target.base_of("other/model", found, None) == "other/model"
    with pytest.raises(TunerError, match="there is no folder"):
        target.base_of("./none", found, None)


def test_a_key_that_may_not_read_the_base_model_needs_it_named(
    live: LiveServer, make_key: MakeKey
) -> None:
    found = target.of_push("new", live.url, make_key("write", "promote"))

    with pytest.raises(TunerError, match="pass --base"):
        target.base_of("", found, None)
    assert target.base_of("mine", found, None) == "mine"


def test_the_default_model_is_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    folder = default_folder(tmp_path)
    folder.mkdir()

    assert target.base_of("default", None, None) == str(folder)


def test_the_default_model_needs_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_DEFAULT_MODULE", "no_server.default_model")

    with pytest.raises(TunerError, match="not installed here"):
        target.default_model()
