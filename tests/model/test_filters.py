"""Filters inside the search: equal to ranking every allowed item, and k of them whenever there are
k.
"""

import math
import random

import numpy as np
import pytest
import torch

from minionerec.catalogue.masks import MaskBuilder
from minionerec.catalogue.trie import SidTrie
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import TreeDecoder
from tests.model.test_beam_search import level_tokens, random_prompts, search_all, sequence_logp
from tests.worlds import random_catalogue, tiny_model


def of_items(trie, items):
    """The mask of some item indexes."""
    allowed = np.zeros(trie.num_items, dtype=bool)
    allowed[list(items)] = True
    return MaskBuilder(trie).build(allowed)


def listed(trie, leaves, allowed, excluded=()):
    """Items of a list of leaves, as they are shown."""
    mask = np.zeros(trie.num_items, dtype=bool)
    mask[list(allowed)] = True
    return trie.items_of_leaves(leaves, leaves, excluded, mask)[0]


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
@pytest.mark.parametrize("seed", range(4))
def test_a_filtered_search_ranks_the_allowed_items_as_scoring_each_of_them_does(seed, normalize):
    """The reference scores every allowed item alone, by a plain forward; what is not allowed lends
    its probability to nothing. The beam is as wide as the allowed items, not as the catalogue.
    """
    sids = random_catalogue(seed, 30, 3, 5)
    tokens, model = level_tokens([5, 5, 5]), tiny_model("qwen2", 64, seed)
    prompt = random_prompts(seed, 1)[0]
    trie, rng = SidTrie(sids, tokens), random.Random(seed)
    allowed = rng.sample(range(30), 9)

    def reference(sid):
        if normalize == "vocab":
            path = [tokens[level][code] for level, code in enumerate(sid)]
            return sequence_logp(model, prompt, path)
        total = 0.0
        for level in range(3):
            children = sorted({other[level] for other in sids if other[:level] == sid[:level]})
            path = [tokens[i][code] for i, code in enumerate(sid[:level])]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + path])).logits[0, -1]
            logps = logits[[tokens[level][code] for code in children]].log_softmax(-1)
            total += logps[children.index(sid[level])].item()
        return total

    expected = {item: reference(sids[item]) for item in allowed}
    leaves, scores = search_all(
        model, [prompt], trie, 9, 1, normalize=normalize, mask=of_items(trie, allowed)
    )
    order = sorted(allowed, key=lambda item: -expected[item])
    assert listed(trie, leaves[0].tolist(), allowed) == order
    assert scores[0] == pytest.approx([expected[item] for item in order], abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 7, 40])
def test_as_many_items_come_back_as_were_asked_for_whenever_there_are_so_many(width):
    """Narrow beams, few allowed items far apart, SIDs that items share or that are short, and
    items of a prompt's own left out on top: never a dead end, never what is not allowed.
    """
    for seed in range(15):
        rng = random.Random(seed)
        sids = random_catalogue(seed, 60, 3, 5, shared=rng.choice([0.0, 0.4]))
        if seed % 3 == 0:
            short = {sid[:2] for sid in rng.sample(sids, 6)}
            sids = [sid[:2] if sid[:2] in short else sid for sid in sids]
        trie = SidTrie(sids, level_tokens([5, 5, 5]))
        model, prompts = tiny_model("qwen2", 64, seed), random_prompts(seed, 3)
        allowed = rng.sample(range(60), rng.choice([1, 5, 20, 50]))
        own = [rng.sample(range(60), rng.choice([0, 3, 30])) for _ in prompts]
        mask = of_items(trie, allowed)
        excluded = [trie.leaves_only_of(items, mask.items) for items in own]
        leaves, scores = search_all(
            model, prompts, trie, width, 3, excluded=dict(enumerate(excluded)), mask=mask
        )
        for row in range(3):
            good = set(allowed) - set(own[row])
            found = leaves[row][leaves[row] >= 0].tolist()
            assert len(set(found)) == len(found)
            assert len(found) == min(width, len({sids[item] for item in good}))
            assert np.isfinite(scores[row][: len(found)]).all()
            assert (scores[row][len(found) :] == -math.inf).all()
            shown = listed(trie, found, allowed, own[row])
            assert set(shown) <= good and len(shown) >= len(found)


def test_every_prompt_of_a_batch_keeps_to_its_own_filter():
    """Three filters, one of them used twice, and none: as if each prompt had been searched alone."""
    sids, model = random_catalogue(1, 50, 3, 5), tiny_model("qwen2", 64, 4)
    trie, prompts = SidTrie(sids, level_tokens([5, 5, 5])), random_prompts(8, 5)
    low, high = of_items(trie, range(10)), of_items(trie, range(40, 50))
    masks = [low, None, high, low, of_items(trie, [])]
    excluded = [[], [3, 4], [], trie.leaves_only_of([0, 1]), []]
    decoder = TreeDecoder(model)
    together = constrained_beam_search(decoder, prompts, trie, 8, excluded=excluded, masks=masks)
    for row, prompt in enumerate(prompts):
        alone = constrained_beam_search(
            decoder, [prompt], trie, 8, excluded=[excluded[row]], masks=[masks[row]]
        )
        wide = together.leaves[row]
        assert wide.tolist() == alone.leaves[0].tolist() + [-1] * (8 - alone.leaves.shape[1])
    assert (together.leaves[4] == -1).all()
    plain = constrained_beam_search(decoder, prompts[:1], trie, 8)
    nothing = constrained_beam_search(decoder, prompts[:1], trie, 8, masks=[None], excluded=[[]])
    assert (plain.scores == nothing.scores).all() and (plain.leaves == nothing.leaves).all()


def test_a_mask_marks_the_nodes_above_allowed_items_and_no_other():
    """Against a walk over every item's path; SIDs of two lengths, and two items on one SID."""
    sids = [(0, 1), (0, 0, 0), (0, 0, 1), (1, 2), (2, 0, 1), (2, 0, 1), (2, 1, 0)]
    trie = SidTrie(sids)
    for seed in range(30):
        allowed = random.Random(seed).sample(range(7), seed % 8 % 7)
        expected = set()
        for item in allowed:
            expected |= set(trie.item_path(item))
        mask = of_items(trie, allowed)
        marked = set(mask.nodes.nonzero()[:, 0].tolist())
        assert marked - {0} == expected
        assert len(mask.nodes) > len(trie.parent) and not mask.nodes[len(trie.parent) :].any()
