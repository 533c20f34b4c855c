"""No recommendation is invalid and none is repeated, on catalogues of every shape.

bash test.sh tests/reliability/test_beams.py bash test.sh tests/reliability/test_beams.py -m slow
more than 100,000 beams over 240 catalogues
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch

from minionerec.catalogue.trie import SidTrie
from tests.model.test_beam_search import search_all
from tests.worlds import ARCHITECTURES, random_catalogue, tiny_model

FIRST_TOKEN, VOCABULARY = 10, 300  # of SIDs; prompts use the tokens below and above too


class Case(NamedTuple):
    """A catalogue and how it is searched."""

    sids: list[tuple[int, ...]]
    sizes: list[int]  # codes per level
    width: int
    scale: float  # of the output weights: 0 makes everything a tie
    dtype: torch.dtype
    excluded: bool


def draw(rng: random.Random) -> Case:
    """1 to 2,000 items on 1 to 4 levels; crowded prefixes, shared SIDs and SIDs of two lengths;
    beams from 1 to 128.
    """
    levels = rng.randint(1, 4)
    sizes = [rng.choice([1, 4, 12, 45, 60] if levels > 1 else [2, 250]) for _ in range(levels)]
    wanted = min(rng.choice([1, 3, 40, 300, 2000]), math.prod(sizes))
    sids = random_catalogue(rng.randrange(10**9), wanted, levels, min(sizes))
    while len(sids) < wanted:
        start = rng.choice(sids)[: rng.randint(0, levels - 1)]  # a prefix that others have too
        sids.append(start + tuple(rng.randrange(size) for size in sizes[len(start) :]))
    if levels > 1 and rng.random() < 0.3:  # the prefixes of a few become SIDs of their own
        short = {sid[:-1] for sid in rng.sample(sids, max(1, len(sids) // 5))}
        sids = [sid[:-1] if sid[:-1] in short else sid for sid in sids]
    return Case(
        sids,
        sizes,
        rng.choice([1, 3, 16, 50, 128]),
        rng.choice([0.0, 1.0, 1.0, 1e4]),
        rng.choice([torch.float32, torch.float32, torch.bfloat16]),
        rng.random() < 0.3,
    )


def check(case: Case, rng: random.Random, prompts: int) -> int:
    """Search with a random model; every list is compared with the set of SIDs. Returns how many
    beams there were.
    """
    starts = [FIRST_TOKEN + sum(case.sizes[:level]) for level in range(len(case.sizes))]
    trie = SidTrie(
        case.sids,
        [list(range(start, start + size)) for start, size in zip(starts, case.sizes, strict=True)],
    )
    model = tiny_model(rng.choice(ARCHITECTURES), VOCABULARY, rng.randrange(10**6)).to(case.dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(case.scale)
    texts = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12))] for _ in range(prompts)]
    known = set(case.sids)
    excluded = (
        [
            rng.sample(range(trie.num_leaves), min(trie.num_leaves, rng.randint(0, 10)))
            for _ in texts
        ]
        if case.excluded
        else None
    )
    leaves, scores = search_all(
        model,
        texts,
        trie,
        case.width,
        batch_size=rng.randint(1, prompts),
        excluded=excluded,
        normalize=rng.choice(["vocab", "trie"]),
    )
    beams = 0
    for row, (found, values) in enumerate(zip(leaves.tolist(), scores.tolist(), strict=True)):
        listed = [case.sids[trie.items_of_leaf(leaf)[0]] for leaf in found if leaf >= 0]
        forbidden = (
            {case.sids[trie.items_of_leaf(leaf)[0]] for leaf in excluded[row]}
            if excluded
            else set()
        )
        assert set(listed) <= known - forbidden and len(set(listed)) == len(listed) == min(
            case.width, len(known - forbidden)
        )
        assert all(leaf == -1 for leaf in found[len(listed) :])
        assert values == sorted(values, reverse=True) and np.isfinite(values[: len(listed)]).all()
        beams += len(listed)
    return beams


@pytest.mark.parametrize(
    "catalogues, prompts, least",
    [(60, 3, 1_500), pytest.param(240, 48, 100_000, marks=pytest.mark.slow)],
)
def test_every_recommendation_is_an_item_and_none_is_repeated(catalogues, prompts, least):
    """Bfloat16, logits x 10,000, ties, more beams than items or than branches, excluded items:
    fewer results, never wrong ones.
    """
    rng = random.Random(catalogues)
    cases = [draw(rng) for _ in range(catalogues)]
    beams = sum(check(case, rng, prompts) for case in cases)
    print(
        f"{beams:,} beams over {catalogues} catalogues of {min(len(c.sids) for c in cases)} to "
        f"{max(len(c.sids) for c in cases)} items: "
        "0 invalid, 0 repeated"
    )
    assert beams >= least
    assert {1, 2, 3, 4} == {len(case.sizes) for case in cases} and any(
        case.width > len(set(case.sids)) for case in cases
    )
    assert any(len({len(sid) for sid in case.sids}) == 2 for case in cases) and any(
        len(set(c.sids)) < len(c.sids) for c in cases
    )
