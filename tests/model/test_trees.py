"""Token trees: every shared prefix once, and the same losses and gradients as one row per
sequence.
"""

import random

import pytest
import torch

from minionerec.model.output_head import output_head, vocab_logps
from minionerec.model.probes import takes_trees
from minionerec.model.token_trees import ancestors, cheapest_block_length, pack_trees
from minionerec.model.tree_attention import block_attention, enable_trees
from minionerec.training.group_logps import label_pairs
from tests.worlds import ARCHITECTURES, WINDOWED, plain_logps, tiny_model


def family(seed, count=12, vocabulary=40):
    """Sequences of a few families that share beginnings, with where their completions start."""
    rng = random.Random(seed)
    stems = [[rng.randrange(vocabulary) for _ in range(rng.randrange(2, 12))] for _ in range(3)]
    sequences = [
        rng.choice(stems) + [rng.randrange(vocabulary) for _ in range(rng.randrange(2, 7))]
        for _ in range(count)
    ]
    return sequences, [len(s) - rng.randrange(1, 3) for s in sequences]


def test_a_tree_of_two_sequences_worked_by_hand():
    tree = pack_trees([[7, 8, 9], [7, 8, 5, 6]])
    assert tree.input_ids.tolist() == [
        7,
        8,
        5,
        6,
        9,
    ]  # 7 8 once; the lexicographically first one leads
    assert tree.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert [nodes.tolist() for nodes in tree.nodes] == [[0, 1, 4], [0, 1, 2, 3]]
    assert tree.blocks.queries.tolist() == tree.blocks.keys.tolist() == [[0, 1, 2, 3, 4, 0, 0, 0]]
    assert tree.blocks.mask[0, :5].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
    ]


def test_a_block_that_starts_inside_a_tree_sees_what_stands_above_it():
    """Two blocks of two sequences; the second one's keys are the shared 1 2 3, padded to eight, and
    its own two leaves.
    """
    tree = pack_trees(
        [[1, 2, 3, i] for i in (10, 11, 12, 13)], block_length=5
    )  # cut between the leaves 11 and 12
    assert tree.input_ids.tolist() == [1, 2, 3, 10, 11, 12, 13]  # nothing is read twice
    assert tree.blocks.queries.tolist() == [[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]]
    assert tree.blocks.keys[1].tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 5, 6, 0, 0, 0]
    assert tree.blocks.mask[1, :2].int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    ]
    assert tree.blocks.key_positions[1, [0, 1, 2, 8, 9]].tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("seed", range(20))
def test_every_token_sees_its_own_sequence_up_to_itself_and_nothing_else(seed):
    rng = random.Random(seed)
    sequences, _ = family(seed, rng.randint(1, 15))
    tree = pack_trees(sequences, block_length=rng.choice([1, 7, 20, None]))
    blocks = tree.blocks
    for sequence, nodes in zip(sequences, tree.nodes, strict=True):
        assert tree.input_ids[nodes].tolist() == sequence and tree.position_ids[
            nodes
        ].tolist() == list(range(len(sequence)))
        for depth, slot in enumerate(nodes):
            row, column = divmod(int(slot), blocks.queries.shape[1])
            assert (
                blocks.queries[row, column] == slot and blocks.query_positions[row, column] == depth
            )
            seen = blocks.keys[row][blocks.mask[row, column]]
            assert sorted(seen.tolist()) == sorted(nodes[: depth + 1].tolist())
            assert sorted(blocks.key_positions[row][blocks.mask[row, column]].tolist()) == list(
                range(depth + 1)
            )
    assert len(tree.input_ids) == len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})
    assert blocks.mask.any(-1).all()  # an empty row would make attention NaN


def test_the_block_length_with_the_fewest_pairs_is_chosen():
    assert (
        cheapest_block_length([0] * 640) == 64
    )  # nothing above: short blocks; one block would square the work
    assert (
        cheapest_block_length(list(range(64))) == 64
    )  # one chain: two blocks of 32 would see 32 + 32 keys each
    assert cheapest_block_length([0, 1, 2]) == 8  # never shorter than the alignment


def test_behind_a_cache_everybody_sees_the_cached_tokens_too():
    blocks = pack_trees([[1, 2], [3]]).blocks.behind(2)
    assert blocks.keys[0, :5].tolist() == [0, 1, 2, 3, 4] and blocks.mask[
        0, :3, :5
    ].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert blocks.query_positions[0, :3].tolist() == [2, 3, 2] and blocks.key_positions[
        0, :5
    ].tolist() == [0, 1, 2, 3, 2]


