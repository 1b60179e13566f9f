"""Training sees the very token ids that the server makes of a request."""

from __future__ import annotations

from typing import Any

import pytest

from foreword_tuner.encoding import Encoder
from foreword_tuner.errors import DataError, TunerError
from foreword_tuner.forms import Line
from prefix_store.definition import Definition
from server.generation.prompt import GenerateParams, PromptContext, prepare
from server.generation.sampling import RequestOptions
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, make_transformers_tokenizer

USER = {"role": "user", "content": "How  are you?\n"}


def encoder(tokenizer: Any, **options: Any) -> Encoder:
    return Encoder(
        tokenizer, tokenizer.eos_token_id, **{"template": "{prompt}", "chat": False} | options
    )


def served(tokenizer: Any, definition: Definition, **params: Any) -> list[int]:
    behind = PromptContext(num_prefix_tokens=4, definition=definition)
    asked = GenerateParams(options=RequestOptions(max_tokens=1), **params)
    prepared = prepare(asked, behind, tokenizer=Tokenizer(tokenizer), info=INFO)
    return prepared.token_ids


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    "template", ["{prompt}\n", "<|im_start|>Q: {prompt} ({lang}) A:", "{prompt}"]
)
def test_a_prompt_in_its_template(bos: bool, template: str) -> None:
    tokenizer = make_transformers_tokenizer(bos=bos)
    line = Line(1, "c", " Grüße,  7 ", {"prompt": " Grüße,  7 ", "lang": "de"})
    fields = {"lang": "de"} if "lang" in template else {}

    ids = encoder(tokenizer, template=template).prompt_ids(line)

    definition = Definition(template=template)
    assert ids == served(tokenizer, definition, prompt=line.prompt, fields=fields)


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_as_a_chat_message(bos: bool) -> None:
    tokenizer = make_transformers_tokenizer(bos=bos)
    line = Line(1, "c", USER["content"], {"prompt": USER["content"]})

    ids = encoder(tokenizer, chat=True).prompt_ids(line)

    assert ids == served(tokenizer, Definition(chat=True), prompt=line.prompt)


def test_messages_of_a_chat() -> None:
    tokenizer = make_transformers_tokenizer()
    line = Line(1, "c", "q", {}, ({"role": "system", "content": "Be brief."}, USER))

    ids = encoder(tokenizer, chat=True).prompt_ids(line)

    assert ids == served(tokenizer, Definition(chat=True), messages=list(line.messages))


def test_messages_do_not_go_into_a_template() -> None:
    line = Line(1, "c", "q", {}, (USER,))

    with pytest.raises(DataError, match="--template"):
        encoder(make_transformers_tokenizer(), chat=True, template="Q: {prompt}").prompt_ids(line)


def test_a_completion_ends_with_the_token_that_ends_it() -> None:
    tokenizer = make_transformers_tokenizer(bos=True)

    example = encoder(tokenizer).example(Line(1, "ab", "p", {"prompt": "p"}))

    assert example.completion_ids == [*tokenizer("ab").input_ids[1:], tokenizer.eos_token_id]
    assert example.num_tokens == 4  # <s> p a b


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (Line(3, "a</s>", "p", {"prompt": "p"}), "line 3: contains the special token </s>"),
        (Line(4, "a", "<s>", {"prompt": "<s>"}), "line 4: contains the special token <s>"),
        (Line(5, "a", "p", {"prompt": "p" * 99}), "line 5: 100 tokens, the limit is 50"),
        (Line(6, "a", "p", {}), "line 6: the template needs the fields: prompt"),
        (Line(7, "a", "p", {}, (USER,)), "line 7: `messages` need --chat"),
    ],
)
def test_lines_that_cannot_be_trained_on_are_listed(line: Line, said: str) -> None:
    good = Line(1, "a", "p", {"prompt": "p"})

    examples, problems = encoder(make_transformers_tokenizer()).examples(
        [good, line], max_tokens=50
    )

    assert [example.number for example in examples] == [1]
    assert problems == [said]


@pytest.mark.parametrize("template", ["{prompt", "{0}", "{prompt!r}", "{a.b}"])
def test_a_template_that_no_task_can_have_is_refused(template: str) -> None:
    with pytest.raises(TunerError, match="--template"):
        encoder(make_transformers_tokenizer(), template=template)


def test_a_chat_needs_a_chat_template() -> None:
    with pytest.raises(TunerError, match="no chat template"):
        encoder(make_transformers_tokenizer(chat_template=None), chat=True).prompt_ids(
            Line(1, "c", "p", {"prompt": "p"})
        )


def test_data_errors_are_errors_of_the_user() -> None:
    assert issubclass(DataError, TunerError)
