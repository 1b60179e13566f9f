"""The answers of a soak, asked again one at a time on a server that does nothing else."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from random import Random

import httpx

from prefix_store import formats
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.manifest import Manifest
from prefix_store.registry.definitions import to_json
from tests.running_server import running_server
from tests.soak.asks import BY_NAME
from tests.soak.ledger import Answer, Ledger, Target

Way = tuple[str, str] | None
"""Digest and definition of a version; None for the base model."""


class Reference:
    """A quiet server, to which versions are uploaded again, each under a task of its own."""

    def __init__(self, http: httpx.Client, blobs: FileBlobStore, model: str) -> None:
        self._http = http
        self._blobs = blobs
        self._model = model
        self._tasks: dict[Way, str] = {}
        self._answers: dict[tuple[Way, str], Answer] = {}

    @property
    def num_asked(self) -> int:
        return len(self._answers)

    def answer(self, way: Way, manifest: Manifest | None, ask_name: str) -> Answer:
        """Return the answer of a version alone."""
        if (way, ask_name) not in self._answers:
            task = None if manifest is None else self._task(way, manifest)
            ask = BY_NAME[ask_name]
            body = ask.json(task, None, self._model)
            response = self._http.post(ask.path, params=ask.params(task, None), json=body)
            self._answers[way, ask_name] = ask.answer(response.raise_for_status().json())
        return self._answers[way, ask_name]

    def _task(self, way: Way, manifest: Manifest) -> str:
        """Upload a version again: its stored bytes and its definition, without golden prompts."""
        if way not in self._tasks:
            name = f"alone-{len(self._tasks)}"
            data = self._blobs.get(Digest(manifest.digest))
            body = formats.write_tar(data, manifest.model_copy(update={"golden": ()}))
            headers = {"Content-Type": formats.TAR[0]}
            response = self._http.put(f"/tasks/{name}/prefix", content=body, headers=headers)
            response.raise_for_status()
            assert response.json()["digest"] == manifest.digest
            self._tasks[way] = name
        return self._tasks[way]


def check_answers(
    ledger: Ledger,
    manifests: Iterable[Manifest],
    *,
    model: Path,
    model_name: str,
    folder: Path,
    blobs: Path,
    flags: Iterable[str],
    random: Random,
    max_minutes: float,
) -> str:
    """Compare every answer with the one that the same version gives alone.

    In random order, for at most `max_minutes`: the report says how many were compared.
    """
    by_target = {Target(m.task, m.version, m.digest): m for m in manifests}
    asked: dict[tuple[Way, str], list[tuple[Target, Answer | list[int]]]] = defaultdict(list)
    for (target, ask), answer in ledger.answers.items():
        asked[_way(by_target, target), ask].append((target, answer))
    for target, ask, token_ids in ledger.cut_off:
        asked[_way(by_target, target), ask].append((target, token_ids))
    flags = (*flags, "--no-prompt-cache", "--max-num-seqs", "4")
    with (
        running_server(model, folder / "alone", *flags) as server,
        httpx.Client(base_url=server.url, timeout=300) as http,
    ):
        reference = Reference(http, FileBlobStore(blobs), model_name)
        kinds = sorted(asked.items(), key=lambda item: repr(item[0]))
        random.shuffle(kinds)
        end_s = time.monotonic() + max_minutes * 60
        for (way, ask), entries in kinds:
            if time.monotonic() > end_s:
                break
            alone = reference.answer(way, by_target.get(entries[0][0]), ask)
            for target, given in entries:
                same = (
                    given.agrees(alone) if isinstance(given, Answer) else alone.begins_with(given)
                )
                if not same:
                    ledger.violate(f"{ask} to {target}: {given}, alone {alone}")
        num_asked = reference.num_asked
    return (
        f"{ledger.num_answers} answers and {len(ledger.cut_off)} cut-off streams of "
        f"{len(asked)} kinds, {num_asked} of them asked alone"
    )


def _is_same(given: Answer | list[int], alone: Answer) -> bool:
    return given.agrees(alone) if isinstance(given, Answer) else alone.begins_with(given)


def _way(by_target: dict[Target, Manifest], target: Target) -> Way:
    if target.task is None:
        return None
    manifest = by_target[target]  # KeyError: a version answered that the registry does not have
    return manifest.digest, to_json(manifest.definition)
