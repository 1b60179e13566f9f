"""Text to token ids: prompts, templates, chat. A user's text never becomes a special token."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import chain, groupby, pairwise
from typing import Any

import jinja2
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.cancellation import check_wanted
from server.errors import InvalidRequest, TemplateMismatch
from server.text.detokenizer import Detokenizer
from server.text.template import Marks, Part
from server.text.token_texts import TokenTexts

# Keeps the library from tokenising on threads of its own, at their own priority.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ChatMessages = Sequence[dict[str, str]]


class _Chat:
    """Messages rendered by the chat template."""

    def __init__(
        self, plain: str, specials: list[int], cut: Callable[[], tuple[list[int], str]]
    ) -> None:
        self.plain = plain
        """The rendered text, which may contain names of special tokens from messages."""
        self.specials = specials
        """Special token ids of the template itself, in order."""
        self._cut = cut

    @cached_property
    def cut(self) -> tuple[list[int], str]:
        """For messages that name a special token: ids up to the template's last special token, and
        the text after it."""
        return self._cut()


class Tokenizer:
    """The base model's tokenizer and chat template. Thread-safe. Slow for long texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        self._trusting = backend
        # A copy, because `encode_special_tokens` is a state of the tokenizer, not of a call.
        self._strict = tokenizers.Tokenizer.from_str(backend.to_str())
        self._strict.encode_special_tokens = True
        self._chat = tokenizer
        self._specials = {
            i: t.content for i, t in backend.get_added_tokens_decoder().items() if t.special
        }
        self._unk_id = tokenizer.unk_token_id
        self._before, self._after = self._added_around()
        self._tokens = TokenTexts(backend)
        self._last = threading.local()
        """Per thread: the chat rendered last."""
        added = (token.content.encode() for token in backend.get_added_tokens_decoder().values())
        self._max_token_size = max(map(len, [*backend.get_vocab(), *added]))

    @classmethod
    def load(cls, model: str) -> Tokenizer:
        """Load from a model's folder or hub id. Raises `OSError` or `ValueError`."""
        return cls(AutoTokenizer.from_pretrained(model, trust_remote_code=False))

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat.chat_template)

    def detokenizer(self) -> Detokenizer:
        """A new incremental detokenizer for one completion."""
        return Detokenizer(lambda ids: self._trusting.decode(ids, skip_special_tokens=True))

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        text: str = self._trusting.decode(token_ids, skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token: a special token's name, U+FFFD for part of a character."""
        return self._tokens.text(token_id)

    def token_bytes(self, token_id: int, *, at_start: bool) -> bytes:
        """Bytes that one token adds to a text; `at_start` where nothing stands before it."""
        return self._tokens.utf8(token_id, at_start=at_start)

    def least_tokens(self, texts: Iterable[str]) -> int:
        """A lower bound of the number of tokens, from the size of the texts alone.

        A vocabulary entry covers one byte of text per character in byte-level vocabularies, else
        one character. Tokenizers that take any unknown text as one token, or drop white space, may
        need fewer tokens; such texts count as long anyway.
        """
        counts = Counter(texts)  # a template may repeat a long text, which is measured once
        size = sum(num * self._size(text) for text, num in counts.items())
        return -(-size // self._max_token_size)

    def _size(self, text: str) -> int:
        return len(text.encode()) if self._tokens.is_byte_level else len(text)

    def backend_json(self) -> str:
        """The tokenizer without its chat template, as JSON of the `tokenizers` library."""
        written: str = self._trusting.to_str()
        return written

    def is_special(self, token_id: int) -> bool:
        return token_id in self._specials

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a user's text. Special tokens only as the model's tokenizer adds them."""
        return self.encode_parts([Part(text, trusted=False)], add_special_tokens=add_special_tokens)

    def encode_parts(self, parts: Sequence[Part], *, add_special_tokens: bool) -> list[int]:
        """Token ids of all parts as one text, with the special tokens of trusted parts only.

        The ids are those of the whole string, unless a user's text contains or completes the name
        of a special token. Then the string is cut at the trusted special tokens.
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

        `after`: messages in the prefix; the ids continue them. `then`: a text after everything
        that the template writes. Raises `TemplateMismatch` if the template cannot continue the
        prefix's messages, or refuses these.

        The rendered text is tokenised as a whole where its special tokens are exactly the
        template's own. Otherwise a message names a special token, and the text is cut at the
        template's special tokens: what lies between them is tokenised without special tokens.
        """
        chat = self._rendered([*after], [*messages], add_generation_prompt)
        ids = _ids(self._trusting, chat.plain + then)
        if self._special_ids(ids) == chat.specials:
            return ids
        head, tail = chat.cut
        return head + self._encode_row([tail + then])

    def _rendered(
        self, after: list[dict[str, str]], messages: list[dict[str, str]], is_prompt: bool
    ) -> _Chat:
        """Render the chat, or reuse the last one: the texts of a ranking ask for the same chat one
        after another, on one thread."""
        key = (after, messages, is_prompt)
        if getattr(self._last, "key", None) != key:
            self._last.chat = self._render_marked(*key)
            self._last.key = key
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
        """Ids up to the last special token of trusted parts, and the text after it."""
        row = self._cut(parts)
        tail = row.pop() if row and isinstance(row[-1], str) else ""
        return self._encode_row(row), str(tail)

    def without_bos(self, token_ids: list[int]) -> list[int]:
        """Drop the ids that the tokenizer puts before every text; the prefix has them."""
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
            # `raise_exception(...)`: a message of the template's author, without the user's text.
            reason = f": {exc.message}" if type(exc) is jinja2.TemplateError else ""
            raise TemplateMismatch(f"the chat template refuses these messages{reason}") from exc
        assert isinstance(text, str)
        return text

    # --- special tokens ---

    def _added_around(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer adds before and after a text: `[bos]`, `[cls] ... [sep]`, none."""
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
        """Merge the parts into texts and trusted special ids. Adjacent texts are joined."""
        splits = {text: self._split(text) for text in {p.text for p in parts if p.trusted}}
        pieces = chain.from_iterable(splits[p.text] if p.trusted else [p.text] for p in parts)
        row: list[str | int] = []
        for is_text, run in groupby(pieces, lambda piece: isinstance(piece, str)):
            pieces_of_run = list(run)
            row += ["".join(map(str, pieces_of_run))] if is_text else pieces_of_run
        return [piece for piece in row if piece != ""]

    def _encode_row(self, row: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for piece in row:
            ids += [piece] if isinstance(piece, int) else self._encode_text(piece)
        return ids

    def _split(self, text: str) -> list[str | int]:
        """Split a trusted text into its special token ids and the texts between them."""
        [encoding] = self._trusting.encode_batch([text], add_special_tokens=False)
        row: list[str | int] = []
        end = 0
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in self._specials:
                row += [text[end:start], i]
                end = stop
        return [*row, text[end:]]

    def _encode_text(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a special token. Raises `InvalidRequest`."""
        ids = _ids(self._strict, text)
        if self._is_plain(ids):
            return ids
        # Unigram and word vocabularies have the names of special tokens as plain entries.
        ids = [i for piece in self._halves(text) for i in _ids(self._strict, piece)]
        if not self._is_plain(ids):
            raise InvalidRequest("the prompt holds a special token's name that cannot be escaped")
        return ids

    def _is_plain(self, token_ids: Iterable[int]) -> bool:
        """Whether no id is special. The id of unknown words is allowed: any text can have it."""
        return all(i == self._unk_id or i not in self._specials for i in token_ids)

    def _halves(self, text: str) -> list[str]:
        """Cut the text in the middle of every special token's name."""
        cuts = {0, len(text)}
        for content in self._specials.values():
            at = text.find(content)
            while at >= 0:
                cuts.add(at + max(1, len(content) // 2))
                at = text.find(content, at + 1)
        bounds = sorted(cuts)
        return [text[a:b] for a, b in pairwise(bounds)]


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Token ids of a text. The batch call releases the GIL; `encode` would hold it, and block the
    event loop for a second per megabyte."""
    check_wanted()
    [encoding] = backend.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids
