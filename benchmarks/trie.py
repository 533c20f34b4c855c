"""What may follow a beam.

Integer tables against a Python dict, from 4,000 to 10,000,000 items of 256 x 256 x 256 codes.

    python benchmarks/trie.py                                        # CPU, the tiny model for the
    whole search python benchmarks/trie.py --device cuda --shape qwen0.5b --repeats 20

Three tables: building; one step's look-up for 8 x 50 beams at levels 2 and 3, against the
reference's way (a dict from the prefix's token tuple to its allowed tokens, looked up beam by beam,
written into a mask over the vocabulary); and whole searches of a randomly initialised model with
each catalogue. Sides and sizes take turns in one process; medians. A dict of 10,000,000 items needs
about 9 GB, so it is built from the codes for the prefixes of the beams that are asked for; its
look-ups cost the same or less. Parity: the allowed sets of all beams are equal, at every size and
level. The ratio is the smallest of all sizes and levels.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import fire
import numpy as np
import torch
from torch import Tensor

from benchmarks.workload import build_model, shape_of
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import one_line_errors
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import make_decoder

SIZES, LEVELS, CODES = (4_000, 1_000_000, 10_000_000), 3, 256
BATCH, BEAMS, PROMPT = 8, 50, 40


def catalogue(num_items: int) -> np.ndarray:
    """``(N, L)`` random codes; a few items share a SID."""
    return np.random.default_rng(num_items).integers(0, CODES, (num_items, LEVELS), dtype=np.int32)


def build(num_items: int, first_token: int, device: str) -> SidTrie:
    """The trie of a catalogue, and a line on what it took."""
    codes = catalogue(num_items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    trie = SidTrie(
        codes,
        [
            range(first_token + level * CODES, first_token + (level + 1) * CODES)
            for level in range(LEVELS)
        ],
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{num_items:>10,} items: built in {wall:.2f} s ({cpu:.2f} s of CPU time), "
        f"{trie.nbytes / 1e6:.1f} MB of tables, "
        f"peak memory raised by {peak:.0f} MB, {trie.num_leaves:,} SIDs, most children per level "
        f"{trie.fan_out[:LEVELS]}"
    )
    return trie.to(device)


def beams_of(trie: SidTrie, level: int) -> Tensor:
    """``(B, W)`` nodes of random items at a depth."""
    items = np.random.default_rng(level).integers(0, trie.num_items, BATCH * BEAMS)
    leaves = torch.from_numpy(trie.leaf_of_item[items]).to(trie.leaf_node.device)
    return trie.path(trie.leaf_node[leaves].long(), LEVELS)[:, level - 1].view(BATCH, BEAMS)


def allowed_table(
    num_items: int, prefixes: Tensor, first_token: int
) -> dict[tuple[int, ...], list[int]]:
    """prefix tokens -> allowed tokens, for the given ``(R, level)`` prefixes.

    Straight from the codes.
    """
    level, codes = prefixes.shape[1], catalogue(num_items)
    weights = CODES ** np.arange(level)
    offsets = first_token + CODES * np.arange(LEVELS)
    wanted = (prefixes.cpu().numpy() - offsets[:level]) @ weights
    rows = codes[np.isin(codes[:, :level] @ weights, wanted)] + offsets
    table: dict[tuple[int, ...], set[int]] = {}
    for row in rows.tolist():
        table.setdefault(tuple(row[:level]), set()).add(row[level])
    return {prefix: sorted(tokens) for prefix, tokens in table.items()}


def dict_step(table: dict[tuple[int, ...], list[int]], prefixes: Tensor, vocab_size: int) -> Tensor:
    """The reference's step: ``(R, V)`` mask, 0 where allowed and -inf elsewhere."""
    mask = torch.full((len(prefixes), vocab_size), -torch.inf, device=prefixes.device)
    for row, prefix in enumerate(prefixes.tolist()):
        mask[row, table.get(tuple(prefix), [])] = 0
    return mask


def dict_lookup(table: dict[tuple[int, ...], list[int]], prefixes: Tensor) -> list[list[int]]:
    """The same without the mask."""
    return [table.get(tuple(prefix), []) for prefix in prefixes.tolist()]


def median_ms(
    steps: dict[Any, Callable[[], object]], device: str, repeats: int, inner: int
) -> dict[Any, float]:
    """Milliseconds of each step, taken in turns; a first turn warms up."""
    taken: dict[Any, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            for _ in range(inner if turn else 1):
                started = time.perf_counter()
                step()
                if device == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) * 1e3 for name, values in taken.items()}


