"""Callbacks of the trainers: when the reference moves, and by how much."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minionerec.training.callbacks import SyncReference


def filled(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    return layer


def test_the_reference_moves_towards_the_policy_by_alpha_after_every_so_many_steps():
    policy, reference = filled(1.0), filled(0.0)
    sync = SyncReference(lambda: policy, reference, every=2, alpha=0.25)
    found = []
    for step in range(1, 7):
        sync.on_step_end(None, SimpleNamespace(global_step=step), None)
        found.append(reference.weight[0, 0].item())
    assert found == pytest.approx([0, 0.25, 0.25, 0.4375, 0.4375, 0.578125])
    assert (policy.weight == 1).all() and torch.equal(reference.weight[0], reference.bias)
