"""Log-probabilities and penalties of the engine against transformers' own, family by family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from prefix_store.digest import Digest
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.memory.prefix import ResidentPrefix
from server.engine.model.split_forward import SplitForward
from server.engine.params import Delta, Logprobs, SamplingParams
from server.engine.scheduler.sequence import Sequence
from tests.tiny_models import (
    EXPERTS,
    VOCAB,
    Engine,
    build_model,
    make_engine,
    random_prefix,
    spec_of,
)

PROMPT = [5, 9, 41, 3, 77, 5, 12, 60, 8, 31, 9, 5, 44, 2, 19, 23, 51, 7, 80, 11, 9]
FAMILIES = ["llama", "gemma2", "gpt2", "opt", *EXPERTS]
TOLERANCE = 2e-4
NUM_TOP = 4


@dataclass
class Answer:
    """All that an engine said of one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt: list[Logprobs] = field(default_factory=list)

    def take(self, delta: Delta) -> None:
        self.token_ids += delta.token_ids
        self.logprobs += [delta.logprobs] if delta.logprobs else []
        self.prompt += [delta.prompt_logprobs] if delta.prompt_logprobs else []


def own(scores: list[Logprobs]) -> Tensor:
    return torch.tensor([x for each in scores for x in each.logprobs])


def top(scores: list[Logprobs]) -> Tensor:
    return torch.tensor([x for each in scores for x in each.top_logprobs])


class Served:
    """The engine around a tiny model, and the same model as transformers runs it."""

    def __init__(self, family: str, **kwargs: Any) -> None:
        backend = RefBackend()
        self.reference = build_model(family, "eager")
        model = build_model(family, ATTENTION_NAME)
        sizes = {"page_size": 4, "num_pages": 120, "max_num_batched_tokens": 8} | kwargs
        self.engine: Engine = make_engine(model, backend, **sizes)
        self.answers: dict[int, Answer] = {}

    def add(
        self, token_ids: list[int], prefix: ResidentPrefix | None = None, **sampling: Any
    ) -> Answer:
        digest = None
        if prefix is not None:
            digest = Digest.of(prefix.kv.numpy().tobytes())
            self.engine.ready.prefixes[digest] = prefix
        request_id = len(self.answers)
        asked = SamplingParams(**{"max_tokens": 1, "ignore_eos": True} | sampling)
        self.engine.scheduler.add(Sequence(request_id, digest, list(token_ids), asked))
        return self.answers.setdefault(request_id, Answer())

    def step(self) -> None:
        scheduler = self.engine.scheduler
        batch = scheduler.schedule()
        handle = self.engine.runner.launch(batch)
        tokens, logprobs, prompt = handle.tokens(), handle.logprobs(), handle.prompt_logprobs()
        for delta in scheduler.commit(batch, tokens, logprobs, prompt):
            self.answers[delta.request_id].take(delta)
        scheduler.check()

    def run(self) -> None:
        self.engine.runner.activate()
        while self.engine.scheduler.has_work:
            self.step()


@torch.no_grad()
def logits_of(
    model: PreTrainedModel, token_ids: list[int], prefix: ResidentPrefix | None
) -> Tensor:
    """After every token, by transformers: [len(token_ids), V]."""
    num_prefix = prefix.num_tokens if prefix is not None else 0
    layers = [(kv[0][None], kv[1][None]) for kv in prefix.kv] if prefix else []
    cache = DynamicCache(layers)
    positions = torch.arange(num_prefix, num_prefix + len(token_ids))[None]
    kwargs = {} if model.config.model_type == "opt" else {"position_ids": positions}
    mask = torch.ones(1, num_prefix + len(token_ids), dtype=torch.long)
    ids = torch.tensor([token_ids])
    output = model(input_ids=ids, past_key_values=cache, attention_mask=mask, **kwargs)
    logits: Tensor = output.logits[0]
    return logits


@pytest.fixture(params=FAMILIES)
def served(request: pytest.FixtureRequest) -> Served:
    return Served(request.param)


@pytest.fixture
def llama() -> Served:
    return Served("llama", prompt_cache=True)


def prefix_for(served: Served, seed: int = 1) -> ResidentPrefix:
    return random_prefix(spec_of(served.reference.config), 5, seed)


