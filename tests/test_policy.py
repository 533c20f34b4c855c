"""Packed prefix trees: same log-probabilities, losses and gradients as one padded row per sequence."""

import random

import numpy as np
import pytest
import torch

from minionerec.output_head import output_head, vocab_logps
from minionerec.policy import GroupBatch, enable_trees, label_pairs, pack_trees, takes_trees
from minionerec.sids import SidTrie
from tests.worlds import ARCHITECTURES, WINDOWED, random_catalogue, tiny_model


def family(seed, count=12, vocabulary=40):
    """Sequences of a few families that share beginnings, with where their completions start."""
    rng = random.Random(seed)
    stems = [[rng.randrange(vocabulary) for _ in range(rng.randrange(2, 12))] for _ in range(3)]
    sequences = [rng.choice(stems) + [rng.randrange(vocabulary) for _ in range(rng.randrange(2, 7))] for _ in range(count)]
    return sequences, [len(s) - rng.randrange(1, 3) for s in sequences]


def plain_logps(model, sequence, start):
    """Independent reference: one forward for one sequence."""
    logps = model(input_ids=torch.tensor([sequence])).logits[0].float().log_softmax(-1)
    return [logps[i - 1, sequence[i]] for i in range(start, len(sequence))]


def test_a_tree_of_two_sequences_worked_by_hand():
    tree = pack_trees([[7, 8, 9], [7, 8, 5, 6]], row_length=16)
    assert tree.input_ids.tolist() == [[7, 8, 5, 6, 9]]                 # 7 8 once; the lexicographically first one leads
    assert tree.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert tree.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert [nodes.tolist() for nodes in tree.nodes] == [[0, 1, 4], [0, 1, 2, 3]]


def test_packing_reads_every_shared_prefix_once_and_opens_a_row_when_one_is_full():
    sequences = [[1, 2, 3, i] for i in range(10, 20)]
    assert pack_trees(sequences, row_length=64).input_ids.shape == (1, 13)
    narrow = pack_trees(sequences, row_length=6)
    assert narrow.input_ids.shape == (4, 6)                             # 3 shared + 3 own tokens per row, then again
    for sequence, nodes in zip(sequences, narrow.nodes, strict=True):
        assert narrow.input_ids.flatten()[nodes].tolist() == sequence


@pytest.mark.parametrize("row_length", [8, 48, 512])
@pytest.mark.parametrize("model_type, changes", [*((name, {}) for name in ARCHITECTURES), *WINDOWED.items()])
def test_tree_loss_and_gradients_equal_those_of_separate_sequences(model_type, changes, row_length):
    """Sliding windows of 4 are shorter than the sequences, and count positions, not the slots of a tree."""
    model = tiny_model(model_type, 40, tie_word_embeddings=True, **changes)
    assert model.takes_trees
    sequences, starts = family(1)
    expected = torch.stack([value for s, start in zip(sequences, starts, strict=True) for value in plain_logps(model, s, start)])
    (-expected.mean()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    tree = pack_trees([s[:-1] for s in sequences], row_length)
    slots, rows, tokens, inverse = label_pairs(tree, sequences, starts)
    found = model(tree=tree, slots=slots, readout=lambda h, head: vocab_logps(h, head, rows, tokens))[inverse]
    (-found.mean()).backward()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    for name, parameter in model.named_parameters():
        scale = gradients[name].abs().max().clamp(min=1e-6)
        assert ((parameter.grad - gradients[name]).abs().max() / scale).item() < 2e-5, name


def test_capped_logits_reach_the_tree_forward():
    model = tiny_model("gemma2", 40, attn_implementation="eager", final_logit_softcapping=0.7, sliding_window=64)
    assert takes_trees(model)
    assert output_head(model).columns(torch.randn(3, 32) * 50, torch.arange(40)).abs().max().item() <= 0.7


def test_a_model_that_ignores_masks_is_found_out_and_still_trained_exactly():
    """A state-space model has no attention mask to obey; its rows must then stay separate."""
    model = tiny_model("mamba", 40)
    assert not model.takes_trees
    sequences, starts = family(2, 5)
    tree = pack_trees([s[:-1] for s in sequences], share=False)
    assert len(tree.input_ids) == 5
    slots, rows, tokens, inverse = label_pairs(tree, sequences, starts)
    with torch.no_grad():
        found = model(tree=tree, slots=slots, readout=lambda h, head: vocab_logps(h, head, rows, tokens))[inverse]
        expected = torch.stack([value for s, start in zip(sequences, starts, strict=True) for value in plain_logps(model, s, start)])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
def test_group_log_probabilities_equal_one_forward_per_completion(normalize):
    sids = [*random_catalogue(1, 30, 3, 4), (4, 0), (4, 1)]              # two SIDs are shorter
    tokens = [list(range(10, 15)), list(range(15, 19)), list(range(19, 23))]
    trie, model = SidTrie(sids, tokens), tiny_model("qwen2", 40)
    prompts, rng = [[1, 2, 3], [1, 2, 4, 5, 6]], np.random.default_rng(0)
    items = [[*rng.permutation(30)[:5], 30], [*rng.permutation(30)[:5], 31]]
    nodes = trie.leaf_node[torch.from_numpy(trie.leaf_of_item[np.array(items)])].long()
    alive = torch.ones_like(nodes, dtype=torch.bool)
    alive[0, 4] = False
    batch = GroupBatch.make(prompts, nodes, alive, trie)
    output = batch.forward(model, normalize, with_children=True)
    for b, prompt in enumerate(prompts):
        for g, item in enumerate(items[b]):
            path = [tokens[level][code] for level, code in enumerate(sids[item])]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + path])).logits[0].float()
            expected = []
            for level, token in enumerate(path):
                row = logits[len(prompt) - 1 + level]
                if normalize == "trie":
                    legal = {tokens[level][s[level]] for s in sids if len(s) > level and s[:level] == sids[item][:level]}
                    expected.append((row[token] - row[sorted(legal)].logsumexp(0)).item())
                else:
                    expected.append(row.log_softmax(-1)[token].item())
            expected += [0.0] * (3 - len(path))
            assert output.logps[b, g].tolist() == pytest.approx(expected if alive[b, g] else [0.0] * 3, abs=2e-5)
    assert batch.mask.sum().item() == 9 * 3 + 2 * 2
    torch.testing.assert_close(output.children.exp().sum(-1), torch.ones(len(output.children)))


