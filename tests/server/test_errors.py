from __future__ import annotations

from prefix_store.errors import PrefixStoreError
from server import errors
from server.api.http.problems import STATUS, status_of
from server.errors import ServerError

Error = type[PrefixStoreError] | type[ServerError]


def leaves(cls: Error) -> list[Error]:
    return [leaf for sub in cls.__subclasses__() for leaf in leaves(sub)] or [cls]


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    found = leaves(PrefixStoreError) + leaves(ServerError)

    assert all(any(base in STATUS for base in error.__mro__) for error in found)
    assert len({error.code for error in found}) == len(found)


def test_the_nearest_base_decides_the_status() -> None:
    assert status_of(errors.EngineUnavailable("x")) == 503
    assert status_of(errors.PrefixUnavailable("x")) == 503
    assert status_of(errors.StepFailed("x")) == 500
    assert status_of(errors.TemplateMismatch("x")) == 422


def test_the_tree_at_the_top_of_the_module_names_every_error() -> None:
    drawn = {line.split()[-1] for line in (errors.__doc__ or "").splitlines() if line[:6].strip()}

    assert {error.__name__ for error in leaves(ServerError)} <= drawn


def test_a_prompt_that_is_too_long_says_all_counts() -> None:
    error = errors.PromptTooLong(prefix_tokens=20, prompt_tokens=11, max_tokens=4, limit=32)

    assert str(error) == (
        "20 prefix tokens + 11 prompt tokens + 4 max_tokens = 35, the context holds 32"
    )
