"""Argmax on the threads of the compiled layers, against the sampler's own."""

from __future__ import annotations

import pytest
import torch

from server.engine.native.build import NativeUnavailable
from server.engine.native.team import ThreadTeam
from server.engine.sampling import sampler
from server.engine.sampling.sampler import INVALID

NAN, INF = torch.nan, torch.inf


@pytest.fixture(scope="module")
def team() -> ThreadTeam:
    try:
        return ThreadTeam(2)
    except NativeUnavailable as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 49152])
def test_the_first_of_equal_highest_values_wins(
    team: ThreadTeam, width: int, dtype: torch.dtype
) -> None:
    x = torch.randn(33, width + 3, generator=torch.Generator().manual_seed(width)).to(dtype)
    x = x[:, :width]  # rows with gaps between them
    x[1] = x[1, 0]
    x[2] = -INF

    assert team.argmax(x).tolist() == sampler.argmax(x).tolist()
    assert team.argmax(x)[1:3].tolist() == [0, 0]


@pytest.mark.parametrize("place", [0, 5, 47, 49])
@pytest.mark.parametrize("nan", [NAN, -NAN])
def test_a_row_with_nan_is_invalid(team: ThreadTeam, place: int, nan: float) -> None:
    x = torch.randn(3, 50)
    x[1, place] = nan
    x[1, 20] = INF

    places = team.argmax(x).tolist()

    assert places == [int(x[0].argmax()), INVALID, int(x[2].argmax())]
