"""Base class of what the server answers, and chat messages."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base class: frozen, and ignores unknown fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Message(Answer):
    """One chat message."""

    role: str
    content: str
