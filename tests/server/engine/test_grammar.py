"""Grammars: the limits of their compile, and the rows of a step that follow one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from server.engine import grammar
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.grammar import ByteBoundedCache, GrammarError, Matcher, Vocabulary
from server.engine.loop.grammars import GrammarCompiled, Grammars
from server.engine.loop.steps import Steps
from server.engine.params import Delta, SamplingParams
from server.engine.sampling import logits_processors
from server.engine.sampling.masks import (
    apply_grammar_bitmask,
    unpack_forbidden,
    unpack_forbidden_by_numpy,
)
from server.engine.scheduler.sequence import Sequence, SequenceStatus
from tests.server.fakes import make_transformers_tokenizer, make_vocabulary
from tests.tiny_models import VOCAB, Engine, build_model, make_engine

EOS = 2
PROMPTS = [[*range(3 + i, 8 + 4 * i)] for i in range(6)]
NUM_NEW = 9


class Letters(Vocabulary):
    """Vocabulary of the tiny models: EOS is 2, the tokens from 3 are the printable characters."""

    def __init__(self) -> None:
        texts = [b"", b"", b"", *(bytes([c]) for c in range(ord("!"), ord("!") + VOCAB - 3))]
        tokens = [{"id": i, "content": t.decode("latin-1")} for i, t in enumerate(texts)]
        assert len(tokens) == VOCAB
        vocab = {t["content"] or f"<{t['id']}>": t["id"] for t in tokens}
        specials = [
            {
                "id": i, "content": f"<{i}>", "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for i in range(3)
        ]  # fmt: skip
        content = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": specials,
            "normalizer": None, "pre_tokenizer": {
                "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": False,
            },
            "post_processor": None, "decoder": {
                "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": False,
            },
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": [],
            },
        }  # fmt: skip
        super().__init__(json.dumps(content), vocab_size=VOCAB, eos_token_ids=[EOS])


def text(token_ids: list[int]) -> str:
    return "".join(chr(ord("!") + i - 3) for i in token_ids if i != EOS)


@pytest.fixture(scope="module")
def letters() -> Letters:
    return Letters()


class Run:
    """The real `Steps` with a tiny model."""

    def __init__(self, letters: Vocabulary, *, overlap: bool, num_pages: int = 60) -> None:
        model = build_model("llama", ATTENTION_NAME)
        self.letters = letters
        self.engine: Engine = make_engine(
            model, RefBackend(), page_size=4, num_pages=num_pages, max_num_batched_tokens=24
        )
        self.engine.runner.activate()
        self.reasons: dict[int, str] = {}
        self.failures: dict[int, str] = {}
        self.num_ahead = 0
        self.steps = Steps(
            self.engine.scheduler, self.engine.runner,
            on_commit=self._on_commit, on_failure=self._on_failure,
            overlap=overlap,
        )  # fmt: skip

    def add(self, i: int, form: str | None = None, **sampling: Any) -> Sequence:
        params = SamplingParams(**{"max_tokens": NUM_NEW, "temperature": 1.0, "seed": i} | sampling)
        seq = Sequence(i, None, list(PROMPTS[i % 6]), params)
        if form is not None:
            seq.matcher = self.letters.compile(form).copy()
        self.engine.scheduler.add(seq)
        return seq

    def run_to_end(self) -> dict[int, list[int]]:
        for _ in range(300):
            if not self.steps.has_work:
                return self.engine.completions
            self.steps.step()
            self.engine.scheduler.check()
        raise AssertionError("the engine did not finish")

    def _on_commit(self, batch: Any, deltas: list[Delta]) -> None:
        self.num_ahead += sum(chunk.awaits_mask for chunk in batch.chunks)
        for delta in deltas:
            self.engine.completions.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.reasons[delta.request_id] = delta.finish_reason

    def _on_failure(self, seq: Sequence, message: str) -> None:
        self.failures[seq.request_id] = message
        if seq.status is not SequenceStatus.FINISHED:
            self.engine.scheduler.finish(seq)


FORMS = ["ab[0-9]{4}", "(x|yz)+!", "[A-Z]{20}"]


@pytest.mark.parametrize(
    "num_pages", [60, 20]
)  # enough for all; so few that a sequence is preempted
@pytest.mark.parametrize("overlap", [False, True])
def test_rows_with_a_grammar_follow_it_and_other_rows_are_unchanged(
    letters: Letters, overlap: bool, num_pages: int
) -> None:
    run = Run(letters, overlap=overlap, num_pages=num_pages)
    for i in range(6):
        run.add(i, grammar.from_regex(FORMS[i // 2]) if i % 2 else None, ignore_eos=not i % 2)
    tokens = run.run_to_end()

    assert run.failures == {}
    assert (run.num_ahead > 0) == overlap
    assert (run.engine.scheduler.num_preemptions > 0) == (num_pages == 20)
    assert text(tokens[1])[:2] == "ab"
    assert text(tokens[1])[2:].isdecimal()
    assert len(tokens[1]) == 6
    assert run.reasons[1] == "stop"
    assert set(text(tokens[3])) <= set("xyz!")
    assert len(text(tokens[5])) == NUM_NEW
    assert text(tokens[5]).isupper()
    assert run.reasons[5] == "length"
    for i in range(6):
        alone = Run(letters, overlap=False)
        form = grammar.from_regex(FORMS[i // 2]) if i % 2 else None
        alone.add(i, form, ignore_eos=not i % 2)
        assert alone.run_to_end()[i] == tokens[i]


def test_eos_ends_a_completion_that_its_grammar_accepts(letters: Letters) -> None:
    run = Run(letters, overlap=True)
    bias = ((EOS, 100.0),)
    run.add(1, grammar.from_regex("ab*"), logit_bias=bias)
    run.add(2, grammar.from_regex("ab*"), logit_bias=((EOS, -100.0),))
    tokens = run.run_to_end()

    assert text(tokens[1]) == "a"
    assert (tokens[1][-1], run.reasons[1]) == (EOS, "stop")
    assert text(tokens[2]) == "a" + "b" * (NUM_NEW - 1)
    assert run.reasons[2] == "length"


def test_penalties_and_top_k_stay_within_the_grammar(letters: Letters) -> None:
    run = Run(letters, overlap=False)
    run.add(1, grammar.from_texts(["yes", "no."]), presence_penalty=2.0, repetition_penalty=1.5,
            top_k=3, top_p=0.5)  # fmt: skip
    run.add(2, grammar.from_texts(["a", "a(b)|c.*"]), temperature=2.0)
    tokens = run.run_to_end()

    assert text(tokens[1]) in ("yes", "no.")
    assert text(tokens[2]) in ("a", "a(b)|c.*")


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sequence_whose_matcher_fails_fails_alone(letters: Letters, overlap: bool) -> None:
    run = Run(letters, overlap=overlap)
    broken = run.add(1, grammar.from_regex("[a-z]+"))
    run.add(2, grammar.from_regex("[a-z]+"))
    run.add(3)
    assert broken.matcher is not None
    broken.matcher.accept(token_of("!"))  # a token that the grammar forbids
    tokens = run.run_to_end()

    assert set(run.failures) == {1}
    assert "grammar" in run.failures[1]
    assert text(tokens[2]).islower()
    assert len(tokens[3]) > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_fails_while_sampling_loses_nothing(
    letters: Letters, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count(1)

    def failing(*args: Any) -> None:
        if next(calls) in (2, 6):
            raise RuntimeError("the device has failed")
        apply_grammar_bitmask(*args)

    def run() -> dict[int, list[int]]:
        made = Run(letters, overlap=overlap)
        for i in range(4):
            made.add(i, grammar.from_regex(FORMS[2]) if i % 2 else None)
        tokens = made.run_to_end()
        assert made.failures == {}
        return tokens

    right = run()
    monkeypatch.setattr(logits_processors, "apply_grammar_bitmask", failing)

    assert run() == right
    assert next(calls) > 6


def token_of(char: str) -> int:
    return 3 + ord(char) - ord("!")


# --- compiling ---


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "optional": lambda: object_grammar({"properties": {f"p{i}": {} for i in range(3000)}}),
    "nested": lambda: object_grammar(nested(300)),
    "crossed": lambda: object_grammar(
        {"allOf": [{"properties": {f"p{i}": {}}} for i in range(900)]}
    ),
    "multiple": lambda: object_grammar({"type": "integer", "multipleOf": 999_999_937}),
    "remote": lambda: object_grammar({"$ref": "http://127.0.0.1:1/schema"}),
    "endless": lambda: object_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "nothing": lambda: grammar.from_regex(r"[^\s\S]"),
    "letters": lambda: grammar.from_regex("|".join(rf"\p{{L}}{{1,{i}}}" for i in range(1, 2000))),
    "parentheses": lambda: grammar.from_regex("(" * 20_000 + ")" * 20_000),
}


def object_grammar(schema: dict[str, Any]) -> str:
    return grammar.from_json_schema({"type": "object"} | schema)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_that_is_too_expensive_is_refused_quickly(
    vocabulary: Vocabulary, name: str
) -> None:
    form = HOSTILE[name]()
    assert len(form) <= 2 * grammar.MAX_GRAMMAR_BYTES
    before_s = time.process_time()

    with pytest.raises(GrammarError):
        vocabulary.compile(form)

    assert time.process_time() - before_s < 5, "generous, for slow machines"


def test_json_is_on_one_line_unless_the_schema_says_otherwise(vocabulary: Vocabulary) -> None:
    schema: dict[str, Any] = {
        "type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "required": ["a", "b"],
    }  # fmt: skip
    free = schema | {"x-guidance": {"whitespace_flexible": True}}

    assert accepts(vocabulary, object_grammar(schema), '{"a": 1, "b": 2}')
    assert not accepts(vocabulary, object_grammar(schema), '{"a": 1, \n"b": 2}')
    assert accepts(vocabulary, object_grammar(free), '{"a": 1, \n"b": 2}')


def accepts(vocabulary: Vocabulary, form: str, text: str) -> bool:
    tokenizer = make_transformers_tokenizer()
    matcher = vocabulary.compile(form)
    for token_id in tokenizer(text, add_special_tokens=False).input_ids:
        matcher.accept(token_id)
    return matcher.matcher.is_accepting() and matcher.error is None


def test_the_cache_keeps_the_most_recently_used_within_its_bytes() -> None:
    cache = ByteBoundedCache[int](10, len)
    for i, form in enumerate(["aaaa", "bbbb", "cc"]):
        cache.put(form, i)
    cache.get("aaaa")
    cache.put("ddd", 3)

    assert [cache.get(form) for form in ("aaaa", "bbbb", "cc", "ddd")] == [0, None, 2, 3]
    assert cache.num_bytes == 9
    cache.put("e" * 11, 4)
    assert cache.num_bytes == 0


# --- waiting for a grammar ---


def sequence(request_id: int, form: str) -> Sequence:
    return Sequence(request_id, None, [5], SamplingParams(max_tokens=4, grammar=form))


def make_grammars(load: Callable[[], Vocabulary]) -> tuple[Grammars, SimpleQueue[GrammarCompiled]]:
    reported: SimpleQueue[GrammarCompiled] = SimpleQueue()
    return Grammars(reported.put, load), reported


def test_a_grammar_is_compiled_once_for_all_waiting_sequences(vocabulary: Vocabulary) -> None:
    go = threading.Event()

    def load() -> Vocabulary:
        assert go.wait(10)
        return vocabulary

    grammars, reported = make_grammars(load)
    one, other, cancelled = (sequence(i, grammar.from_regex("a+")) for i in range(3))
    assert not any(grammars.attach_matcher(seq) for seq in (one, other, cancelled))
    grammars.cancel(2)
    assert not grammars.is_idle
    go.set()
    ready = grammars.on_compiled(reported.get(timeout=10))
    third = sequence(3, grammar.from_regex("a+"))

    assert ready == [one, other]
    assert grammars.attach_matcher(third)
    assert grammars.is_idle
    assert reported.empty()
    matchers = [seq.matcher for seq in (one, other, third)]
    assert all(isinstance(matcher, Matcher) for matcher in matchers)
    assert len({id(matcher) for matcher in matchers}) == 3
    grammars.close()


def test_a_grammar_that_cannot_be_compiled_leaves_no_matcher(vocabulary: Vocabulary) -> None:
    grammars, reported = make_grammars(lambda: vocabulary)
    seq = sequence(1, grammar.from_regex("("))
    assert not grammars.attach_matcher(seq)

    assert grammars.on_compiled(reported.get(timeout=10)) == [seq]
    assert seq.matcher is None
    grammars.close()


def test_bits_beyond_the_logits_are_ignored(vocabulary: Vocabulary) -> None:
    logits = torch.zeros(3, 260)
    texts = {0: "a", 2: "[^x]"}
    apply_grammar_bitmask(
        logits, {row: vocabulary.compile(grammar.from_regex(r)) for row, r in texts.items()}
    )

    allowed = make_transformers_tokenizer()("a", add_special_tokens=False).input_ids
    assert logits[0].isfinite().nonzero().flatten().tolist() == allowed
    assert logits[1].isfinite().all()
    assert 90 < logits[2].isfinite().sum() < 260


def test_unpacking_with_torch_equals_unpacking_with_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**31), 2**31, (3, 4), dtype=torch.int32, generator=generator)

    assert torch.equal(unpack_forbidden(words, 120), unpack_forbidden_by_numpy(words, 120))
    assert unpack_forbidden(torch.tensor([[-(2**31)]], dtype=torch.int32), 32).sum() == 31