def test_ancestors_of_a_small_tree():
    assert ancestors(torch.tensor([[-1, 0, 0, 2]]).numpy())[0].astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]


@pytest.mark.parametrize("block_length", [8, 48, None])
@pytest.mark.parametrize(
    "model_type, changes", [*((name, {}) for name in ARCHITECTURES), *WINDOWED.items()]
)
def test_tree_loss_and_gradients_equal_those_of_separate_sequences(
    model_type, changes, block_length
):
    """Sliding windows of 4 are shorter than the sequences, and count positions, not the slots of a
    tree.
    """
    model = tiny_model(model_type, 40, tie_word_embeddings=True, **changes)
    assert model.takes_trees
    sequences, starts = family(1)
    expected = torch.stack(
        [
            value
            for s, start in zip(sequences, starts, strict=True)
            for value in plain_logps(model, s, start)
        ]
    )
    (-expected.mean()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    tree = pack_trees([s[:-1] for s in sequences], block_length=block_length)
    slots, rows, tokens, inverse = label_pairs(tree, sequences, starts)
    found = model(
        tree=tree, slots=slots, readout=lambda h, head: vocab_logps(h, head, rows, tokens)
    )[inverse]
    (-found.mean()).backward()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    for name, parameter in model.named_parameters():
        scale = gradients[name].abs().max().clamp(min=1e-6)
        assert ((parameter.grad - gradients[name]).abs().max() / scale).item() < 2e-5, name


def test_attention_caps_large_scores_before_it_masks_them():
    """Against Gemma-2's formula for each query on its own; scores of about 50 under a cap of 5."""
    torch.manual_seed(0)
    sequences = [[1, 2, 3, 4], [1, 2, 5], [6]]
    tree = pack_trees(sequences, block_length=3)
    slots, heads, width, cap, scaling = len(tree.input_ids), 4, 8, 5.0, 0.5
    query = 6 * torch.randn(1, heads, slots, width)
    key, value = 6 * torch.randn(1, 2, slots, width), torch.randn(1, 2, slots, width)
    found, _ = block_attention(
        None, query, key, value, None, scaling=scaling, softcap=cap, blocks=tree.blocks
    )
    for nodes in tree.nodes:
        for place, slot in enumerate(nodes):
            seen = nodes[: place + 1]
            for head in range(heads):
                scores = key[0, head // 2, seen] @ query[0, head, slot] * scaling
                weights = (cap * torch.tanh(scores / cap)).softmax(0)
                expected = weights @ value[0, head // 2, seen]
                torch.testing.assert_close(found[0, slot, head], expected, atol=1e-5, rtol=0)


def test_autocast_on_a_cpu_leaves_attention_in_float32():
    torch.manual_seed(0)
    tree = pack_trees([[1, 2, 3, 4], [1, 2, 5], [6]], block_length=3)
    query = torch.randn(1, 4, len(tree.input_ids), 8)
    key, value = torch.randn_like(query), torch.randn_like(query)
    expected, _ = block_attention(None, query, key, value, None, blocks=tree.blocks)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = block_attention(None, query, key, value, None, blocks=tree.blocks)
    assert torch.equal(found, expected)


def test_capped_logits_reach_the_tree_forward():
    model = tiny_model(
        "gemma2", 40, attn_implementation="eager", final_logit_softcapping=0.7, sliding_window=64
    )
    assert takes_trees(model)
    assert (
        output_head(model).columns(torch.randn(3, 32) * 50, torch.arange(40)).abs().max().item()
        <= 0.7
    )


def test_a_model_that_ignores_masks_is_found_out_and_still_trained_exactly():
    """A state-space model has no attention mask to obey; its rows must then stay separate."""
    model = tiny_model("mamba", 40)
    assert not model.takes_trees
    sequences, starts = family(2, 5)
    tree = pack_trees([s[:-1] for s in sequences], share=False)
    assert len(tree.input_ids) == 5 and tree.blocks is None
    slots, rows, tokens, inverse = label_pairs(tree, sequences, starts)
    with torch.no_grad():
        found = model(
            tree=tree, slots=slots, readout=lambda h, head: vocab_logps(h, head, rows, tokens)
        )[inverse]
        expected = torch.stack(
            [
                value
                for s, start in zip(sequences, starts, strict=True)
                for value in plain_logps(model, s, start)
            ]
        )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_tree_forward_leaves_every_other_call_as_it_was():
    model = tiny_model("llama", 40)
    ids = torch.tensor([[3, 4, 5]])
    before = type(model).forward(model, input_ids=ids).logits
    torch.testing.assert_close(enable_trees(model)(input_ids=ids).logits, before)
