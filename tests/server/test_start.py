"""`foreword serve` that cannot start, or is stopped while it does: one sentence, and no process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import transformers as T
from safetensors.torch import load_file, save_file

from server.api.http.http_server import MIN_FILES
from server.cli.app import StartError
from server.cli.start import check_writable
from tests.running_server import starting_server, wait_gone
from tests.server.fakes import make_transformers_tokenizer
from tests.server.live import wait_until
from tests.small_model import save_small_model
from tests.tiny_models import build_model


def bart(folder: Path) -> None:
    config = T.BartConfig(
        vocab_size=260, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    T.BartForConditionalGeneration(config).save_pretrained(folder)


def without_a_weight(folder: Path) -> None:
    build_model("llama", "eager").save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def diffllama(folder: Path) -> None:
    """Its config says nothing: it is seen when it runs."""
    config = T.DiffLlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    T.DiffLlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "attention", "said"),
    [
        (bart, "ref", "bart is not supported: it is an encoder-decoder"),
        (without_a_weight, "cpu", "the checkpoint lacks model.norm.weight"),
        (diffllama, "auto", "diffllama is not supported: its logits in a batch differ"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_sentence(
    save: Callable[[Path], None], attention: str, said: str, tmp_path: Path
) -> None:
    save(tmp_path / "model")
    make_transformers_tokenizer().save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "server", "--model", str(tmp_path / "model"), "--port", "0"]
    options = ["--store", str(tmp_path / "store"), "--num-threads", "1", "--attention", attention]

    run = subprocess.run(
        [*command, *options, "--dtype", "float32"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    assert run.returncode == 2, run.stderr
    [sentence] = [line for line in run.stderr.splitlines() if not line.startswith('{"event"')]
    assert sentence.startswith(f"error: {said}")
    assert "Traceback" not in run.stderr


FLAGS = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(64 << 20))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


def errors_in(log: Path) -> list[str]:
    """What a server wrote beside its log lines."""
    return [line for line in log.read_text().splitlines() if not line.startswith('{"event"')]


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGTERM], 143),
    ],
    ids=lambda value: "+".join(s.name for s in value) if isinstance(value, list) else None,
)
def test_a_signal_while_the_engine_loads_ends_both_processes(
    small_model: Path, tmp_path: Path, signals: list[signal.Signals], status: int
) -> None:
    with starting_server(small_model, tmp_path / "store", *FLAGS) as server:

        def has_engine() -> bool:
            with contextlib.suppress(OSError, ValueError):
                return server.engine_pid() > 0
            return False

        wait_until(has_engine, timeout_s=300)
        engine = server.engine_pid()
        os.kill(engine, signal.SIGSTOP)  # it never gets ready

        for number in signals:
            server.process.send_signal(number)

        assert server.process.wait(60) in {status, 128 + signals[0]}
        wait_gone(engine)
    name = signal.Signals(server.process.returncode - 128).name
    said = errors_in(tmp_path / "store.log")
    assert said == [f"error: stopped by {name} before the server was ready"]


def limit_files(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_low_a_limit_of_open_files_is_one_sentence(small_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--model", str(small_model), "--port", "0"]

    run = subprocess.run(
        [*command, "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit_files(64, 64),
    )

    assert run.returncode == 2
    [sentence] = run.stderr.splitlines()
    assert sentence.startswith(
        f"error: the limit of open files is 64, and the server needs {MIN_FILES}"
    )


def test_with_few_files_more_clients_than_these_do_no_harm(
    small_model: Path, tmp_path: Path
) -> None:
    limit, num_clients = MIN_FILES, 2 * MIN_FILES
    with starting_server(small_model, tmp_path / "store", *FLAGS) as server:
        # While it imports. The soft limit is too low, and raised when the server starts.
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, limit))
        server.wait_ready()
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with contextlib.ExitStack() as stack:
            for _ in range(num_clients):
                stack.enter_context(socket.create_connection(address, timeout=30))
            answers = [
                httpx.put(f"{server.url}/tasks/t{i}/prefix", json={"text": "Hi\n"}, timeout=60)
                for i in range(3)
            ]
            num_files = len(os.listdir(f"/proc/{server.process.pid}/fd"))

    assert [answer.status_code for answer in answers] == [201] * 3
    assert num_files < limit
    log = (tmp_path / "store.log").read_text()
    assert "out of system resource" not in log
    assert "Traceback" not in log


def test_a_store_that_cannot_be_written_is_one_sentence() -> None:
    with pytest.raises(StartError, match=r"cannot use the store /proc: .*; let this user write"):
        check_writable(Path("/proc"))  # exists, and no file can be made there
