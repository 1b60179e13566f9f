from __future__ import annotations

import pickle

import pytest

from foreword_client import errors
from foreword_client.errors import APIStatusError, ForewordError, Problem, of_problem


def _all(kind: type[ForewordError]) -> set[type[ForewordError]]:
    return {kind}.union(*(_all(sub) for sub in kind.__subclasses__()))


OURS = {kind for kind in _all(ForewordError) if kind.__module__ == errors.__name__}


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = {word for line in (errors.__doc__ or "").splitlines() for word in line.split()[1:2]}

    assert {kind.__name__ for kind in OURS} == {name for name in drawn if name.endswith("Error")}


def test_every_refusal_is_reached_by_a_code_or_a_status() -> None:
    refusals = {kind for kind in OURS if issubclass(kind, APIStatusError)}
    reached = {*errors.BY_CODE.values(), *errors.BY_STATUS.values()}

    assert refusals - reached == {APIStatusError, errors.ServerFailureError}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "unknown_task", errors.UnknownTaskError),
        (404, "not_found", errors.NotFoundError),
        (415, "unsupported_media_type", errors.InvalidUploadError),
        (429, "overloaded", errors.OverloadedError),
        (500, "internal", errors.ServerFailureError),
        (503, "engine_unavailable", errors.UnavailableError),
        (502, "unknown", errors.ServerFailureError),
        (418, "teapot", APIStatusError),
        (302, "unknown", APIStatusError),
    ],
)
def test_the_code_decides_and_then_the_status(
    status: int, code: str, kind: type[APIStatusError]
) -> None:
    assert type(of_problem(Problem(status, code, "t", "d"))) is kind


def test_an_error_tells_all_it_knows_and_survives_pickling() -> None:
    problem = Problem(429, "overloaded", "Too Many Requests", "full", "r1", 2.0)

    error = pickle.loads(pickle.dumps(of_problem(problem)))

    assert isinstance(error, errors.OverloadedError)
    assert str(error) == error.detail == "full"
    assert (error.status, error.code, error.title) == (429, "overloaded", "Too Many Requests")
    assert (error.request_id, error.retry_after_s) == ("r1", 2.0)