def test_tree_forward_leaves_every_other_call_as_it_was():
    model = tiny_model("llama", 40)
    ids = torch.tensor([[3, 4, 5]])
    before = type(model).forward(model, input_ids=ids).logits
    torch.testing.assert_close(enable_trees(model)(input_ids=ids).logits, before)


def test_a_loss_over_the_legal_children_equals_one_forward_per_row():
    """SID rows are normalised over the trie, without their end token; text rows over the vocabulary, with it."""
    from minionerec.dataset import Row
    from minionerec.policy import children_logps, pick_child
    from minionerec_trainer import collate_sft

    sids = [*random_catalogue(1, 16, 2, 4), (4,)]
    tokens = [list(range(10, 15)), list(range(15, 19))]
    trie, model = SidTrie(sids, tokens), tiny_model("qwen2", 40)
    rows = [Row("sid_to_sid", "u", [1, 2], [tokens[level][c] for level, c in enumerate(sids[i])] + [0], i) for i in (3, 16, 7)]
    rows.insert(1, Row("sid_to_title", "", [1, 2, 3], [30, 31, 0], 5))
    batch = collate_sft(rows, trie=trie, paths=[trie.item_path(i) for i in range(17)])
    pairs = batch["sid_pairs"]

    def readout(hidden, head):
        legal = children_logps(hidden, head, batch["pair_rows"][pairs], batch["children"])
        return pick_child(legal, batch["children"], batch["shift_labels"][pairs]), vocab_logps(
            hidden, head, batch["pair_rows"], batch["shift_labels"])

    with torch.no_grad():
        found, everything = model(tree=batch["tree"], slots=batch["slots"], readout=readout)
    expected = []
    for row in (rows[0], rows[2], rows[3]):
        sid = sids[row.target_item]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0]
        for level, code in enumerate(sid):
            legal = sorted({s[level] for s in sids if s[:level] == sid[:level] and len(s) > level})
            expected.append(logits[len(row.prompt) - 1 + level, [tokens[level][c] for c in legal]].log_softmax(-1)[legal.index(code)].item())
    assert found.tolist() == pytest.approx(expected, abs=2e-5)
    text = [i for i in range(len(everything)) if i not in set(pairs.tolist())]
    with torch.no_grad():
        plain = [value.item() for value in plain_logps(model, rows[1].prompt + rows[1].completion, 3)]
    assert sorted(everything[text].tolist()) == pytest.approx(sorted(plain), abs=2e-5)
