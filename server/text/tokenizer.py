"""Text to token ids: prompts, templates, chat. What a user wrote never becomes a special token."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import jinja2
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.errors import InvalidRequest, TemplateMismatch
from server.text.detokenizer import Detokenizer
from server.text.template import Marks, Part

# Or a text would run on threads of the library's own, at a priority of their own.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ChatMessages = Sequence[dict[str, str]]


class _Chat:
    """Messages in the chat template."""

    def __init__(
        self, plain: str, specials: list[int], cut: Callable[[], tuple[list[int], str]]
    ) -> None:
        self.plain = plain
        """As the template writes them, whatever they say."""
        self.specials = specials
        """The template's own, in their order."""
        self._cut = cut

    @cached_property
    def cut(self) -> tuple[list[int], str]:
        """Where a message names a special token: ids up to the template's last, and the rest."""
        return self._cut()


class Tokenizer:
    """The base model's tokenizer and chat template. Thread-safe, and slow."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        self._trusting = backend
        # A copy of its own: `encode_special_tokens` is state of the tokenizer, not of a call.
        self._strict = tokenizers.Tokenizer.from_str(backend.to_str())
        self._strict.encode_special_tokens = True
        self._chat = tokenizer
        self._specials = {
            i: t.content for i, t in backend.get_added_tokens_decoder().items() if t.special
        }
        self._unk_id = tokenizer.unk_token_id
        self._before, self._after = self._added_around()
        self._texts: dict[int, str] = {}
        self._last = threading.local()
        """The chat that a thread rendered last."""
        self._is_byte_level = '"type":"ByteLevel"' in backend.to_str()
        added = (token.content.encode() for token in backend.get_added_tokens_decoder().values())
        self._max_token_size = max(map(len, [*backend.get_vocab(), *added]))
        # Alone, the tokens of some vocabularies lose the space that they begin with.
        self._anchor: list[int] = backend.encode("a", add_special_tokens=False).ids

    @classmethod
    def load(cls, model: str) -> Tokenizer:
        """From a model's folder or hub id. Raises `OSError` or `ValueError`."""
        return cls(AutoTokenizer.from_pretrained(model, trust_remote_code=False))

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat.chat_template)

    def detokenizer(self) -> Detokenizer:
        """A new incremental detokeniser for one completion."""
        return Detokenizer(lambda ids: self._trusting.decode(ids, skip_special_tokens=True))

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._trusting.decode(token_ids, skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """What one token adds to a text: special tokens their names, half a character U+FFFD."""
        if token_id not in self._texts:
            both = self._trusting.decode([*self._anchor, token_id], skip_special_tokens=False)
            self._texts[token_id] = both.removeprefix("a")
        return self._texts[token_id]

    def least_tokens(self, texts: Iterable[str]) -> int:
        """How many tokens the texts have at least, from their size alone.

        An entry of the vocabulary has one character for what it covers of a text: a byte, where the
        vocabulary is of bytes, else a character. What takes unlimited text for one unknown token,
        or drops white space, could do with less: such texts count as the long ones that they are.
        """
        size = sum(len(text.encode()) if self._is_byte_level else len(text) for text in texts)
        return -(-size // self._max_token_size)

    def backend_json(self) -> str:
        """All of it but the chat template, as the `tokenizers` library writes it."""
        written: str = self._trusting.to_str()
        return written

    def is_special(self, token_id: int) -> bool:
        return token_id in self._specials

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a user's text; special tokens only as the model's tokenizer adds them."""
        return self.encode_parts([Part(text, trusted=False)], add_special_tokens=add_special_tokens)

    def encode_parts(self, parts: Sequence[Part], *, add_special_tokens: bool) -> list[int]:
        """Token ids of all parts as one text, with the special tokens of trusted parts only.

        The ids are those of the whole string unless a user's text holds, or completes, the name
        of a special token: then the string is cut at the trusted special tokens.
        """
        if any(part.trusted for part in parts):
            whole = _ids(self._trusting, "".join(p.text for p in parts))
            expected = [i for part in parts if part.trusted for i in self._specials_in(part.text)]
            if self._special_ids(whole) == expected:
                return self._surrounded(whole, add_special_tokens)
        return self._surrounded(self._encode_row(self._cut(parts)), add_special_tokens)

    # --- chat ---

    def encode_chat(
        self,
        messages: ChatMessages,
        *,
        after: ChatMessages = (),
        add_generation_prompt: bool = True,
        then: str = "",
    ) -> list[int]:
        """Token ids of messages in the base model's chat template.

        `after`: messages that a prefix holds already; the ids continue them. `then`: a text that
        comes behind all that the template writes. Raises
        `TemplateMismatch` where the template cannot continue them, or takes no such messages.
        """
        chat = self._rendered([*after], [*messages], add_generation_prompt)
        found = _ids(self._trusting, chat.plain + then)
        if self._special_ids(found) == chat.specials:
            return found
        head, tail = chat.cut
        return head + self._encode_row([tail + then])

    def _rendered(
        self, after: list[dict[str, str]], messages: list[dict[str, str]], is_prompt: bool
    ) -> _Chat:
        """Once for all choices of a ranking: they ask for it one after another, on one thread."""
        asked = (after, messages, is_prompt)
        if getattr(self._last, "asked", None) != asked:
            self._last.chat = self._render_marked(*asked)
            self._last.asked = asked
        chat: _Chat = self._last.chat
        return chat

    def _render_marked(
        self, after: list[dict[str, str]], messages: list[dict[str, str]], is_prompt: bool
    ) -> _Chat:
        head = self._render(after, add_generation_prompt=False) if after else ""
        marks = Marks()
        marked = [{**message, "content": marks.mark(message["content"])} for message in messages]
        plain = self._continued([*after, *messages], head, is_prompt)
        skeleton = self._continued([*after, *marked], head, is_prompt)
        specials = self._specials_in(skeleton)
        return _Chat(plain, specials, lambda: self._cut_at_tail(marks.cut(skeleton)))

    def _cut_at_tail(self, parts: Sequence[Part]) -> tuple[list[int], str]:
        """Ids of all up to the last special token of trusted parts, and the text behind it."""
        row = self._cut(parts)
        tail = row.pop() if row and isinstance(row[-1], str) else ""
        return self._encode_row(row), str(tail)

    def without_bos(self, token_ids: list[int]) -> list[int]:
        """What the tokenizer puts before every text, the prefix holds already: not twice."""
        num_added = len(self._before)
        return token_ids[num_added:] if token_ids[:num_added] == self._before else token_ids

    def _continued(self, messages: ChatMessages, head: str, add_generation_prompt: bool) -> str:
        text = self._render(messages, add_generation_prompt=add_generation_prompt)
        if not text.startswith(head):
            raise TemplateMismatch("the chat template cannot continue the prefix's messages")
        return text.removeprefix(head)

    def _render(self, messages: ChatMessages, *, add_generation_prompt: bool) -> str:
        if not self.has_chat_template:
            raise TemplateMismatch("the base model has no chat template: send a `prompt`")
        try:
            text: Any = self._chat.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as exc:
            # `raise_exception(...)` of the template: its author's words, none of the user's.
            said = f": {exc.message}" if type(exc) is jinja2.TemplateError else ""
            raise TemplateMismatch(f"the chat template refuses these messages{said}") from exc
        assert isinstance(text, str)
        return text

    # --- special tokens ---

    def _added_around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text: `[bos]`, `[cls] ... [sep]`, nothing."""
        inner = self._trusting.encode("a", add_special_tokens=False).ids
        outer = self._trusting.encode("a", add_special_tokens=True).ids
        before = next(i for i in range(len(outer)) if outer[i : i + len(inner)] == inner)
        return outer[:before], outer[before + len(inner) :]

    def _surrounded(self, token_ids: list[int], add_special_tokens: bool) -> list[int]:
        return [*self._before, *token_ids, *self._after] if add_special_tokens else list(token_ids)

    def _special_ids(self, token_ids: Iterable[int]) -> list[int]:
        return [i for i in token_ids if i in self._specials]

    def _specials_in(self, text: str) -> list[int]:
        return self._special_ids(_ids(self._trusting, text))

    def _cut(self, parts: Sequence[Part]) -> list[str | int]:
        """The parts as one row of texts and trusted special ids; neighbouring texts are joined."""
        row: list[str | int] = [""]
        splits = {text: self._split(text) for text in {p.text for p in parts if p.trusted}}
        for part in parts:
            for piece in splits[part.text] if part.trusted else [part.text]:
                if isinstance(piece, str) and isinstance(row[-1], str):
                    row[-1] += piece
                else:
                    row.append(piece)
        return [piece for piece in row if piece != ""]

    def _encode_row(self, row: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for piece in row:
            ids += [piece] if isinstance(piece, int) else self._encode_text(piece)
        return ids

    def _split(self, text: str) -> list[str | int]:
        """A trusted text as its special tokens and what lies between them."""
        [encoding] = self._trusting.encode_batch([text], add_special_tokens=False)
        row: list[str | int] = []
        end = 0
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in self._specials:
                row += [text[end:start], i]
                end = stop
        return [*row, text[end:]]

    def _encode_text(self, text: str) -> list[int]:
        """Ids of a text that holds no special token, whatever it says."""
        ids = _ids(self._strict, text)
        if self._is_plain(ids):
            return ids
        # Unigram and word vocabularies hold the names of special tokens as plain entries.
        ids = [i for piece in self._halves(text) for i in _ids(self._strict, piece)]
        if not self._is_plain(ids):
            raise InvalidRequest("the prompt holds a special token's name that cannot be escaped")
        return ids

    def _is_plain(self, token_ids: Iterable[int]) -> bool:
        """Unknown words are no harm: any text can have them."""
        return all(i == self._unk_id or i not in self._specials for i in token_ids)

    def _halves(self, text: str) -> list[str]:
        """The text, cut in the middle of every special token's name."""
        cuts = {0, len(text)}
        for content in self._specials.values():
            at = text.find(content)
            while at >= 0:
                cuts.add(at + max(1, len(content) // 2))
                at = text.find(content, at + 1)
        bounds = sorted(cuts)
        return [text[a:b] for a, b in pairwise(bounds)]


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Token ids of a text. Other threads run meanwhile: `encode` of one text would stop them all,
    the event loop too, for a second where the text is a megabyte."""
    [encoding] = backend.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids
