"""What a filter costs: building the mask of 30 % of 1,000,000 items, and searching through it.

    python benchmarks/filters.py                         # the tiny model, 256 x 256 x 256 codes
    python benchmarks/filters.py --items 100000 --repeats 3

The other way is the field's: a dict from every prefix of an allowed item to the tokens that may
follow, built anew for each filter. Whole searches of 32 prompts with 50 beams take turns with and
without the mask; medians. Parity: both ways allow the same children everywhere (asked at 400
random prefixes of each level), and a search through the mask of all items is the search without.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import fire
import numpy as np
import torch

from benchmarks.workload import build_model, shape_of
from minionerec.catalogue.masks import Mask, MaskBuilder
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import one_line_errors
from minionerec.model.beam_search import Beams, constrained_beam_search
from minionerec.model.decoders import ReplayDecoder, TreeDecoder, make_decoder

LEVELS, CODES, SHARE = 3, 256, 0.3
BATCH, BEAMS, PROMPT = 32, 50, 40
Prefixes = dict[tuple[int, ...], set[int]]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def prefix_dict(codes: np.ndarray) -> Prefixes:
    """Prefix -> codes that may follow, for the allowed items alone."""
    table: Prefixes = {}
    for sid in codes.tolist():
        for level in range(LEVELS):
            table.setdefault(tuple(sid[:level]), set()).add(sid[level])
    return table


def same_children(trie: SidTrie, mask: Mask, table: Prefixes, codes: np.ndarray) -> bool:
    """Whether mask and dict allow the same codes at random prefixes, allowed or not."""
    rng = np.random.default_rng(0)
    for level in range(LEVELS):
        for row in rng.integers(0, len(codes), 400).tolist():
            prefix = tuple(codes[row, :level].tolist())
            node = trie.find(prefix) or 0  # every prefix is an item's; the empty one is the root
            start = int(trie.first_child[node])
            found = set()
            for place, code in enumerate(trie.children(node)):
                if mask.nodes[start + place]:
                    found.add(code)
            if found != table.get(prefix, set()):
                return False
    return True


def search(
    decoder: TreeDecoder | ReplayDecoder,
    prompts: list[list[int]],
    trie: SidTrie,
    mask: Mask | None,
) -> Beams:
    """One batch through one mask, or through none."""
    masks = None if mask is None else [mask] * len(prompts)
    return constrained_beam_search(decoder, prompts, trie, BEAMS, masks=masks)


def main(items: int = 1_000_000, repeats: int = 9, shape: str = "tiny") -> None:
    """Build and search, print both, end with the ratio of the building."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (items, LEVELS), dtype=np.int32)
    size = shape_of(shape)
    first = size.vocabulary - LEVELS * CODES
    tokens = [range(first + CODES * level, first + CODES * (level + 1)) for level in range(LEVELS)]
    trie = SidTrie(codes, tokens)
    builder = MaskBuilder(trie)
    allowed = rng.random(items) < SHARE

    # Build; a SID may be used as soon as one of its items may
    mask = builder.build(allowed)
    builds = [seconds(partial(builder.build, allowed)) for _ in range(5 * repeats)]
    start = time.perf_counter()
    table = prefix_dict(codes[allowed])
    other_way = time.perf_counter() - start
    built = statistics.median(builds)
    print(
        f"{items:,} items, {int(allowed.sum()):,} allowed: mask {built * 1e3:.2f} ms (fastest "
        f"{min(builds) * 1e3:.2f}), {mask.nodes.numel() / 1e6:.1f} MB; dict "
        f"{other_way * 1e3:.0f} ms"
    )

    # Search
    decoder = make_decoder(build_model(size))
    prompts = rng.integers(2, first, (BATCH, PROMPT)).tolist()
    everything = builder.build(np.ones(items, dtype=bool))
    sides = {"no filter": None, "mask": mask, "mask of all items": everything}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            spent = seconds(partial(search, decoder, prompts, trie, side))
            if turn:
                taken[name].append(spent)
    plain = statistics.median(taken["no filter"])
    for name, values in taken.items():
        middle = statistics.median(values)
        print(
            f"search of {BATCH} prompts, {BEAMS} beams, {name}: {middle * 1e3:.0f} ms, "
            f"{middle / plain:.3f} of the search without"
        )
    same = same_children(trie, mask, table, codes)
    through = search(decoder, prompts, trie, everything)
    without = search(decoder, prompts, trie, None)
    same &= bool(
        (through.leaves == without.leaves).all() and (through.scores == without.scores).all()
    )
    found = search(decoder, prompts, trie, mask).leaves
    same &= all(allowed[trie.items_of_leaf(leaf)].any() for leaf in found.flatten().tolist())
    print(f"ratio: {other_way / built:.2f}  parity: {'ok' if same else 'FAILED'}")
    sys.exit(not same)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
