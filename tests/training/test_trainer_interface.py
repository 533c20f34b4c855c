"""What the trainers override or call of ``transformers.Trainer`` without a promise that it stays.

A library update that renames or changes one of these methods fails here, with its name, instead of
in a run whose checkpoints are no longer ours.
"""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer

import minionerec_trainer
from minionerec.training import ranking_trainer

# as of transformers 5.23
SIGNATURES = {
    "_run_epoch": (
        "self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
        "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, "
        "steps_trained_in_current_epoch"
    ),
    "_init_training_state": (
        "self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, "
        "trial"
    ),
    "_save_checkpoint": "self, model, trial",
    "_get_output_dir": "self, trial",
    "_load_best_model": "self",
    "_load_from_checkpoint": "self, resume_from_checkpoint, model",
    # public, but ours must still take what the Trainer passes
    "save_model": "self, output_dir, _internal_call",
    "compute_loss": "self, model, inputs, return_outputs, num_items_in_batch",
    "training_step": "self, model, inputs, num_items_in_batch",
    "evaluate": "self, eval_dataset, ignore_keys, metric_key_prefix",
    "log": "self, logs, start_time",
    "floating_point_ops": "self, inputs",
    "get_train_dataloader": "self",
}
TRAINERS = (
    minionerec_trainer.RankingTrainer,
    minionerec_trainer.SFTTrainer,
    minionerec_trainer.GRPOTrainer,
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_method_of_the_trainer_that_ours_builds_on_is_as_it_was(name):
    found = inspect.signature(getattr(Trainer, name))
    assert ", ".join(found.parameters) == SIGNATURES[name]


def test_the_list_names_every_method_of_the_trainer_that_ours_override():
    overridden = set()
    for trainer in TRAINERS:
        overridden |= {name for name in vars(trainer) if callable(getattr(Trainer, name, None))}
    assert overridden - {"__init__"} == set(SIGNATURES)


def test_no_private_method_of_the_trainer_is_called_without_being_listed():
    """``super()._name`` or ``self._name`` of the Trainer's, in the source of the three classes."""
    source = inspect.getsource(minionerec_trainer) + inspect.getsource(ranking_trainer)
    private = [name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")]
    called = {name for name in private if f"self.{name}(" in source or f"super().{name}(" in source}
    assert called <= set(SIGNATURES)


def test_the_trainer_still_counts_labels_of_the_whole_batch_where_it_is_told_to():
    """Without this attribute losses would be means of micro-batches."""
    assert "model_accepts_loss_kwargs" in inspect.getsource(Trainer)
