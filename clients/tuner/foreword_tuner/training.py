"""The training loop, with evaluation on held-out lines and early stopping."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from foreword_tuner import batches, checkpoint
from foreword_tuner.encoding import Example
from foreword_tuner.errors import TunerError
from foreword_tuner.forward import Forward
from foreword_tuner.settings import Settings

_BETAS = (0.9, 0.95)
_POINT_EVERY = 10
"""Steps per point of the curve."""


@dataclass(slots=True)
class State:
    """The progress of a training, saved as JSON with the tensors of a checkpoint."""

    step: int = 0
    epoch: int = 0
    place: int = 0
    """Finished batches of this epoch."""
    elapsed_s: float = 0.0
    """Training time over all restarts, without evaluations. On a CPU it is CPU time, which other
    processes cannot lengthen."""
    num_tokens: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    best_loss: float = float("inf")
    best_step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The state after a step, for progress displays."""

    share: float
    """Finished share of the training, 0 to 1."""
    step: int
    loss: float
    tokens_per_s: float
    held_out: dict[str, float] | None


class Training:
    """A training run. It resumes only from a checkpoint with the same `identity`."""

    def __init__(
        self,
        model: PeftModel,
        forward: Forward,
        train: Sequence[Example],
        held_out: Sequence[Example],
        settings: Settings,
        *,
        path: Path,
        identity: str,
        on_report: Callable[[Report], None],
    ) -> None:
        self._model = model
        self._forward = forward
        self._train = train
        self._held_out = held_out
        self._settings = settings
        self._path = path
        self._identity = identity
        self._on_report = on_report
        self._parameters = checkpoint.trainable(model)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.learning_rate,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )
        self._best = checkpoint.snapshot(model, "best.")
        self._num_batches = 1
        self._is_cpu = model.device.type == "cpu"
        self.state = State()

    def resume(self) -> bool:
        """Resume from a checkpoint if there is one. Raises `TunerError` if it is of another run."""
        if not self._path.is_file():
            return False
        tensors, saved = checkpoint.load(self._path)
        if saved.pop("identity") != self._identity:
            raise TunerError(
                f"{self._path.parent} has a training with other settings or data: use another "
                "folder, or start over with --restart"
            )
        self.state = State(**saved)
        checkpoint.restore(self._model, tensors, "now.")
        checkpoint.restore_moments(self._optimizer, list(self._parameters), tensors)
        self._best = {name: t for name, t in tensors.items() if name.startswith("best.")}
        return True

    def run(self) -> None:
        """Train to the end. The model then has the parameters with the best held-out loss."""
        if not self.state.held_out:
            measured = self.evaluate()
            self.state.held_out.append({"step": 0, **measured})
            self.state.best_loss = measured["loss"]
        steps = self._steps()
        while not self.state.is_done:
            self._step(next(steps))
        checkpoint.restore(self._model, self._best, "best.")

    def evaluate(self) -> dict[str, float]:
        """Compute the loss per token and the share of exact completions on held-out lines."""
        loss, num_targets, num_exact = 0.0, 0, 0
        with torch.inference_mode():
            for examples in batches.in_order(self._held_out, self._settings.batch_tokens):
                outcome = self._forward(examples)
                loss += float(outcome.loss)
                num_targets += outcome.num_targets
                num_exact += outcome.num_exact
        return {"loss": loss / num_targets, "exact_match": num_exact / len(self._held_out)}

    def _steps(self) -> Iterator[list[list[Example]]]:
        """Yield the batches of each step, from the current state on."""
        settings, state = self._settings, self.state
        while True:
            epoch = batches.epoch(
                self._train, settings.batch_tokens, seed=settings.seed, number=state.epoch
            )
            self._num_batches = len(epoch)
            while state.place < len(epoch):
                group = epoch[state.place : state.place + settings.accumulate]
                state.place += len(group)
                yield group
            state.epoch, state.place = state.epoch + 1, 0

    def _step(self, group: list[list[Example]]) -> None:
        begin_s = self._now_s()
        for options in self._optimizer.param_groups:
            options["lr"] = self._settings.learning_rate * self._schedule()
        loss = self._backward(group)
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        state = self.state
        state.step += 1
        state.elapsed_s += self._now_s() - begin_s
        num_tokens = sum(example.num_tokens for examples in group for example in examples)
        state.num_tokens += num_tokens
        self._note(loss)
        share = self._share()
        is_last = share >= 1
        held_out = None
        if is_last or state.step % self._settings.eval_every == 0:
            held_out = self._measure(is_last)
        rate = state.num_tokens / state.elapsed_s
        self._on_report(Report(share, state.step, loss, rate, held_out))

    def _backward(self, group: list[list[Example]]) -> float:
        """Return the mean loss per completion token over all batches. Raises `TunerError`."""
        num_targets = sum(len(e.completion_ids) for examples in group for e in examples)
        loss = 0.0
        for examples in group:
            mean = self._forward(examples).loss / num_targets
            mean.backward()  # type: ignore[no-untyped-call]
            loss += float(mean.detach())
        if not loss < float("inf"):
            raise TunerError(
                f"the loss is {loss} at step {self.state.step + 1}: try a smaller --learning-rate"
            )
        return loss

    def _measure(self, is_last: bool) -> dict[str, float]:
        """Evaluate, keep the best parameters, decide whether to stop, and write a checkpoint."""
        state, measured = self.state, self.evaluate()
        state.held_out.append({"step": state.step, **measured})
        if measured["loss"] < state.best_loss:
            state.best_loss, state.best_step, state.stale = measured["loss"], state.step, 0
            self._best = checkpoint.snapshot(self._model, "best.")
        else:
            state.stale += 1
        state.is_done = is_last or state.stale >= self._settings.patience
        tensors = checkpoint.snapshot(self._model, "now.") | self._best
        tensors |= checkpoint.moments(self._optimizer, list(self._parameters))
        fields: dict[str, Any] = dataclasses.asdict(state)
        checkpoint.save(self._path, tensors, fields | {"identity": self._identity})
        return measured

    def _now_s(self) -> float:
        if self._is_cpu:
            return time.process_time() / torch.get_num_threads()
        return time.monotonic()

    def _note(self, loss: float) -> None:
        curve, state = self.state.curve, self.state
        if state.step % _POINT_EVERY == 1 or not curve:
            curve.append({"step": state.step, "loss": loss, "num": 1})
            return
        point = curve[-1]
        point["num"] += 1
        point["loss"] += (loss - point["loss"]) / point["num"]
        point["step"] = state.step

    def _share(self) -> float:
        """Return the finished share: of epochs or of time, whichever is larger."""
        state, settings = self.state, self._settings
        epochs = state.epoch + state.place / self._num_batches
        share = epochs / settings.max_epochs
        if settings.max_minutes is not None:
            share = max(share, state.elapsed_s / 60 / settings.max_minutes)
        return min(1.0, share)

    def _schedule(self) -> float:
        """Return the learning rate's factor: linear warm-up, then linear decay to zero."""
        share = self._share()
        warmup = self._settings.warmup
        # `share` is zero only before the first batch.
        return min((share or 1e-9) / warmup if warmup else 1.0, (1 - share) / (1 - warmup))
