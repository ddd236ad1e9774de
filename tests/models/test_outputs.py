"""What a model says, looked at in part: the same as over whole rows, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blackbox_proxy.models.outputs import Logits


@pytest.mark.parametrize("width", [40, 900, 32_003, 151_936])
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_are_normalised_and_sorted_as_torch_does_it(rows: int, width: int) -> None:
    logits = 3.0 * torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    said = Logits(logits)
    values, ids = torch.topk(torch.log_softmax(logits.double(), -1), min(128, width))
    for place in range(rows):
        found, of_them = said.top(place, 128)
        assert found.tolist() == ids[place].tolist()
        assert of_them == pytest.approx(values[place].numpy(), abs=1e-5)
        assert np.exp(said.row(place)).sum() == pytest.approx(1.0, abs=1e-4)


def test_a_row_is_the_same_alone_and_among_others() -> None:
    """p hangs on the text, not on what else is read at the same time (law 5)."""
    logits = torch.randn(4, 70_000, generator=torch.Generator().manual_seed(0))
    together = Logits(logits)
    for place in range(4):
        alone = Logits(logits[place : place + 1])
        assert np.array_equal(alone.row(0), together.row(place))
