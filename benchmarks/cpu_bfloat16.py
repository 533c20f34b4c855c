"""One SFT micro-batch, forward and backward, on a CPU: ``model.dtype: bfloat16`` against float32.

    python benchmarks/cpu_bfloat16.py                        # SmolLM2's first ten blocks
    python benchmarks/cpu_bfloat16.py --shape tiny           # a narrow model
    python benchmarks/cpu_bfloat16.py --trie False           # logits of the whole vocabulary

Both sides train the same float32 weights on the same packed rows of the tasks sid_to_sid and
title_to_sid; one under autocast, as ``sft.py`` does it. Parity: the loss within 1 %, and every
matrix's gradient points where that of float32 does (cosine above .98).
"""

from __future__ import annotations

import random
import sys
from functools import partial
from typing import Any

import fire
import torch

from benchmarks import workload as w
from minionerec.catalogue.rows import mixture
from minionerec.errors import one_line_errors
from minionerec.experiment.settings import SFTSettings
from minionerec.training.collate import collate_sft
from minionerec.training.likelihood import sft_logp
from minionerec.training.price import BFLOAT16, cpu_flags

TASKS = SFTSettings(tasks={"sid_to_sid": 1.0, "title_to_sid": 1.0}).tasks


def step(model: torch.nn.Module, inputs: dict[str, Any], bf16: bool) -> float:
    """Forward and backward; the gradients stay."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = -sft_logp(model, inputs) / len(inputs["shift_labels"])
    loss.backward()
    return loss.item()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of every matrix, a copy."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.dim() == 2}


def main(
    shape: str = "smollm2",
    repeats: int = 3,
    batch: int = 128,
    data: str = "",
    threads: int = 1,
    trie: bool = True,
) -> None:
    """Print seconds of both, their ratio and parity.

    Args:
        shape: of the model.
        repeats: timed turns.
        batch: rows of a forward.
        data: folder with items.csv, interactions.csv, index.json.
        threads: of torch.
        trie: normalise over legal children, as ``model.normalize: trie``.
    """
    torch.set_num_threads(threads)
    sizes, work = w.shape_of(shape), w.load_workload(w.data_folder(data), template="compact")
    samples = work.samples
    rows = mixture(TASKS, samples.splits["train"], work.renderer, len(samples.items), seed=0)
    drawn = random.Random(0).sample(list(rows), batch)
    paths = [work.trie.item_path(item) for item in range(work.trie.num_items)]
    inputs = collate_sft(drawn, True, work.trie if trie else None, paths)
    model = w.build_model(sizes, torch.float32).train()

    losses = {}
    found = {}
    for bf16 in (False, True):
        losses[bf16] = step(model, inputs, bf16)
        found[bf16] = gradients(model)
    alike = min(
        torch.cosine_similarity(gradient.flatten(), found[False][name].flatten(), dim=0).item()
        for name, gradient in found[True].items()
    )
    gap = abs(losses[True] / losses[False] - 1)
    ok = gap <= 0.01 and alike > 0.98

    sides = {str(bf16): partial(step, model, inputs, bf16) for bf16 in (False, True)}
    seconds = w.in_turns(sides, repeats, "cpu")
    peaks = [w.gemm_peak(dtype, "cpu") / 1e9 for dtype in (torch.float32, torch.bfloat16)]
    flags = ", ".join(sorted(cpu_flags() & BFLOAT16)) or "no bfloat16 products"
    tokens = inputs["tree"].input_ids.numel()
    print(
        f"{work.name}, {shape}, {threads} threads, CPU with {flags}: {tokens:,} tokens, "
        f"{len(inputs['slots']):,} labelled slots; GEMM peak {peaks[0]:.0f} and "
        f"{peaks[1]:.0f} GFLOP/s"
    )
    print(
        f"float32 {seconds['False']:.3f} s, loss {losses[False]:.4f}; bfloat16 "
        f"{seconds['True']:.3f} s, loss {losses[True]:.4f}; gradients' least cosine {alike:.4f}"
    )
    ratio = seconds["False"] / seconds["True"]
    print(f"ratio: {ratio:.2f}  parity: {'ok' if ok else 'FAILED'}")
    sys.exit(not ok)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
