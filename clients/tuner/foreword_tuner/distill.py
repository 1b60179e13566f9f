"""Distillation of a long text into a short prefix, by matching the model's logits after the text.

The idea is that of Cartridges (https://arxiv.org/abs/2506.06266): the prefix learns the whole
distribution of every token, of which an answer alone shows only one sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from foreword_tuner import data, initial, prepare, tune
from foreword_tuner.base import Base
from foreword_tuner.batches import pack
from foreword_tuner.encoding import Encoder, Example
from foreword_tuner.errors import TunerError
from foreword_tuner.forms import Line
from foreword_tuner.forward import DecoderForward, Outcome, num_exact
from foreword_tuner.prepare import Examples
from foreword_tuner.teacher import Targets, Teacher
from foreword_tuner.tune import Run, Tuned

_SMALLEST = 1e-6
"""Minimum probability of all other tokens together: the resolution of float32 near 1."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text to compress."""

    name: str
    content: str
    answer_tokens: int
    """Max tokens of each answer of the teacher."""


class DistillForward:
    """A forward pass whose loss is the divergence from the teacher's distributions."""

    def __init__(
        self, student: DecoderForward, pad_id: int, targets: Mapping[int, Targets]
    ) -> None:
        self._student = student
        self._pad_id = pad_id
        self._targets = targets

    def __call__(self, examples: Sequence[Example]) -> Outcome:
        batch = pack(examples, self._pad_id).to(self._student.device)
        logits = self._student.logits(batch).float()
        own = logits.log_softmax(dim=-1)
        loss = own.new_zeros(())
        start = 0
        for example in examples:
            target = self._targets[example.number]
            rows = own[start : start + len(target.token_ids)]
            loss = loss + divergence(target, rows)
            start += len(target.token_ids)
        return Outcome(loss, len(batch.targets), num_exact(logits, batch))


def divergence(target: Targets, log_probs: Tensor) -> Tensor:
    """KL(target || log_probs) over the kept tokens and all others as one; rows [N, vocab_size]."""
    theirs, own = target.log_probs, log_probs.gather(1, target.token_ids)
    kept = (theirs.exp() * (theirs - own)).sum()
    others, own_others = (
        (1 - kind.exp().sum(dim=1)).clamp_min(_SMALLEST) for kind in (theirs, own)
    )
    return kept + (others * (others / own_others).log()).sum()


def run(what: Run, text: Text) -> Tuned:
    """Ask the teacher, then train. Raises `TunerError`."""
    settings = what.settings
    file = data.read(what.data, skip_bad=what.skip_bad, needs="nothing")
    base = tune.load_base(what)
    encoder = Encoder(base.tokenizer, base.eos_id, template=settings.template, chat=settings.chat)
    text_ids = base.tokenizer(text.content).input_ids
    if settings.num_virtual_tokens >= len(text_ids):
        raise TunerError(f"{text.name} has only {len(text_ids)} tokens: push it as text")
    train_lines, held_lines = data.split(
        _unique(file.lines, encoder.fields), settings.held_out, settings.seed
    )
    lines = [*train_lines, *held_lines]
    init_ids = initial.fill(text_ids, settings.num_virtual_tokens)
    trainee = prepare.trainee(base, settings, init_ids)
    student = prepare.forward(base, trainee.model, settings)
    if not isinstance(student, DecoderForward):
        raise TunerError("only decoders can be distilled")
    teacher = Teacher(base, text_ids, student.logits_with)
    what.log(f"{len(text_ids)} tokens of text; the model answers {len(lines)} prompts after it")
    by_number = _answers(teacher, encoder, lines, what, text)
    found = teacher.targets(list(by_number.values()), settings.batch_tokens)
    examples = Examples(
        [by_number[line.number] for line in train_lines],
        [by_number[line.number] for line in held_lines],
        [_answered(base, line, by_number[line.number]) for line in held_lines],
        encoder,
        [],
        list(file.skipped),
    )
    forward = DistillForward(student, base.pad_id, found)
    return tune.train(what, file, trainee, forward, examples, text.content)


def _answers(
    teacher: Teacher, encoder: Encoder, lines: Sequence[Line], what: Run, text: Text
) -> dict[int, Example]:
    prompts = [encoder.prompt_ids(line) for line in lines]
    answers = teacher.answers(
        prompts, max_tokens=text.answer_tokens, batch_tokens=what.settings.batch_tokens
    )
    return {lines[i].number: Example(lines[i].number, prompts[i], answer) for i, answer in answers}


def _unique(lines: Sequence[Line], fields: Collection[str]) -> list[Line]:
    """Drop repeated questions: the teacher's answer is always the same."""
    return list({line.question(fields): line for line in lines}.values())


def _answered(base: Base, line: Line, example: Example) -> Line:
    """Set the teacher's answer as completion, for golden prompts."""
    answer = base.tokenizer.decode(example.completion_ids, skip_special_tokens=True)
    return dataclasses.replace(line, completion=answer)
