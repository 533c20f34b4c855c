"""Callbacks of the trainers: when the reference moves, and by how much."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minionerec.training.callbacks import StopSignal, SyncReference


def filled(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    return layer


def test_the_reference_moves_towards_the_policy_by_alpha_after_every_so_many_steps():
    policy, reference = filled(1.0), filled(0.0)
    sync = SyncReference(policy, reference, every=2, alpha=0.25)
    found = []
    for step in range(1, 7):
        sync.on_step_end(None, SimpleNamespace(global_step=step), None)
        found.append(reference.weight[0, 0].item())
    assert found == pytest.approx([0, 0.25, 0.25, 0.4375, 0.4375, 0.578125])
    assert (policy.weight == 1).all() and torch.equal(reference.weight[0], reference.bias)


def test_a_run_stops_only_between_two_batches_of_rollouts():
    """What is reused for several steps is not saved, so a signal waits for the last of them."""
    stop = StopSignal()
    stop.every = 3
    stop.received = 15
    saved = []
    for step in range(1, 7):
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        stop.on_step_end(SimpleNamespace(device="cpu"), SimpleNamespace(global_step=step), control)
        assert control.should_save == control.should_training_stop
        saved.append(control.should_save)
    assert saved == [False, False, True, False, False, True]
