"""The loss, its gradients and what counts as exact are those of PEFT's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from foreword_tuner import base as bases
from foreword_tuner import checkpoint, prepare
from foreword_tuner.encoding import Example
from foreword_tuner.forward import IGNORED
from foreword_tuner.methods import Method
from tests.clients.tuner.tiny_base import save_base, settings

FAMILIES = ("llama", "qwen3", "gemma2", "mixtral", "gpt2", "opt")
EXAMPLES = [
    Example(1, [10, 11, 12, 13], [20, 21, 257]),
    Example(2, [30], [31, 257]),
    Example(3, list(range(40, 70)), [77]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_base(root / family, family) for family in (*FAMILIES, "t5")}


def pefts_loss(folder: Path, tuned: Any) -> torch.Tensor:
    """Compute each example alone, in a separate model with transformers' attention."""
    own = tuned.get_base_model()
    implementation = own.config._attn_implementation
    own.set_attn_implementation("eager")
    loss = torch.zeros(())
    for example in EXAMPLES:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = IGNORED
        if own.config.is_encoder_decoder:
            ids = torch.tensor([example.prompt_ids])
            labels = torch.tensor([example.completion_ids])
        mask = torch.ones_like(ids)
        mean = tuned(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss = loss + mean * len(example.completion_ids)
    own.set_attn_implementation(implementation)
    return loss


def gradients(tuned: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = checkpoint.trainable(tuned)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}


@pytest.mark.parametrize("init", ["random", "text:abcdef"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_prefix(folders: dict[str, Path], family: str, init: str) -> None:
    check(folders[family], Method.PREFIX, init)


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.PREFIX])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_every_method(folders: dict[str, Path], family: str, method: Method) -> None:
    check(folders[family], method, "random")


@pytest.mark.parametrize("family", FAMILIES)
def test_below_the_first_trained_layer_all_is_computed_once(
    folders: dict[str, Path], family: str
) -> None:
    base = bases.load(str(folders[family]), "float32")
    what = settings(folders[family], init="text:abcdef", first_layer=1)
    tuned = prepare.trainee(base, what, base.tokenizer("abcd").input_ids).model
    [parameter] = checkpoint.trainable(tuned).values()
    parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    forward = prepare.forward(base, tuned, what)
    expected = pefts_loss(folders[family], tuned)
    theirs = gradients(tuned, expected)

    calls = []
    layers = base.model.get_decoder()
    lowest = getattr(layers, "layers", None) or layers.h
    hook = next(m for n, m in lowest[0].named_modules() if n.endswith(("mlp", "fc1")))
    hook.register_forward_hook(lambda *_: calls.append(1))
    for examples in (EXAMPLES, EXAMPLES[::-1], EXAMPLES):
        outcome = forward(examples)
        torch.testing.assert_close(outcome.loss, expected, rtol=1e-5, atol=1e-4)
        ours = gradients(tuned, outcome.loss)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

    assert len(calls) == 1
    half = parameter.shape[1] // 2
    assert not ours.popitem()[1][:, :half].any(), "the lower layer's prefix moves"


def test_through_the_network_of_li_and_liang(folders: dict[str, Path]) -> None:
    check(folders["llama"], Method.PREFIX, "random", projection=True)


def test_an_encoder_decoder(folders: dict[str, Path]) -> None:
    check(folders["t5"], Method.PREFIX, "random")


def check(folder: Path, method: Method, init: str, **changed: Any) -> None:
    base = bases.load(str(folder), "float32")
    what = settings(folder, method, init=init, **changed)
    ids = base.tokenizer(init.removeprefix("text:")).input_ids[:4] if init != "random" else []
    tuned = prepare.trainee(base, what, ids).model
    for parameter in checkpoint.trainable(tuned).values():  # away from where nothing has an effect
        parameter.data.add_(
            0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        )

    outcome = prepare.forward(base, tuned, what)(EXAMPLES)
    expected = pefts_loss(folder, tuned)

    torch.testing.assert_close(outcome.loss, expected, rtol=1e-5, atol=1e-4)
    assert outcome.num_targets == 6
    ours, theirs = gradients(tuned, outcome.loss), gradients(tuned, expected)
    assert ours.keys() == theirs.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in ours.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_exact_is_what_greedy_decoding_gives(folders: dict[str, Path]) -> None:
    folder = folders["llama"]
    base = bases.load(str(folder), "float32")
    prompts = [[10, 11, 12], [99], [5, 6, 7, 8, 9, 10, 11]]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    prompt_of = dict(enumerate(prompts))
    greedy = {
        i: model.generate(
            torch.tensor([p]), max_new_tokens=5, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones(1, len(p)),
        )[0, len(p) :].tolist()
        for i, p in prompt_of.items()
    }  # fmt: skip
    what = settings(folder, Method.LORA)  # begins as the base model
    forward = prepare.forward(base, prepare.trainee(base, what, []).model, what)
    right = [Example(i, prompt_of[i], greedy[i]) for i in prompt_of]
    wrong = Example(9, prompts[0], [*greedy[0][:-1], (greedy[0][-1] + 1) % 200])

    assert forward(right).num_exact == 3
    assert forward([*right, wrong]).num_exact == 3
    assert forward([wrong]).num_exact == 0
