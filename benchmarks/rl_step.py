"""One RL micro-batch (rollouts, reference, policy forward and backward).

Shared prompts against replicated ones.

    python benchmarks/rl_step.py --shape tiny --device cpu --repeats 5 --groups 4
    python benchmarks/rl_step.py --shape qwen0.5b --device cpu --repeats 5 --groups 2

Prompts are a mixture of the paper's three RL tasks, G completions each. The stock side rolls out
with ``generate`` and ``prefix_allowed_tokens_fn``, repeats every prompt G times, and takes
log-softmax of the completion's logits (``logits_to_keep``), as TRL does. Both sides use the same
loss: clipped ratio plus k3 KL. Parity, in float32 on ``--parity`` prompts: the same completions,
log-probabilities, loss and gradients.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace

import fire
import torch
from transformers import TrainingArguments

from benchmarks import workload as w
from benchmarks.decode import stock_decoder
from minionerec.catalogue.rows import Row, mixture
from minionerec.errors import one_line_errors
from minionerec.experiment.settings import RL_PRESETS, RLSettings
from minionerec.training.objective import group_advantages, k3_kl
from minionerec_trainer import GRPOTrainer

LEVELS = 3


def reward_of(items: torch.Tensor) -> torch.Tensor:
    """An arbitrary reward with variance in every group: a random model never hits a target."""
    return (items % 7) / 7.0


class Stock:
    """The usual way, in plain calls."""

    def __init__(
        self,
        model: torch.nn.Module,
        ref_model: torch.nn.Module,
        sids: list[list[int]],
        group: int,
        beta: float,
    ):
        self.model = model
        self.ref_model = ref_model
        self.group = group
        self.beta = beta
        self.decode = stock_decoder(model, sids, group, end=False)
        self.item_of = {tuple(sid): item for item, sid in reversed(list(enumerate(sids)))}

    def roll_out(self, rows: list[Row]) -> list[list[tuple[int, ...]]]:
        """G completions per prompt."""
        self.model.eval()
        with torch.no_grad():
            completions, _ = self.decode([row.prompt for row in rows], False)
        self.model.train()
        return completions

    def logps(self, model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``(B * G, L)`` of the last L tokens."""
        logits = (
            model(input_ids=ids, attention_mask=mask, logits_to_keep=LEVELS + 1, use_cache=False)
            .logits[:, :-1]
            .float()
        )
        return logits.log_softmax(-1).gather(2, ids[:, -LEVELS:, None])[..., 0]

    def loss(
        self, rows: list[Row], completions: list[list[tuple[int, ...]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and per-token log-probabilities of the given completions."""
        width = max(len(row.prompt) for row in rows)
        id_rows = []
        mask_rows = []
        for row, group in zip(rows, completions, strict=True):
            for completion in group:
                padding = [0] * (width - len(row.prompt))
                id_rows.append(padding + row.prompt + list(completion))
                mask_rows.append(padding + [1] * (len(row.prompt) + LEVELS))
        ids = torch.tensor(id_rows, device=self.model.device)
        mask = torch.tensor(mask_rows, device=self.model.device)
        items = torch.tensor(
            [[self.item_of[c] for c in group] for group in completions], device=self.model.device
        )
        advantages = group_advantages(
            reward_of(items), torch.ones_like(items, dtype=torch.bool)
        ).flatten()[:, None]
        with torch.no_grad():
            reference = self.logps(self.ref_model, ids, mask)
        logps = self.logps(self.model, ids, mask)
        ratio = torch.exp(logps - logps.detach())
        per_token = -torch.min(
            ratio * advantages, ratio.clamp(0.8, 1.2) * advantages
        ) + self.beta * k3_kl(logps, reference)
        return per_token.mean(), logps.detach()


def main(
    shape: str = "tiny",
    device: str = "cpu",
    repeats: int = 5,
    groups: int = 4,
    generations: int = 16,
    parity: int = 2,
    preamble: int = 0,
    data: str = "",
    threads: int = 1,
    stock: bool = True,
) -> None:
    """Print seconds per prompt of both ways, parts, memory, ratio and parity."""
    torch.set_num_threads(threads)
    sizes = w.shape_of(shape)
    work = w.load_workload(w.data_folder(data))
    settings = RLSettings(**{**RL_PRESETS["paper"], "num_generations": generations})
    rows = rows_of(work, settings, w.preamble(work, preamble), groups)
    ours, stocks = both_ways(work, sizes, settings, rows, device)
    sids = [list(sid) for sid in work.sids.token_ids(work.tokenizer)]
    ok = check_parity(ours, stocks, rows[:parity], sids)

    peak = w.gemm_peak(sizes.dtype, device)
    sides = parts_of_a_step(ours, stocks if stock else None, rows)
    seconds = w.in_turns(sides, repeats, device)
    ours.model.zero_grad(set_to_none=True)
    memory = {name: w.peak_memory(sides[name], device) for name in sides if "update" in name}

    lengths = [len(row.prompt) for row in rows]
    print(
        f"{work.name}, {shape}, {device}, {threads} threads, {sizes.dtype}, {groups} prompts of "
        f"{min(lengths)} to "
        f"{max(lengths)} tokens x {generations} completions; GEMM peak {peak / 1e9:.0f} GFLOP/s"
    )
    gradients = sum(p.numel() * p.element_size() for p in ours.model.parameters())
    print_parts(seconds, memory, groups, gradients)
    whole = seconds["rollouts"] + seconds["update"]
    flops = most_operations(sizes, lengths, generations)
    print(
        f"{'whole step':>14}: {whole / groups:.4f} s per prompt, {flops / groups / 1e9:.1f} GFLOP "
        "at most, "
        f"{flops / whole / peak:.0%} of the GEMM peak"
    )
    if stock:
        usual = seconds["stock rollouts"] + seconds["stock update"]
        print(f"ratio: {usual / whole:.2f}  parity: {'ok' if ok else 'FAILED'}")
    sys.exit(not ok)


def rows_of(work: w.Workload, settings: RLSettings, wording: list[int], count: int) -> list[Row]:
    """So many prompts of the mixture of tasks, each behind the wording."""
    train = work.samples.splits["train"]
    mixed = mixture(settings.tasks, train, work.renderer, len(work.samples.items), seed=0)
    rows = [replace(row, prompt=wording + row.prompt) for row in mixed]
    random.Random(0).shuffle(rows)
    return pick_mixture(rows, count)


def both_ways(
    work: w.Workload, sizes: w.Shape, settings: RLSettings, rows: list[Row], device: str
) -> tuple[GRPOTrainer, Stock]:
    """The trainer and the usual way, on the same model and the same reference."""
    model = w.build_model(sizes, device=device, seed=0)
    ref_model = w.build_model(sizes, device=device, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=device == "cpu",
            report_to=[],
            max_steps=1,
            remove_unused_columns=False,
            per_device_train_batch_size=len(rows),
        )
        trainer = GRPOTrainer(
            model,
            arguments,
            rows,
            None,
            None,
            lambda _: {},
            trie=work.trie,
            settings=settings,
            normalize="vocab",
            reward=lambda items, *_: {"arbitrary": reward_of(items)},
            ref_model=ref_model.requires_grad_(False),
        )
    sids = [list(sid) for sid in work.sids.token_ids(work.tokenizer)]
    return trainer, Stock(model, ref_model, sids, settings.num_generations, settings.beta)


def parts_of_a_step(
    trainer: GRPOTrainer, stock: Stock | None, rows: list[Row]
) -> dict[str, Callable[[], object]]:
    """What is timed, by name: rollouts and update, ours and where asked for the usual ones."""
    model = trainer.model
    rollouts = trainer.roll_out(rows)

    def update() -> None:
        model.zero_grad(set_to_none=True)
        trainer.loss_of(model, rollouts, list(range(len(rows)))).loss.backward()

    parts: dict[str, Callable[[], object]] = {
        "rollouts": lambda: trainer.roll_out(rows),
        "update": update,
    }
    if stock is None:
        return parts
    completions = stock.roll_out(rows)

    def stock_update() -> None:
        model.zero_grad(set_to_none=True)
        stock.loss(rows, completions)[0].backward()

    parts["stock rollouts"] = lambda: stock.roll_out(rows)
    parts["stock update"] = stock_update
    return parts


def print_parts(
    seconds: dict[str, float], memory: dict[str, int], groups: int, gradients: int
) -> None:
    """A line for every part of a step.

    Args:
        seconds: of each part.
        memory: peak bytes of those that were measured.
        groups: how many prompts a part took.
        gradients: bytes of the gradients, which do not grow with the prompts.
    """
    for name, value in seconds.items():
        line = f"{name:>14}: {value / groups:.4f} s per prompt"
        usual = seconds.get(f"stock {name}")
        if usual is not None:
            line += f", {usual / value:.1f} x"
        if name in memory:
            own = max(0, memory[name] - gradients) / 2**20 / groups
            line += (
                f", peak memory {memory[name] / 2**20:.0f} MiB, {own:.1f} per prompt beyond the "
                "gradients"
            )
        print(line)


def most_operations(sizes: w.Shape, lengths: list[int], generations: int) -> int:
    """Operations of a step without shared prefixes.

    A forward each for rollouts, reference and policy, and a backward of two, over prompt and
    completions.
    """
    total = 0
    for length in lengths:
        body = 2 * sizes.body * (length + 2 * generations)
        head = 2 * sizes.head * (1 + 2 * generations)
        total += 5 * (body + head)
    return total


def pick_mixture(rows: list[Row], count: int) -> list[Row]:
    """Tasks in turn, so that a few rows are a mixture too."""
    tasks: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.task):
        tasks.setdefault(row.task, []).append(row)
    turns: list[Row] = []
    for together in zip(*tasks.values(), strict=False):
        turns += together
        if len(turns) >= count:
            break
    return turns[:count]


def check_parity(
    trainer: GRPOTrainer, reference: Stock, rows: list[Row], sids: list[list[int]]
) -> bool:
    """Completions equal, log-probabilities and gradients within 2e-5, loss within 1e-6.

    In float32.
    """
    model = trainer.model
    dtype = model.dtype
    for one in (model, reference.ref_model):
        one.float()
    rollouts = trainer.roll_out(rows)
    completions = reference.roll_out(rows)
    codes, levels = trainer.trie.code, trainer.trie.level_tokens
    paths = trainer.trie.path(rollouts.nodes, LEVELS)
    found = torch.stack(
        [levels[level][codes[paths[..., level]].long()] for level in range(LEVELS)], dim=-1
    ).tolist()
    equal = [[tuple(c) for c in group] for group in found] == completions
    model.zero_grad(set_to_none=True)
    expected, logps = reference.loss(rows, completions)
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    loss, _ = trainer.loss_of(model, rollouts, list(range(len(rows))))
    loss.backward()
    gap = (rollouts.old_logps.view(-1, LEVELS) - logps).abs().max().item()
    worst = w.gradient_gap(model, gradients)
    print(
        f"float32 parity on {len(rows)} prompts: completions {'equal' if equal else 'DIFFER'}, "
        f"log-probabilities within {gap:.1e}, "
        f"loss within {abs(loss.item() - expected.item()):.1e}, gradients within {worst:.1e} of "
        "each tensor's largest"
    )
    for one in (model, reference.ref_model):
        one.to(dtype)
    return equal and gap <= 2e-5 and abs(loss.item() - expected.item()) <= 1e-6 and worst <= 2e-5


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
