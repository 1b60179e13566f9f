"""The loop: steps down the loss of completions, measured on held-out lines, stopped in time."""

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
"""Steps behind one point of the curve."""


@dataclass(slots=True)
class State:
    """How far a training is. JSON, and beside the tensors in a checkpoint."""

    step: int = 0
    epoch: int = 0
    place: int = 0
    """Batches of this epoch that are done."""
    elapsed_s: float = 0.0
    """Time spent training, over all its processes, evaluations left out. On a CPU the processor's,
    which others on the same machine cannot lengthen."""
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
    """What there is to tell after a step."""

    share: float
    """Of the whole training."""
    step: int
    loss: float
    tokens_per_s: float
    held_out: dict[str, float] | None


class Training:
    """One run. `identity` is what a checkpoint must be of to go on from."""

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
        tell: Callable[[Report], None],
    ) -> None:
        self._model = model
        self._forward = forward
        self._train = train
        self._held_out = held_out
        self._settings = settings
        self._path = path
        self._identity = identity
        self._tell = tell
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
        """Go on from a checkpoint, if there is one. Raises `TunerError` if of another run."""
        if not self._path.is_file():
            return False
        tensors, saved = checkpoint.load(self._path)
        if saved.pop("identity") != self._identity:
            raise TunerError(
                f"{self._path.parent} holds a training with other settings or data: take another "
                "folder, or begin anew with --restart"
            )
        self.state = State(**saved)
        checkpoint.restore(self._model, tensors, "now.")
        checkpoint.restore_moments(self._optimizer, list(self._parameters), tensors)
        self._best = {name: t for name, t in tensors.items() if name.startswith("best.")}
        return True

    def run(self) -> None:
        """Train to the end; what is then in the model is the best on the held-out lines."""
        if not self.state.held_out:
            measured = self.evaluate()
            self.state.held_out.append({"step": 0, **measured})
            self.state.best_loss = measured["loss"]
        steps = self._steps()
        while not self.state.is_done:
            self._step(next(steps))
        checkpoint.restore(self._model, self._best, "best.")

    def evaluate(self) -> dict[str, float]:
        """Loss per token and the share of exact completions, on the held-out lines."""
        loss, num_targets, num_exact = 0.0, 0, 0
        with torch.inference_mode():
            for examples in batches.in_order(self._held_out, self._settings.batch_tokens):
                outcome = self._forward(examples)
                loss += float(outcome.loss)
                num_targets += outcome.num_targets
                num_exact += outcome.num_exact
        return {"loss": loss / num_targets, "exact_match": num_exact / len(self._held_out)}

    def _steps(self) -> Iterator[list[list[Example]]]:
        """The batches of one step after the other, from where the state is."""
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
        self._tell(Report(share, state.step, loss, rate, held_out))

    def _backward(self, group: list[list[Example]]) -> float:
        """The mean loss of the completions' tokens of all batches."""
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
        """Evaluate, keep the best, decide whether to stop, and write the checkpoint."""
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
        """How much of the training is done: of its epochs or of its time, whichever is more."""
        state, settings = self.state, self._settings
        epochs = state.epoch + state.place / self._num_batches
        share = epochs / settings.max_epochs
        if settings.max_minutes is not None:
            share = max(share, state.elapsed_s / 60 / settings.max_minutes)
        return min(1.0, share)

    def _schedule(self) -> float:
        """Up over the warm-up, then down to nothing in a straight line."""
        share = self._share()
        warmup = self._settings.warmup
        # The first step of all has a share of the first batch already, so never zero.
        return min((share or 1e-9) / warmup if warmup else 1.0, (1 - share) / (1 - warmup))
