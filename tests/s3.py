"""An S3-compatible server of the tests' own: moto's, in a process, on a loopback port."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config
from s3fs import S3FileSystem

from tests.running_server import free_port

BUCKET = "prefixes"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3:
    """The server and one bucket in it. What is in it is lost when it stops."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when the bucket is there."""
        command = [sys.executable, "-m", "moto.server", "-p", str(self.port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, **quiet)
        deadline_s = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline_s, "the S3 server did not start"
                time.sleep(0.05)
        self.client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    @property
    def client(self) -> Any:
        """boto3's, past everything that is ours."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(retries={"total_max_attempts": 3}),
        )


@contextmanager
def running_s3() -> Iterator[S3]:
    """As the environment tells libraries from now on."""
    server = S3()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.url}).items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # those of another server, which has stopped
        try:
            yield server
        finally:
            server.stop()
