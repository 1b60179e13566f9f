"""Text and bytes of single tokens. A character may be spread over several of them."""

from __future__ import annotations

import re

import tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
"""The characters that stand for bytes in byte-level vocabularies."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token for one byte, in vocabularies that fall back to bytes."""


class TokenTexts:
    """What the tokens of a vocabulary add to a text. Thread-safe."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._texts: dict[int, str] = {}
        written = backend.to_str()
        self.is_byte_level = '"type":"ByteLevel"' in written
        self._falls_back_to_bytes = '"type":"ByteFallback"' in written
        added = backend.get_added_tokens_decoder().items()
        self._specials = {token_id for token_id, token in added if token.special}
        # Decoded on their own, the tokens of some vocabularies lose their leading space.
        self._anchor: list[int] = backend.encode("a", add_special_tokens=False).ids

    def text(self, token_id: int) -> str:
        """Text of one token: a special token's name, U+FFFD for part of a character."""
        if token_id not in self._texts:
            self._texts[token_id] = self._decode_after(self._anchor, token_id)
        return self._texts[token_id]

    def utf8(self, token_id: int, *, at_start: bool) -> bytes:
        """Bytes that one token adds to a text; none for a special token.

        `at_start`: nothing stands before it, where some decoders drop a leading space. The bytes
        of all tokens of a text, joined, are the text's.
        """
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._specials:
            return b""
        if self.is_byte_level:
            is_spelled = all(char in _BYTES for char in token)
            return bytes(_BYTES[char] for char in token) if is_spelled else token.encode()
        if self._falls_back_to_bytes and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        text = self._decode_after([], token_id) if at_start else self.text(token_id)
        return text.encode()

    def _decode_after(self, anchor: list[int], token_id: int) -> str:
        text: str = self._backend.decode([*anchor, token_id], skip_special_tokens=False)
        return text.removeprefix("a") if anchor else text
