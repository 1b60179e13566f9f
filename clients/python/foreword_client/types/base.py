"""Base class of what the server answers, and chat messages."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base class of everything here: frozen, and open for fields of newer servers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Message(Answer):
    """One chat message."""

    role: str
    content: str
