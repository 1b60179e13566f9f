"""Golden prompts: held-out lines that the model answers exactly, most confident first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from foreword_tuner.encoding import Example
from foreword_tuner.forms import Line
from foreword_tuner.forward import Forward

MAX_GOLDEN = 8
_NUM_TRIED = 64
_MAX_CHARS = 10_000
"""The server's limit for a golden prompt."""


@torch.inference_mode()
def choose(
    forward: Forward,
    lines: Sequence[Line],
    examples: Sequence[Example],
    fields: Collection[str],
) -> list[dict[str, str]]:
    """Choose golden prompts, `{"prompt": ..., "expect": ...}`, for the upload.

    The most confident answers are chosen, as the server may compute in another precision. A golden
    prompt is one text: there are none if the template has other `fields`, or for chats of several
    messages.
    """
    if set(fields) - {"prompt"}:
        return []
    exact: list[tuple[float, Line]] = []
    pairs = [(line, e) for line, e in zip(lines, examples, strict=True) if _is_plain(line)]
    for line, example in pairs[:_NUM_TRIED]:
        outcome = forward([example])
        if outcome.num_exact:
            exact.append((float(outcome.loss) / outcome.num_targets, line))
    exact.sort(key=lambda pair: pair[0])
    return [{"prompt": line.prompt, "expect": line.completion} for _, line in exact[:MAX_GOLDEN]]


def _is_plain(line: Line) -> bool:
    is_prompt = [message["role"] for message in line.messages] in ([], ["user"])
    return is_prompt and max(len(line.prompt), len(line.completion)) <= _MAX_CHARS
