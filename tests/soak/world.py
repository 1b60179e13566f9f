"""What the workers of a soak know of the server: sources of prefixes, tasks, versions, keys."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from prefix_store import formats
from prefix_store.formats import tar

JSON, SAFETENSORS, TAR = formats.JSON, formats.SAFETENSORS, formats.TAR[0]
TASKS = tuple(f"soak-{i}" for i in range(6))
"""Tasks that live as long as the soak. The first one also gets the large prefix."""
TEMPORARY = ("brief-0", "brief-1")
"""Tasks that are deleted and created again."""
MAX_VERSIONS = 7
"""Versions of a task beyond which workers delete some."""

DEFINITIONS: tuple[dict[str, Any], ...] = (
    {"template": None, "chat": False, "defaults": {"max_tokens": 10, "temperature": 0}},
    {
        "template": "Q: {prompt}\nA:",
        "chat": False,
        "defaults": {"max_tokens": 8, "temperature": 0, "stop": ["\n"]},
    },
    {"template": None, "chat": True, "defaults": {"max_tokens": 9, "temperature": 0}},
)
TEXTS = (
    "You are a pirate, and every sentence is about treasure.\n",
    "def quicksort(numbers):\n",
    "Translate English to French.\nsea -> mer\nsky -> ciel\n",
    "A list of fruit: apple, pear, plum, cherry, fig, grape, melon, peach, lemon, lime, date.\n",
    "Bread, soup, and nothing else matters to this cook. The kitchen is small and warm, and the "
    "knives are sharp. Every morning the baker brings flour, and the cook sings.\n",
)
LARGE_TEXT = "The report goes on for many pages, and every page says what the last one said. " * 9
CHATS = (
    [{"role": "system", "content": "Answer in one word."}],
    [
        {"role": "user", "content": "What is the sea?"},
        {"role": "assistant", "content": "Water, salt and wind."},
    ],
)


@dataclass(frozen=True, slots=True)
class Source:
    """The body of an upload."""

    name: str
    media_type: str
    content: bytes
    is_large: bool = False
    """Whether it does not fit on the device beside as many pins as are allowed."""
    fails_golden: bool = False


def text_source(text: str, definition: Mapping[str, Any], **rest: Any) -> Source:
    body = {"text": text, "definition": definition, **rest}
    return Source("text", JSON, json.dumps(body).encode(), is_large=text == LARGE_TEXT)


def wrong_golden(text: str, definition: Mapping[str, Any]) -> Source:
    """Return a source whose golden prompts cannot be met."""
    golden = [{"prompt": "Once upon a time", "expect": "zq\u0394 never said"}]
    body = {"text": text, "definition": definition, "golden": golden}
    return Source("wrong golden", JSON, json.dumps(body).encode(), fails_golden=True)


def chat_source(messages: list[dict[str, str]]) -> Source:
    body = {"messages": messages, "definition": DEFINITIONS[2]}
    return Source("messages", JSON, json.dumps(body).encode())


def redefined(version: int, definition: Mapping[str, Any]) -> Source:
    body = {"prefix_of": version, "definition": definition}
    return Source("prefix_of", JSON, json.dumps(body).encode())


def folder_source(name: str, files: Mapping[str, bytes]) -> Source:
    return Source(name, TAR, tar.write(files))


@dataclass(slots=True)
class World:
    """State that the workers share."""

    model: str
    sources: list[Source] = field(default_factory=list)
    versions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Versions of each task that were acknowledged and not deleted."""
    acknowledged: dict[tuple[str, int], str] = field(default_factory=dict)
    """Digest of every version that was acknowledged, deleted or not."""
    deleting: set[tuple[str, int]] = field(default_factory=set)
    """Versions whose deletion was requested."""
    dropping: set[str] = field(default_factory=set)
    """Tasks that may not exist at times."""
    golden: set[tuple[str, int]] = field(default_factory=set)
    """Versions with golden prompts, which may fail."""
    pinned: list[tuple[str, int]] = field(default_factory=list)

    def record(self, manifest: Mapping[str, Any]) -> None:
        """Note a version that was acknowledged."""
        task, version = manifest["task"], int(manifest["version"])
        self.acknowledged[task, version] = manifest["digest"]
        if manifest["golden"]:
            self.golden.add((task, version))
        if version not in self.versions[task]:
            self.versions[task].append(version)

    def gone(self, task: str | None, version: int | None = None) -> set[str]:
        """Return the outcomes that say that a task or a version does not exist, if it may not."""
        if task in self.dropping:
            codes = {"unknown_task", "unknown_version", "nothing_active", "model_not_found"}
            return {f"404 {code}" for code in codes} | {"409 nothing_active"}
        if version is not None and (task, version) in self.deleting:
            return {"404 unknown_version", "404 model_not_found"}
        return set()

    def may_fail_golden(self, task: str, version: int) -> set[str]:
        known = (task, version) in self.acknowledged
        fails = not known or (task, version) in self.golden
        return {"409 golden_prompt_failed"} if fails else set()

    def any_task(self, random: Random) -> str:
        return random.choice(TASKS if random.random() < 0.9 else TEMPORARY)

    def any_version(self, random: Random, task: str) -> int | None:
        """Return a version of the task that was acknowledged, if there is any."""
        return random.choice(self.versions[task]) if self.versions[task] else None


def full(task: str) -> set[str]:
    """Return the outcome of a prefix that has no room beside the pinned ones."""
    return {"503 prefix_unavailable"} if task == TASKS[0] else set()
