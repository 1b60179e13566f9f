"""Steps whose rows follow a grammar, one at a time and one ahead."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from server.engine import grammar
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.grammar import Vocabulary
from server.engine.loop.steps import Steps
from server.engine.params import Delta, SamplingParams
from server.engine.sampling import logits_processors
from server.engine.sampling.masks import (
    apply_grammar_bitmask,
)
from server.engine.scheduler.sequence import Sequence, SequenceStatus
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
