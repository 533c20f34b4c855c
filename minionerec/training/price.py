"""What a training costs, said before it is paid: tokens, operations, memory and time.

Tokens are counted on the first batches of an epoch, operations follow from them, and time is that
of the run's own first steps, which count: nothing is trained twice. With ``--dry_run`` the run ends
after these steps and leaves nothing behind.

Formulas, with P weights in matrices of the body, T tokens, H width, I width of the MLP: a forward
takes 2 P T operations, a backward 4 P T (2 P T where the matrices are frozen below adapters), as in
Kaplan et al., arXiv:2001.08361, section 2.1; attention is left out, as prompts are short, and so is
the output layer, which reads few tokens. What a block keeps of a token for the backward pass was
counted with ``torch.autograd.graph.saved_tensors_hooks`` on blocks of Llama and Qwen2; Qwen3, which
normalises each head, keeps up to a quarter more.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TrainerCallback

from minionerec.experiment.progress import duration
from minionerec.experiment.run import say
from minionerec.model.tree_attention import base_causal_lm

COUNTED_BATCHES = 16
VALIDATION_ROWS = 64  # that are ranked to see how long a validation takes
TIMED_SECONDS = 5.0  # at least so long,
TIMED_STEPS = (3, 30)  # and so many steps; the first one, which allocates, is left out
FLOAT = 4  # bytes
ADAM = 2  # moments, in float32
# Floats that a block keeps of a token for the backward pass, per H and per I
KEPT = {"float32": (14.0, 4.0), "bfloat16": (12.0, 2.5)}
KEPT_AT_A_CHECKPOINT = 1.5  # per H
# CPUs whose flags name one of these multiply bfloat16 in hardware, with AMX in tiles of a matrix
AMX = "amx_bf16"
BFLOAT16 = {AMX, "avx512_bf16"}
# Width from which the advice is given; narrower models take minutes in either dtype
WIDE = 256


class Tokens(NamedTuple):
    """Tokens that a trainer's forwards read."""

    per_epoch: float
    largest: int  # of one forward of one process


def count_tokens(
    batches: Iterable[Sequence[int]], num_rows: int, tokens_of: Callable[[Sequence[int]], int]
) -> Tokens:
    """Count the first batches and scale up.

    Args:
        batches: of an epoch in random order, one for each forward: numbers of rows.
        num_rows: of the epoch.
        tokens_of: tokens of the forward over one of the batches.
    """
    # Rows are counted too: a process without rows in a step has an empty batch
    counted = [batch for batch in itertools.islice(batches, COUNTED_BATCHES) if batch]
    found = [tokens_of(batch) for batch in counted]
    share = sum(map(len, counted)) / num_rows
    return Tokens(sum(found) / share, max(found))


class Weights(NamedTuple):
    """Numbers in a model."""

    total: int
    trained: int
    body: int  # that every token is multiplied with: all but the embeddings
    frozen: bool  # whether the body is not trained itself


def count_weights(model: nn.Module) -> Weights:
    """Count the weights of a model, adapters included."""
    inner = base_causal_lm(model)
    # The embeddings are looked up and the output layer reads labelled slots only: neither is body.
    # Tied tables are one and the same tensor
    tables = {inner.get_input_embeddings().weight, inner.get_output_embeddings().weight}
    total = 0
    trained = 0
    body = 0
    trained_body = 0
    for parameter in model.parameters():
        size = parameter.numel()
        total += size
        trained += size * parameter.requires_grad
        if parameter not in tables:
            body += size
            trained_body += size * parameter.requires_grad
    return Weights(total, trained, body, trained_body < body / 2)


def operations(weights: Weights, tokens: float, passes: float = 0.0) -> float:
    """Operations of forward and backward over so many tokens.

    Args:
        weights: of the model.
        tokens: that are trained on.
        passes: further forwards over the same tokens without a backward: rollouts, a reference,
            checkpointed activations.
    """
    # Frozen matrices pass the gradient on, which is one product, and have none of their own
    backward = 2 if weights.frozen else 4
    return (2 + backward + 2 * passes) * weights.body * tokens


