"""What a model can do, tried on a few tokens.

Does it read from left to right, and does it take token trees?
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minionerec.model.token_trees import pack_trees


def mixes_tokens_otherwise(model: PreTrainedModel) -> bool:
    """Whether layers carry information between tokens by other means than attention.

    A recurrent state (Mamba, RWKV) or a convolution over time (LFM2, Jamba) cannot be told what a
    tree is: neighbours in the packed row would leak into each other.
    """
    if model._is_stateful:
        return True
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            return True
    return False


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether a tree forward of this model gives what plain forwards give.

    False for architectures whose layers mix tokens by other means than attention, or whose
    attention does more than ``block_attention`` does. The model must have its ``tree`` keyword
    already.
    """
    if mixes_tokens_otherwise(model):
        return False
    # Token ids within any vocabulary
    vocabulary = model.get_input_embeddings().weight.shape[0]
    sequences = []
    for sequence in ([5, 6, 7, 8, 9], [5, 6, 17, 18], [5, 26, 27]):
        sequences.append([token % vocabulary for token in sequence])
    tree = pack_trees(sequences, block_length=6).to(model.device)
    slots = torch.from_numpy(np.concatenate(tree.nodes)).to(model.device)
    # Three sequences that branch twice, in blocks that end inside a sequence: every case of the
    # layout
    everything = torch.arange(model.config.get_text_config().vocab_size, device=model.device)
    with _probing(model):
        expected = torch.cat([_logits(model, sequence) for sequence in sequences])
        try:
            found = model(
                tree=tree,
                slots=slots,
                readout=lambda hidden, head: head.columns(hidden, everything),
            )
        except (TypeError, ValueError, RuntimeError, AttributeError):
            # layers that know nothing of ``blocks``, or have no attention interface
            return False
    return _equal(found, expected, 1e-3 if model.dtype == torch.float32 else 5e-2)


def reads_from_left_to_right(model: PreTrainedModel) -> bool:
    """Whether a later token leaves the logits of earlier ones as they are.

    A bidirectional encoder would see the very token that it is asked to predict.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    one = [token % vocabulary for token in (5, 6, 7, 8)]
    # A causal model gives the first three the same logits to the last bit, or nearly so with
    # experts
    other = [*one[:3], (one[3] + 1) % vocabulary]
    with _probing(model):
        before = _logits(model, one)[:3]
        after = _logits(model, other)[:3]
    # Spoilt weights are refused where they are used, by a message that says so
    if not (before.isfinite().all() and after.isfinite().all()):
        return True
    return _equal(before, after, 1e-4 if model.dtype == torch.float32 else 2e-2)


def _logits(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    """``(T, V)`` of one sequence, in float32."""
    ids = torch.tensor([sequence], device=model.device)
    return model(input_ids=ids, use_cache=False).logits[0].float()


def _equal(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    # Relative to the largest logit, as rounding is
    scale = expected.abs().max().clamp(min=1.0)
    return bool((found - expected).abs().max() <= tolerance * scale)


@contextlib.contextmanager
def _probing(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, no gradients, and weights as large as those of a trained model."""
    was_training = model.training
    model.eval()
    hooks = _with_unit_gain(model) if model.dtype == torch.float32 else []
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)


def _with_unit_gain(model: PreTrainedModel) -> list[torch.utils.hooks.RemovableHandle]:
    """Scale up what small linear and convolutional layers give; returns the hooks that do it.

    At initialisation weights are so small (.02) that a block hardly changes the residual stream: a
    token that leaked into its neighbour would stay below any tolerance.
    """
    hooks = []
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Conv1d | Conv1D):
            continue
        if module is model.get_output_embeddings():
            continue
        # Unit gain: outputs of about the size of the inputs. 64 rows tell the weights' size well
        # enough.
        sample = module.weight.detach()[:64].float()
        inputs = module.weight.shape[0] if isinstance(module, Conv1D) else sample[0].numel()
        gain = float(sample.std()) * math.sqrt(inputs)
        if 0 < gain < 1:
            hooks.append(module.register_forward_hook(_scaled_by(1 / gain)))
    return hooks


def _scaled_by(factor: float) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    """A forward hook that multiplies a module's output."""

    def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        return output * factor

    return hook
