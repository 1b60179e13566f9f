"""The engine process: socket -> inbox -> step loop -> socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import msgspec
import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from prefix_store import artifact
from prefix_store.blobs.blobs import BlobStore
from prefix_store.blobs.cached import open_blobs
from prefix_store.digest import Digest
from server import logs
from server.engine.assembly import Assembly, assemble, make_runner
from server.engine.grammar import Vocabulary
from server.engine.ipc import messages as m
from server.engine.loop.grammars import Grammars
from server.engine.loop.loop import ConnectionClosed, Inbox, StepLoop
from server.engine.loop.prefix_compiler import PrefixCompiler
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.residency import Residency
from server.engine.model.families import UnsupportedModel, first_line
from server.engine.native.build import NativeUnavailable
from server.engine.native.layers import NotLlamaLike
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.scheduler import Scheduler
from server.engine.sizing import default_extra_tokens

logger = logging.getLogger(__name__)

_FOR_THE_USER = (UnsupportedModel, NotLlamaLike, NativeUnavailable, OSError, ValueError)
"""Errors of the model or the settings. Their message says what to change, without a traceback."""


class Connection:
    """Frames to and from the API process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")

    def send(self, message: m.IpcMessage) -> None:
        """Send a message. If the API process is gone, only log it: `receive` then ends the loop."""
        try:
            self._sock.sendall(m.frame(message))
        except OSError:
            logger.warning("the API process has ended")

    def receive(self) -> bytes | None:
        """Return the body of the next frame, or None once the API process is gone."""
        header = self._read(m.HEADER.size)
        return None if header is None else self._read(*m.HEADER.unpack(header))

    def _read(self, num_bytes: int) -> bytes | None:
        try:
            data = self._file.read(num_bytes)
        except OSError:  # reset: the API process was killed before it had read all data
            return None
        return data if len(data) == num_bytes else None


def serve(fd: int) -> None:
    """Serve requests until drained, or until the API process is gone. `fd`: a connected socket."""
    logs.configure("warning")
    disable_progress_bar()
    set_verbosity_error()  # problems of a checkpoint are reported by our own loader, in one line
    connection = Connection(socket.socket(fileno=fd))
    body = connection.receive()
    if body is None:
        return
    config = msgspec.msgpack.decode(body, type=m.EngineConfig)
    inbox: Inbox = Inbox()
    try:
        loop, info = build(config, inbox, connection)
        loop.check()
    except _FOR_THE_USER as exc:
        connection.send(m.Failed(0, "engine_start_failed", first_line(exc)))
        return
    except Exception as exc:
        logger.exception("the engine cannot start")
        connection.send(m.Failed(0, "engine_start_failed", f"{type(exc).__name__}: {exc}"))
        return
    connection.send(m.Ready(info))
    Thread(target=_listen, args=(connection, inbox), name="inbox", daemon=True).start()
    try:
        loop.run()
    except Exception:
        logger.exception("the engine exits and will be restarted")
        os._exit(1)  # a regular exit could hang: threads and libraries may wait for a lost device


def build(
    config: m.EngineConfig, inbox: Inbox, connection: Connection
) -> tuple[StepLoop, m.EngineInfo]:
    """Build the step loop and all its parts. Raises the errors of loading a model."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    parts = assemble(config)
    spec, size = parts.loaded.spec, parts.size
    blobs = open_blobs(config.blobs, Path(config.blob_cache), config.blob_cache_bytes)
    residency = Residency(
        lambda digest: _read_prefix(blobs, digest, spec.dtype, parts.layout),
        inbox.put,
        device_bytes=parts.prefix_bytes,
        host_bytes=config.host_prefix_bytes,
        copy=parts.copy,
    )
    allocator = PageAllocator(size.num_pages, size.page_size)
    reuses = config.prompt_cache and size.page_size < size.max_model_len  # else no page fills
    scheduler = Scheduler(
        allocator,
        residency,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        eos_token_ids=parts.loaded.eos_token_ids,
        extra_tokens=config.max_extra_tokens_per_key or default_extra_tokens(parts.device),
        prompt_cache=PromptCache(allocator) if reuses else None,
    )
    loop = StepLoop(
        inbox,
        connection.send,
        scheduler,
        residency,
        make_runner(parts, config, residency.get),
        parts.pool,
        PrefixCompiler(inbox.put, blobs, spec),
        Grammars(inbox.put, lambda: _vocabulary(config.model, parts)),
        overlap=parts.device != "cpu",  # on a CPU a launch is the computation: nothing overlaps
    )
    return loop, _info(config, parts)


def _read_prefix(
    blobs: BlobStore, digest: Digest, dtype: str, layout: Callable[[Tensor], Tensor]
) -> ResidentPrefix:
    """Read a prefix, check it against its digest, cast it to the serving dtype. Loader thread."""
    prefix = artifact.read(blobs.get(digest))
    kv = torch.stack([torch.stack(layer) for layer in zip(prefix.keys, prefix.values, strict=True)])
    kv = layout(kv.to(getattr(torch, dtype)))
    return ResidentPrefix(kv, prefix.position_offset, prefix.num_virtual_tokens)


def _vocabulary(model: str, parts: Assembly) -> Vocabulary:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return Vocabulary(
        tokenizer.backend_tokenizer.to_str(),
        vocab_size=parts.loaded.vocab_size,
        eos_token_ids=list(parts.loaded.eos_token_ids),
    )


def _listen(connection: Connection, inbox: Inbox) -> None:
    decoder = msgspec.msgpack.Decoder(m.Request)
    try:
        while (body := connection.receive()) is not None:
            inbox.put(decoder.decode(body))
    finally:
        inbox.put(ConnectionClosed())


def _info(config: m.EngineConfig, parts: Assembly) -> m.EngineInfo:
    loaded, spec = parts.loaded, parts.loaded.spec
    return m.EngineInfo(
        model=spec.name,
        fingerprint=spec.fingerprint,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        kv_norms=list(spec.kv_norms),
        vocab_size=loaded.vocab_size,
        dtype=spec.dtype,
        device=parts.device,
        attention=parts.backend.name,
        max_model_len=parts.size.max_model_len,
        max_num_seqs=config.max_num_seqs,
        kv_pool_tokens=parts.size.num_pages * parts.size.page_size,
        eos_token_ids=list(loaded.eos_token_ids),
        generation_defaults=loaded.generation_defaults,
    )