def memory(
    model: nn.Module,
    weights: Weights,
    tokens: int,
    *,
    bf16: bool,
    checkpointing: bool,
    copies: int,
    shards: int = 1,
) -> tuple[float, float]:
    """Bytes of one process: those that stay, and the activations of one forward.

    Args:
        model: that is trained.
        weights: its counts.
        tokens: of the largest forward of one process.
        bf16: whether the forward autocasts to bfloat16, for which it copies the matrices.
        checkpointing: whether activations are computed again.
        copies: further models beside it, such as a reference.
        shards: processes that share all this out (FSDP), each with a whole copy that decodes.
    """
    states = FLOAT * (weights.total * (1 + copies) + (1 + ADAM) * weights.trained) / shards
    if shards > 1:
        states += (2 if bf16 else FLOAT) * weights.total
    # Autocast keeps its copies of the matrices until the step is over
    elif bf16:
        states += 2 * weights.body
    config = base_causal_lm(model).config.get_text_config()
    width = config.hidden_size
    # GPT-2 calls it n_inner and leaves it out where it is 4 H
    inner = getattr(config, "intermediate_size", None) or 4 * width
    per_width, per_inner = KEPT["bfloat16" if bf16 else "float32"]
    block = per_width * width + per_inner * inner
    # The backward pass holds the gradients of one block's activations beside what is kept
    blocks = (config.num_hidden_layers + 1) * block
    if checkpointing:
        # Of every block its input, and one block as a whole while it is computed again
        blocks = config.num_hidden_layers * KEPT_AT_A_CHECKPOINT * width + 2 * block
    return states, FLOAT * tokens * blocks


def next_to_lower(stage: str, micro_batch: int, checkpointing: bool, tune: str) -> str:
    """What to change first where memory has run out, from the cheapest on; no step changes a loss.

    Args:
        stage: whose settings.
        micro_batch: rows of a forward.
        checkpointing: whether activations are computed again already.
        tune: ``model.tune``.
    """
    if micro_batch > 1:
        half = micro_batch // 2
        return f"{stage}.micro_batch_size from {micro_batch} to {half}: the steps stay as they are"
    if not checkpointing:
        return "memory at the cost of time: set model.gradient_checkpointing: true"
    if tune == "full":
        return "the number of trained weights: set model.tune: lora"
    return "model.max_tokens, or take a smaller model.backbone"


def describe(
    tokens: Tokens, work: float, epochs: float, needed: tuple[float, float], free: float | None
) -> str:
    """Two lines for people.

    Args:
        tokens: of an epoch.
        work: operations of an epoch.
        epochs: of the run.
        needed: bytes, as ``memory`` counts them.
        free: bytes; None where nobody knows.
    """
    states, activations = needed
    room = "" if free is None else f"; {in_bytes(free)} are free"
    return (
        f"an epoch: {tokens.per_epoch:,.0f} tokens, {work:.2g} operations; "
        f"{round(epochs, 2):g} epochs: {epochs * work:.2g}\n"
        f"memory: {in_bytes(states)} of weights, gradients and moments, "
        f"{in_bytes(activations)} of activations in the largest forward "
        f"({tokens.largest:,} tokens){room}"
    )


def in_bytes(number: float) -> str:
    """``1.5 GiB``.

    >>> in_bytes(1.5 * 2**30), in_bytes(2**20)
    ('1.5 GiB', '1 MiB')
    """
    if number >= 2**30:
        return f"{number / 2**30:.1f} GiB"
    return f"{number / 2**20:,.0f} MiB"


def free_memory() -> float | None:
    """Bytes that this process could still take, on its GPU or on the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            lines = dict(line.split(":", 1) for line in handle)
    except OSError:  # no Linux
        return None
    return float(lines["MemAvailable"].split()[0]) * 1024


def cpu_flags() -> set[str]:
    """What Linux says that this CPU can do; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            lines = [line for line in handle if line.startswith("flags")]
    except OSError:  # no Linux
        return set()
    return set(lines[0].partition(":")[2].split()) if lines else set()