def check(served: Served, answer: Answer, prefix: ResidentPrefix | None) -> None:
    """Every number of an answer to PROMPT is transformers' own."""
    whole = PROMPT + answer.token_ids
    expected = logits_of(served.reference, whole[:-1], prefix).log_softmax(-1)
    chosen = expected.gather(1, torch.tensor(whole[1:])[:, None])[:, 0]
    argmax = expected.topk(NUM_TOP).values
    scores = answer.prompt + answer.logprobs
    torch.testing.assert_close(own(scores), chosen, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(top(scores), argmax, atol=TOLERANCE, rtol=0)


def test_every_logprob_is_transformers_own_with_and_without_a_prefix(served: Served) -> None:
    prefix = prefix_for(served)
    asks: dict[str, Any] = {"max_tokens": 6, "logprobs": NUM_TOP, "prompt_logprobs": NUM_TOP}
    plain, behind = served.add(PROMPT, **asks), served.add(PROMPT, prefix, **asks)
    others = [served.add(PROMPT[i:], temperature=1.0, max_tokens=9) for i in range(4)]

    served.run()

    check(served, plain, None)
    check(served, behind, prefix)
    assert not torch.allclose(own(plain.prompt), own(behind.prompt), atol=100 * TOLERANCE)
    assert all(not other.logprobs and not other.prompt for other in others)
    own_top = zip(own(plain.logprobs).tolist(), top(plain.logprobs).tolist(), strict=True)
    assert all(mine == best for mine, (best, *_) in own_top), "greedy: the same number, bit for bit"


def test_a_prompt_found_computed_is_scored_all_the_same(llama: Served) -> None:
    first = llama.add(PROMPT, max_tokens=3, logprobs=NUM_TOP, prompt_logprobs=NUM_TOP)
    llama.run()
    again = llama.add(PROMPT, max_tokens=3, logprobs=NUM_TOP, prompt_logprobs=NUM_TOP)
    llama.run()
    unscored = llama.add(PROMPT, max_tokens=3)
    llama.run()

    check(llama, first, None)
    check(llama, again, None)
    assert unscored.token_ids == first.token_ids
    assert llama.engine.scheduler.num_cached_tokens == 20, "of the one that asks nothing"


def test_who_is_preempted_is_scored_once() -> None:
    served = Served("llama", num_pages=14, prompt_cache=True)
    asks: dict[str, Any] = {"max_tokens": 12, "logprobs": NUM_TOP, "prompt_logprobs": NUM_TOP}
    answers = [served.add(PROMPT, **asks) for _ in range(3)]

    served.run()

    assert served.engine.scheduler.num_preemptions > 0
    for answer in answers:
        check(served, answer, None)


def test_logits_come_in_blocks_and_are_the_whole_forwards(served: Served) -> None:
    model = served.reference
    halves, ids = SplitForward(model), torch.tensor([PROMPT])
    with torch.inference_mode():
        hidden = halves.hidden(input_ids=ids)
        got = torch.cat([halves.logits(part) for part in torch.split(hidden, 4, dim=1)])
        expected = model(input_ids=ids).logits[0]

    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -0.4, "presence_penalty": 1.3},
        {"repetition_penalty": 1.4},
        {"logit_bias": ((17, 3.0), (4, -100.0))},
        {"repetition_penalty": 0.8, "presence_penalty": 0.5, "logit_bias": ((9, 2.0),)},
        {"min_tokens": 6},
        {"min_tokens": 6, "stop_token_ids": tuple(range(3, 60))},
    ],
    ids=lambda asked: "+".join(asked),
)
def test_penalties_and_biases_give_the_tokens_of_their_definitions(
    llama: Served, asked: dict[str, Any]
) -> None:
    prefix, num_new = prefix_for(llama), 12
    strangers = [llama.add(PROMPT[i:], max_tokens=9, presence_penalty=1.0) for i in range(3)]
    answer = llama.add(PROMPT, prefix, max_tokens=num_new, **asked)
    plain = llama.add(PROMPT, prefix, max_tokens=num_new, logprobs=0)
    llama.run()

    expected = list(PROMPT)
    for step in range(num_new):
        logits = logits_of(llama.reference, expected, prefix)[-1].clone()
        for token_id, bias in asked.get("logit_bias", ()):
            logits[token_id] += bias
        if step < asked.get("min_tokens", 0):
            logits[[2, *asked.get("stop_token_ids", ())]] = -torch.inf
        if penalty := asked.get("repetition_penalty"):
            processor = RepetitionPenaltyLogitsProcessor(penalty)
            logits = processor(torch.tensor([expected]), logits[None])[0]
        counts = torch.bincount(
            torch.tensor(expected[len(PROMPT) :], dtype=torch.long), minlength=VOCAB
        )
        logits -= asked.get("frequency_penalty", 0.0) * counts
        logits -= asked.get("presence_penalty", 0.0) * (counts > 0)
        expected.append(int(logits.argmax()))
        if expected[-1] in asked.get("stop_token_ids", ()):
            break

    assert answer.token_ids == expected[len(PROMPT) :]
    unasked = {"min_tokens"} >= asked.keys()
    assert unasked or answer.token_ids != plain.token_ids, "it must matter in this test"
    assert len(strangers) == 3
