"""One SFT micro-batch, forward and backward.

Packed prefix trees against padded rows with whole logits.

    python benchmarks/sft_step.py --shape tiny --device cpu --repeats 5 --batch 16 python
    benchmarks/sft_step.py --shape qwen0.5b --device cpu --repeats 5 --batch 4 python
    benchmarks/sft_step.py --shape qwen0.5b --batch 16 --stock False      # the stock way needs more
    than 20 GB here

Rows are a random draw from the mixture of the five tasks, as ``sft.py`` trains on them. The stock
side pads to the longest row and gives ``labels`` to the model's own loss. Both sides include making
the batch. Parity: loss and every gradient in float32, on ``--parity`` of the rows.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import fire
import torch

from benchmarks import workload as w
from minionerec.catalogue.rows import Row, mixture
from minionerec.errors import one_line_errors
from minionerec.experiment.settings import SFTSettings
from minionerec.training.collate import collate_sft
from minionerec.training.likelihood import sft_logp

LossOf = Callable[[torch.nn.Module, list[Row]], torch.Tensor]


def stock_loss(model: torch.nn.Module, rows: list[Row]) -> torch.Tensor:
    """Right-padded rows, labels on the completions, the model's own loss over whole logits."""
    sequences = [row.prompt + row.completion for row in rows]
    width = max(map(len, sequences))

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (width - len(values))

    ids = torch.tensor([pad(s, 0) for s in sequences], device=model.device)
    mask = torch.tensor([pad([1] * len(s), 0) for s in sequences], device=model.device)
    labels = torch.tensor(
        [pad([-100] * len(row.prompt) + row.completion, -100) for row in rows], device=model.device
    )
    return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def our_loss(model: torch.nn.Module, rows: list[Row]) -> torch.Tensor:
    """What ``SFTTrainer`` computes."""
    inputs = collate_sft(rows)
    tensors = {key: value.to(model.device) for key, value in inputs.items()}
    return -sft_logp(model, tensors) / len(tensors["shift_labels"])


def step(
    loss_of: Callable[[torch.nn.Module, list[Row]], torch.Tensor],
    model: torch.nn.Module,
    rows: list[Row],
) -> float:
    """Forward and backward; the gradients stay."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, rows)
    loss.backward()
    return loss.item()


def main(
    shape: str = "tiny",
    device: str = "cpu",
    repeats: int = 5,
    batch: int = 16,
    micro_batches: int = 2,
    parity: int = 4,
    preamble: int = 0,
    data: str = "",
    threads: int = 1,
    stock: bool = True,
    checkpointing: bool = False,
) -> None:
    """Print seconds per micro-batch, tokens, memory, ratio and parity.

    With gradient checkpointing on both sides if asked for.
    """
    torch.set_num_threads(threads)
    sizes, work = w.shape_of(shape), w.load_workload(w.data_folder(data))
    rows = mixture(
        SFTSettings().tasks,
        work.samples.splits["train"],
        work.renderer,
        len(work.samples.items),
        seed=0,
    )
    wording = w.preamble(work, preamble)
    rows = [replace(row, prompt=wording + row.prompt) for row in rows]
    random.Random(0).shuffle(rows)
    drawn = [rows[i * batch : (i + 1) * batch] for i in range(micro_batches)]
    model = w.build_model(sizes, device=device).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ok = check_parity(model, drawn[0][:parity])
    peak = w.gemm_peak(sizes.dtype, device)
    ways = ({"stock": stock_loss} if stock else {}) | {"trees": our_loss}

    def all_steps(way: LossOf) -> None:
        for some in drawn:
            step(way, model, some)

    sides = {name: partial(all_steps, way) for name, way in ways.items()}
    seconds = {}
    for name, value in w.in_turns(sides, repeats, device).items():
        seconds[name] = value / micro_batches
    model.zero_grad(set_to_none=True)
    memory = {}
    for name, way in ways.items():
        memory[name] = w.peak_memory(partial(step, way, model, drawn[0]), device)

    real = 0.0
    padded = 0.0
    for some in drawn:
        lengths = [len(row.prompt) + len(row.completion) for row in some]
        real += sum(lengths) / micro_batches
        padded += batch * max(lengths) / micro_batches
    batches = [collate_sft(some) for some in drawn]
    tree = sum(len(b["tree"].input_ids) for b in batches) / micro_batches
    labels = sum(len(b["slots"]) for b in batches) / micro_batches
    flops = 6 * sizes.body * tree + 6 * sizes.head * labels
    print(
        f"{work.name}, {shape}, {device}, {threads} threads, {sizes.dtype}, micro-batch {batch}: "
        f"{real:.0f} real tokens, {padded:.0f} padded, {tree:.0f} in trees ({tree / real:.3f} of "
        f"real), {labels:.0f} rows of logits; "
        f"GEMM peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name, value in seconds.items():
        floor = (
            f", {flops / 1e9:.1f} GFLOP, {flops / value / peak:.0%} of the GEMM peak"
            if name == "trees"
            else ""
        )
        ratio = f", {seconds['stock'] / value:.1f} x" if stock and name != "stock" else ""
        print(
            f"{name:>6}: {value:.4f} s per micro-batch, {real / value:.0f} real tokens/s{ratio}, "
            f"peak memory {memory[name] / 2**20:.0f} MiB{floor}"
        )
    if stock:
        print(
            f"ratio: {seconds['stock'] / seconds['trees']:.2f}  parity: {'ok' if ok else 'FAILED'}"
        )
    sys.exit(not ok)


def check_parity(model: torch.nn.Module, rows: list[Row]) -> bool:
    """Loss within 1e-6 and every gradient within 2e-5 of its largest value, in float32."""
    dtype = model.dtype
    model.float()
    expected = step(stock_loss, model, rows)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    found = step(our_loss, model, rows)
    worst = w.gradient_gap(model, gradients)
    print(
        f"float32 parity on {len(rows)} rows: loss within {abs(found - expected):.1e}, "
        f"gradients within {worst:.1e} of each tensor's largest"
    )
    model.zero_grad(set_to_none=True)
    model.to(dtype)
    return abs(found - expected) <= 1e-6 * max(1.0, abs(expected)) and worst <= 2e-5


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