def dtype_advice(bf16: bool, width: int, flags: set[str]) -> str:
    """A line where a CPU would train faster with the other ``model.dtype``; else nothing.

    It is not chosen by itself: the same configuration has the same results on every CPU.

    Args:
        bf16: whether training autocasts to bfloat16.
        width: of the model.
        flags: of the CPU; none where nobody knows.
    """
    if not bf16 and width >= WIDE and AMX in flags:
        return (
            "\nadvice: this CPU has AMX; a model as wide trains faster with model.dtype: bfloat16"
        )
    if bf16 and flags and not flags & BFLOAT16:
        return "\nadvice: this CPU has no bfloat16 products; model.dtype: float32 is far faster"
    return ""


class TimedSteps(TrainerCallback):
    """Times the first steps of a run and says how long all of it will take.

    Args:
        validation: seconds that one validation takes.
        only: end the run then, without a validation or a checkpoint.
    """

    def __init__(self, validation: float, only: bool):
        self.validation = validation
        self.only = only
        self.seconds: float | None = None  # of one step, once it is known
        self._steps = 0
        self._started = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time; on enough steps tell what it means."""
        now = time.perf_counter()
        # Also a step that is due for both: nothing may be written
        if self.only:
            control.should_evaluate = False
            control.should_save = False
        if self.seconds is not None:
            return
        # The clock starts when the first step is over
        if self._started == 0.0:
            self._started = now
        else:
            self._steps += 1
        passed = now - self._started
        least, most = TIMED_STEPS
        # A run may be over before there are enough
        is_enough = self._steps >= least and (passed >= TIMED_SECONDS or self._steps >= most)
        if not is_enough and state.global_step < state.max_steps:
            return
        self.seconds = passed / max(1, self._steps)
        say(self.told(state.max_steps - state.global_step, state.max_steps, args.eval_steps))
        control.should_training_stop = control.should_training_stop or self.only

    def told(self, left: int, steps: int, eval_steps: int) -> str:
        """``estimate: 0.31 s a step, 6 validations of 8 s; all 2,310 steps take 13 min``."""
        validations = -(-steps // eval_steps)
        every = (self.seconds or 0.0) * steps + validations * self.validation
        return (
            f"estimate: {self.seconds:.3g} s a step, {self.validation:.2g} s a validation; all "
            f"{steps:,} steps and {validations} validations: {duration(every)} ({every:.0f} s)"
        )


def of(trainer: Any) -> str:
    """What a training of ``minionerec_trainer`` costs, in words: tokens, operations, memory."""
    args = trainer.args
    weights = count_weights(trainer.model)
    tokens = count_tokens(trainer.batches, len(trainer.train_dataset), trainer.forward_tokens)
    needed = memory(
        trainer.model,
        weights,
        tokens.largest,
        bf16=args.bf16,
        checkpointing=args.gradient_checkpointing,
        copies=trainer.copies(),
        shards=args.world_size if trainer.whole_copy is not None else 1,
    )
    # Several passes over the same rollouts are steps, so that they are in the epochs already
    work = operations(weights, tokens.per_epoch, trainer.further_forwards())
    # RL is told in steps, SFT in epochs
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        epochs = args.max_steps * trainer.batches.global_batch_size / len(trainer.train_dataset)
    told = describe(tokens, work, epochs, needed, free_memory())
    if args.device.type != "cpu":
        return told
    width = base_causal_lm(trainer.model).config.get_text_config().hidden_size
    return told + dtype_advice(args.bf16, width, cpu_flags())


def seconds_of_validation(trainer: Any, rows: int) -> float:
    """How long a validation takes, from one of fewer rows."""
    start = time.perf_counter()
    trainer.validate(trainer.whole_model(), VALIDATION_ROWS)
    seconds = time.perf_counter() - start
    return seconds * max(1.0, rows / VALIDATION_ROWS)