def compare_steps(
    tries: dict[int, SidTrie], level: int, vocab_size: int, device: str, repeats: int
) -> tuple[float, bool]:
    """Print the look-up of one level at every size.

    The smallest ratio, and whether the allowed sets are equal.
    """
    walks: dict[Any, Callable[[], object]] = {}
    both_ways: dict[Any, Callable[[], object]] = {}
    same = True
    first_token = vocab_size - LEVELS * CODES
    for size, trie in tries.items():
        nodes = beams_of(trie, level)
        path = trie.path(nodes.reshape(-1), level)  # (R, level)
        prefixes = torch.stack(
            [trie.level_tokens[i][trie.code[path[:, i].long()].long()] for i in range(level)], dim=1
        )
        table = allowed_table(size, prefixes, first_token)
        _, legal, codes = trie.expand(nodes, level)
        tokens = trie.level_tokens[level][codes].view(*prefixes.shape[:1], -1)
        found = []
        for row, ok in zip(tokens, legal.view(tokens.shape), strict=True):
            found.append(sorted(row[ok].tolist()))
        same &= found == dict_lookup(table, prefixes)
        walks[size] = partial(trie.expand, nodes, level)
        both_ways["trie", size] = walks[size]
        both_ways["dict", size] = partial(dict_step, table, prefixes, vocab_size)
        both_ways["look-up", size] = partial(dict_lookup, table, prefixes)
    ours = median_ms(walks, device, repeats, inner=50)
    both = median_ms(both_ways, device, repeats, inner=1)
    for size, trie in tries.items():
        print(
            f"{size:>10,} items, level {level + 1}, {BATCH * BEAMS} beams x {trie.fan_out[level]}: "
            f"trie {ours[size]:.3f} ms "
            f"(between the others {both['trie', size]:.3f}), dict {both['dict', size]:.2f} ms, "
            f"its look-ups alone {both['look-up', size]:.2f} ms"
        )
    small, large = SIZES[0], SIZES[-1]
    print(
        f"growth of the trie's step from {small:,} to {large:,} items at level {level + 1}: "
        f"{ours[large] / ours[small]:.2f} x"
    )
    return min(both["dict", size] / both["trie", size] for size in tries), same


def compare_searches(
    tries: dict[int, SidTrie], shape: str, vocab_size: int, device: str, repeats: int
) -> None:
    """Print whole searches with every catalogue.

    And what each step beyond reading the prompts takes.
    """
    decoder = make_decoder(build_model(shape_of(shape), device=device))
    prompts = torch.randint(0, vocab_size - LEVELS * CODES, (BATCH, PROMPT)).tolist()
    searches: dict[Any, Callable[[], object]] = {
        "prefill": torch.no_grad()(partial(decoder.prefill, prompts))
    }
    for size, trie in tries.items():
        searches[size] = partial(constrained_beam_search, decoder, prompts, trie, BEAMS)
    taken = median_ms(searches, device, repeats, inner=1)
    step = {size: (taken[size] - taken["prefill"]) / LEVELS for size in tries}
    for size in tries:
        print(
            f"{size:>10,} items, {shape}, {BATCH} prompts of {PROMPT} tokens x {BEAMS} beams: "
            f"search {taken[size]:.1f} ms, of which a step {step[size]:.2f} ms"
        )
    print(
        f"growth of a whole step from {SIZES[0]:,} to {SIZES[-1]:,} items: "
        f"{step[SIZES[-1]] / step[SIZES[0]]:.2f} x"
    )


def main(device: str = "cpu", repeats: int = 5, shape: str = "tiny") -> None:
    """Print the three tables; exit code 1 where the dict and the trie allow different tokens."""
    vocab_size = shape_of(shape).vocabulary
    print(
        f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, {torch.get_num_threads()} "
        "threads"
    )
    tries = {size: build(size, vocab_size - LEVELS * CODES, device) for size in SIZES}
    results = [
        compare_steps(tries, level, vocab_size, device, repeats) for level in range(1, LEVELS)
    ]
    compare_searches(tries, shape, vocab_size, device, repeats)
    ratio, same = min(ratio for ratio, _ in results), all(ok for _, ok in results)
    print(f"ratio: {ratio:.2f}  parity: {'ok' if same else 'FAILED'}")
    sys.exit(not same)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
