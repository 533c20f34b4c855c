"""What a beam search loses that filters only the likeliest 2 W tokens of every beam.

Such a search (vLLM's, and any that gets its candidates from the engine's top log-probabilities)
cannot be told the legal tokens beforehand. Here it is walked with plain forwards, beam by beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import make_decoder
from minionerec.model.policy import Policy


class Lost(NamedTuple):
    """Shares that a late filter loses."""

    tokens: float  # of the legal continuations of its beams
    items: float  # of the items that the exact search lists


@torch.inference_mode()
def lost_tokens(policy: Policy, prompts: Sequence[Sequence[int]], num_beams: int) -> Lost:
    """Walk the late filter for some prompts and compare it with the exact search.

    Args:
        policy: model and trie.
        prompts: token ids.
        num_beams: W.
    """
    model = policy.model.eval()
    trie = policy.trie
    legal_tokens = 0
    seen_tokens = 0
    listed_items = 0
    found_items = 0
    width = min(num_beams, trie.num_leaves)
    for prompt in prompts:
        exact = constrained_beam_search(make_decoder(model), [prompt], trie, width)
        beams: list[tuple[float, int, list[int]]] = [(0.0, 0, [])]  # score, node, tokens
        for level in range(trie.num_levels):
            paths = torch.tensor([[*prompt, *tokens] for _, _, tokens in beams])
            output = model(input_ids=paths.to(model.device), logits_to_keep=1)
            logps = output.logits[:, -1].float().log_softmax(-1)  # (W, V)
            top = logps.topk(min(2 * num_beams, logps.shape[1]), dim=-1).indices
            candidates = []
            for row, (score, node, tokens) in enumerate(beams):
                in_sight = set(top[row].tolist())
                first = int(trie.first_child[node])
                for place, code in enumerate(trie.children(node)):
                    token = int(trie.level_tokens[level][code])
                    legal_tokens += 1
                    if token in in_sight:
                        seen_tokens += 1
                        total = score + float(logps[row, token])
                        candidates.append((total, first + place, [*tokens, token]))
            candidates.sort(key=lambda one: -one[0])
            beams = candidates[:width]
            if not beams:
                break
        kept = {node for _, node, _ in beams}
        nodes = exact.nodes[0][exact.leaves[0] >= 0].tolist()
        listed_items += len(nodes)
        found_items += len(kept.intersection(nodes))
    return Lost(1 - seen_tokens / legal_tokens, 1 - found_items / listed_items)
