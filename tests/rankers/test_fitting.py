"""How the small networks are fitted: which epoch's weights are handed on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from minionerec.rankers import fitting


def test_the_model_ends_with_the_weights_of_its_best_epoch():
    """Every epoch adds 1 to the only weight; the second is best, two worse ones end the training."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()

    def epoch() -> Iterator[float]:
        model.weight.data += 1.0
        yield 0.5

    reached = iter([0.1, 0.5, 0.2, 0.4, 0.9])
    log: list[dict[str, Any]] = []
    fitting.fit("x", model, epoch, lambda: next(reached), 5, 2, log.append)
    assert [row["valid_NDCG@10"] for row in log] == [0.1, 0.5, 0.2, 0.4]
    assert torch.equal(model.weight.data, torch.tensor([[2.0]]))
