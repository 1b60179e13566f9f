from __future__ import annotations

import pytest

from foreword_client import Client, NoServerError, SetupError
from foreword_client._wire import Target


def test_the_url_is_given_or_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(Target.of(None, None)) == "http://127.0.0.1:8000"
    monkeypatch.setenv("FOREWORD_URL", "gpu-box:9000/llm/")

    assert str(Target.of(None, None)) == "http://gpu-box:9000/llm"
    assert str(Target.of("https://me:secret@h", None)) == "https://h"
    for bad in ("ftp://h", "http://", "http://h:port", "http://[::1"):
        with pytest.raises(SetupError):
            Target.of(bad, None)


def test_no_proxy_stands_between_us_and_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for here in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:1"):
        assert Target.of(here, None).is_loopback
    assert not Target.of("http://10.0.0.1", None).is_loopback
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")

    with Client("http://127.0.0.1:1", max_retries=0) as client, pytest.raises(NoServerError) as no:
        client.info()

    assert "refused" in str(no.value)
