from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.default_model import ensure_default_model
from server.settings import Settings
from tests.running_server import RunningServer, SharedServers
from tests.small_model import save_small_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real default model, fetched once."""
    return ensure_default_model(Settings(_cli_parse_args=False).cache)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what does not depend on what the model says."""
    return save_small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def small_server(small_model: Path, shared_servers: SharedServers) -> RunningServer:
    flags = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(256 << 20))
    return shared_servers.get(small_model, *flags)


@pytest.fixture(scope="session")
def short_smollm2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real weights and the real tokenizer for a third of the work: SmolLM2's first layers."""
    folder = tmp_path_factory.mktemp("short") / "model"
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, num_hidden_layers=6)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short_server(short_smollm2: Path, shared_servers: SharedServers) -> RunningServer:
    return shared_servers.get(short_smollm2, "--dtype", "float32", "--num-threads", "1")
