"""Constrained beam search: only items, all distinct, exact scores, equal to Hugging Face and to
exhaustive ranking.
"""

import math
import random

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.model.beam_search import constrained_beam_search, length_sorted, search_batches
from minionerec.model.decoders import ReplayDecoder, TreeDecoder
from minionerec.model.logits_processor import CatalogueLogitsProcessor
from tests.worlds import ARCHITECTURES, WINDOWED, random_catalogue, tiny_model

EOS, FIRST_SID = 1, 40


def level_tokens(sizes):
    starts = [FIRST_SID + sum(sizes[:level]) for level in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def random_prompts(seed, count, shared=0):
    rng = random.Random(seed)
    beginning = [rng.randrange(2, FIRST_SID) for _ in range(shared)]
    return [
        beginning + [rng.randrange(2, FIRST_SID) for _ in range(rng.randrange(1, 9))]
        for _ in range(count)
    ]


def search_all(model, prompts, trie, num_beams, batch_size, **options):
    """Leaves and scores of all prompts in their order, searched in batches of similar length."""
    batches = length_sorted(prompts, batch_size)
    found = search_batches(model, prompts, trie, num_beams, batches, **options)
    leaves, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    back = np.argsort(np.concatenate(batches))
    return leaves[back], scores[back]


def sequence_logp(model, prompt, tokens):
    """Independent reference: one plain forward over prompt + tokens."""
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens))


def hf_beams(model, prompt, sids, tokens, num_beams):
    """Stock beam search with prefix_allowed_tokens_fn: (codes, score) best first."""
    allowed = {}
    for sid in sids:
        path = [tokens[level][code] for level, code in enumerate(sid)] + [EOS]
        for i, token in enumerate(path):
            allowed.setdefault(tuple(path[:i]), set()).add(token)
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=len(sids[0]) + 1,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=lambda _, ids: (
            sorted(allowed[tuple(ids[len(prompt) :].tolist())])
            if tuple(ids[len(prompt) :].tolist()) in allowed
            else [EOS]
        ),
        output_scores=True,
        return_dict_in_generate=True,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    code_of = {token: code for level in tokens for code, token in enumerate(level)}
    rows = out.sequences[:, len(prompt) : len(prompt) + len(sids[0])].tolist()
    return [tuple(code_of[t] for t in row) for row in rows], out.sequences_scores.tolist()


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize(
    "model_type, changes", [*((name, {}) for name in ARCHITECTURES), *WINDOWED.items()]
)
def test_results_and_scores_equal_hugging_face_beam_search(model_type, changes, shared):
    """With and without a wording that is read once for all prompts; sliding windows of 4 are
    shorter than the prompts.
    """
    sids = random_catalogue(3, 60, 3, 6)
    tokens = level_tokens([6, 6, 6])
    model = tiny_model(model_type, 64, **changes)
    trie = SidTrie(sids, tokens)
    prompts = random_prompts(5, 4, shared)
    decoder = TreeDecoder(model)
    assert model.takes_trees and decoder.read_beginning(prompts) == shared
    beams = constrained_beam_search(decoder, prompts, trie, 10, score_eos=EOS)
    for prompt, leaves, scores in zip(
        prompts, beams.leaves.tolist(), beams.scores.tolist(), strict=True
    ):
        expected, expected_scores = hf_beams(model, prompt, sids, tokens, 10)
        assert [sids[trie.items_of_leaf(leaf)[0]] for leaf in leaves] == expected
        assert scores == pytest.approx(expected_scores, abs=1e-4)


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_as_wide_as_the_catalogue_is_exhaustive_ranking(seed, normalize):
    """No pruning can happen at this width, so the order must be that of scoring every item on its
    own.
    """
    sids = random_catalogue(seed, 30, 3, 5)
    tokens, model, prompt = (
        level_tokens([5, 5, 5]),
        tiny_model("qwen2", 64, seed),
        random_prompts(seed, 1)[0],
    )
    trie = SidTrie(sids, tokens)

    def reference(sid):
        if normalize == "vocab":
            return sequence_logp(
                model, prompt, [tokens[level][code] for level, code in enumerate(sid)]
            )
        total = 0.0
        for level in range(3):
            children = sorted({other[level] for other in sids if other[:level] == sid[:level]})
            path = [tokens[i][code] for i, code in enumerate(sid[:level])]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + path])).logits[0, -1]
            total += (
                logits[[tokens[level][c] for c in children]]
                .log_softmax(-1)[children.index(sid[level])]
                .item()
            )
        return total

    beams = constrained_beam_search(TreeDecoder(model), [prompt], trie, 30, normalize=normalize)
    expected = sorted(sids, key=lambda sid: -reference(sid))
    assert [sids[trie.items_of_leaf(leaf)[0]] for leaf in beams.leaves[0].tolist()] == expected
    assert beams.scores[0].tolist() == pytest.approx([reference(sid) for sid in expected], abs=1e-4)
    assert beams.token_logps[0].sum(-1).tolist() == pytest.approx(
        beams.scores[0].tolist(), abs=1e-4
    )


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
@pytest.mark.parametrize("width", [1, 5, 12, 27])
def test_ties_are_in_catalogue_order(width, normalize):
    """A model that says nothing: all 27 items are equally likely, whatever the beam keeps on the
    way.
    """
    sids = random_catalogue(0, 27, 3, 3)
    model = tiny_model("qwen2", 64)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    trie = SidTrie(sids, level_tokens([3, 3, 3]))
    beams = constrained_beam_search(
        TreeDecoder(model), random_prompts(1, 2), trie, width, normalize=normalize
    )
    for leaves in beams.leaves.tolist():
        found = [sids[trie.items_of_leaf(leaf)[0]] for leaf in leaves]
        assert found == sorted(sids)[:width]


def test_sids_of_different_lengths_compete_on_their_log_probability():
    sids = [(0, 1), (0, 0, 0), (0, 0, 1), (1, 2), (2, 0, 1), (2, 1)]
    tokens, model = level_tokens([3, 3, 2]), tiny_model("qwen3", 64, 2)
    trie, prompt = SidTrie(sids, tokens), [5, 9, 11]
    beams = constrained_beam_search(TreeDecoder(model), [prompt], trie, 6)
    scores = {
        sid: sequence_logp(model, prompt, [tokens[i][c] for i, c in enumerate(sid)]) for sid in sids
    }
    assert [sids[trie.items_of_leaf(leaf)[0]] for leaf in beams.leaves[0].tolist()] == sorted(
        sids, key=lambda s: -scores[s]
    )
    assert beams.scores[0].tolist() == pytest.approx(
        sorted(scores.values(), reverse=True), abs=1e-4
    )


@pytest.mark.parametrize("shared", [0, 40])
@pytest.mark.parametrize("model_type", ["qwen2", "gpt2"])
def test_batching_padding_and_the_shared_beginning_do_not_change_results(model_type, shared):
    sids, model = random_catalogue(1, 80, 3, 6), tiny_model(model_type, 64, 4)
    trie, prompts = SidTrie(sids, level_tokens([6, 6, 6])), random_prompts(8, 7, shared)
    together = search_all(model, prompts, trie, 12, batch_size=7)
    alone = search_all(model, prompts, trie, 12, batch_size=1)
    assert (together[0] == alone[0]).all()
    assert together[1] == pytest.approx(alone[1], abs=1e-4)


def test_the_slow_path_for_models_without_tree_masks_gives_the_same_answer():
    sids, model = random_catalogue(1, 40, 3, 5), tiny_model("llama", 64, 4)
    trie, prompts = SidTrie(sids, level_tokens([5, 5, 5])), random_prompts(8, 3)
    fast = constrained_beam_search(TreeDecoder(model), prompts, trie, 8)
    slow = constrained_beam_search(ReplayDecoder(model), prompts, trie, 8)
    assert (fast.leaves == slow.leaves).all()
    torch.testing.assert_close(fast.scores, slow.scores, atol=1e-4, rtol=0)


def test_a_generation_config_that_samples_changes_nothing():
    sids, model = random_catalogue(1, 40, 3, 5), tiny_model("qwen2", 64, 4)
    trie, prompts = SidTrie(sids, level_tokens([5, 5, 5])), random_prompts(8, 3)
    before = search_all(model, prompts, trie, 8, batch_size=2)
    model.generation_config.update(
        do_sample=True, temperature=0.1, top_k=2, top_p=0.5, repetition_penalty=3.0, num_beams=2
    )
    after = search_all(model, prompts, trie, 8, batch_size=2)
    assert (before[0] == after[0]).all() and (before[1] == after[1]).all()


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
def test_excluded_items_are_skipped_and_the_rest_keep_their_order_and_scores(normalize):
    """They lend their probability to nothing: not to an unlikely item that happens to share their
    prefix.
    """
    sids, model = random_catalogue(1, 25, 2, 5), tiny_model("qwen2", 64, 4)
    trie, prompts = SidTrie(sids, level_tokens([5, 5])), random_prompts(8, 2)
    everything, all_scores = search_all(model, prompts, trie, 25, batch_size=2, normalize=normalize)
    excluded = [everything[0, :7].tolist(), list(range(25))]
    kept, scores = search_all(
        model, prompts, trie, 25, batch_size=2, excluded=excluded, normalize=normalize
    )
    assert kept[0, :18].tolist() == everything[0, 7:].tolist() and (kept[0, 18:] == -1).all()
    assert scores[0, :18] == pytest.approx(all_scores[0, 7:], abs=1e-5)
    assert (kept[1] == -1).all() and (scores[1] == -math.inf).all()


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_excluded_the_list_is_the_full_one_without_it(seed):
    """Prompts exclude different numbers of leaves; whole branches die, level by level."""
    chance = random.Random(seed)
    sids, model = random_catalogue(seed, 40, 3, 4), tiny_model("qwen2", 64, 4)
    trie, prompts = SidTrie(sids, level_tokens([4, 4, 4])), random_prompts(8, 4)
    everything, all_scores = search_all(model, prompts, trie, 40, batch_size=4)
    excluded = []
    for number in (0, 1, 13, 39):
        excluded.append(sorted(chance.sample(range(40), number)))
    kept, scores = search_all(model, prompts, trie, 40, batch_size=4, excluded=excluded)
    for row, leaves in enumerate(excluded):
        stays = ~np.isin(everything[row], leaves)
        count = stays.sum()
        assert kept[row, :count].tolist() == everything[row, stays].tolist()
        assert (kept[row, count:] == -1).all()
        assert scores[row, :count] == pytest.approx(all_scores[row, stays], abs=1e-5)


def tokens_read(model):
    """A list that gets the number of tokens of every forward."""
    found = []
    model.base_model.register_forward_pre_hook(
        lambda _module, _args, words: found.append(words["input_ids"].numel()), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("shape", ["single", "branching", "short"])
@pytest.mark.parametrize("seed", range(6))
def test_the_first_places_alone_are_those_of_the_whole_list_and_cost_less(seed, shape):
    """Most items alone under their first codes, all among others, or SIDs of several lengths;
    with leaves that are excluded.
    """
    rng = random.Random(seed)
    sizes = [30, 6, 6, 6]
    sids = random_catalogue(seed, 60 if shape == "single" else 200, 4, 6)
    if shape != "branching":
        sids = sorted({(rng.randrange(30), *sid[1:]) for sid in sids})
    if shape == "short":
        sids = sorted({(sid[0],) if sid[0] % 3 == 0 else sid for sid in sids})
    trie = SidTrie(sids, level_tokens(sizes))
    model = tiny_model("qwen2", FIRST_SID + sum(sizes), seed=seed)
    # A model that has learnt nothing finds everything equally likely
    model.get_output_embeddings().weight.data *= 8
    read = tokens_read(model)
    prompts = random_prompts(seed, 5)
    excluded = [rng.sample(range(trie.num_leaves), rng.choice([0, 3])) for _ in prompts]
    for width, wanted in ((20, 1), (20, 5), (20, 20), (7, 3), (1, 1)):
        given = {"normalize": "trie", "excluded": excluded}
        read.clear()
        whole = constrained_beam_search(TreeDecoder(model), prompts, trie, width, **given)
        cost = sum(read)
        read.clear()
        first = constrained_beam_search(
            TreeDecoder(model), prompts, trie, width, **given, wanted=wanted
        )
        assert first.leaves.tolist() == whole.leaves[:, :wanted].tolist()
        assert first.nodes.tolist() == whole.nodes[:, :wanted].tolist()
        assert first.scores.tolist() == [
            pytest.approx(row, abs=1e-4) for row in whole.scores[:, :wanted].tolist()
        ]
        assert first.token_logps.shape == (5, wanted, 4)
        assert sum(read) <= cost and (shape == "branching" or width < 20 or sum(read) < 0.9 * cost)


def test_nothing_is_read_where_nothing_can_be_chosen():
    """Three items that their first codes tell apart: the prompt says it all."""
    trie = SidTrie([(0, 1, 2), (1, 0, 0), (2, 2, 2)], level_tokens([3, 3, 3]))
    model = tiny_model("qwen2", 64)
    read = tokens_read(model)
    prompts = random_prompts(1, 2)
    decoder = TreeDecoder(model)
    beams = constrained_beam_search(decoder, prompts, trie, 3, normalize="trie", wanted=3)
    assert len(read) == 1 and beams.scores.exp().sum(1).tolist() == pytest.approx([1, 1])
    assert (beams.token_logps[..., 1:] == 0).all()


def test_without_a_number_of_wanted_places_every_beam_is_read():
    """Evaluation and rollouts keep the shapes of their forwards, hence the last bits."""
    trie = SidTrie([(0, 1, 2), (1, 0, 0), (2, 2, 2)], level_tokens([3, 3, 3]))
    model = tiny_model("qwen2", 64)
    read = tokens_read(model)
    constrained_beam_search(TreeDecoder(model), [[5], [6]], trie, 3, normalize="trie")
    assert read == [2, 6, 6]


@pytest.mark.parametrize("rollout", ["gumbel", "sample"])
def test_drawn_rollouts_follow_the_distribution_of_the_trie(rollout):
    """The first draw of both ways is a draw from the model; 3,000 draws against the exact
    probabilities of 8 items.
    """
    sids = [(a, b) for a in range(2) for b in range(4)]
    model, trie, prompt = (
        tiny_model("qwen2", 64, 6),
        SidTrie([*sids], level_tokens([2, 4])),
        [3, 4, 5],
    )
    decoder, generator = TreeDecoder(model), torch.Generator().manual_seed(0)
    exact = constrained_beam_search(decoder, [prompt], trie, 8, normalize="trie")
    expected = torch.zeros(8).scatter(0, exact.leaves[0], exact.scores[0].exp())
    assert expected.sum().item() == pytest.approx(1.0, abs=1e-5)
    counts = torch.zeros(8)
    for _ in range(6):
        drawn = constrained_beam_search(
            decoder, [prompt] * 500, trie, 3, normalize="trie", rollout=rollout, generator=generator
        )
        counts += torch.bincount(drawn.leaves[:, 0], minlength=8)
        if rollout == "gumbel":
            assert all(len(set(row)) == 3 for row in drawn.leaves.tolist())
    spread = (expected * (1 - expected) / 3000).sqrt()
    assert ((counts / 3000 - expected).abs() < 4.5 * spread + 1e-4).all()


def test_the_logits_processor_confines_plain_generate_to_the_catalogue():
    sids = [(0, 1), (0, 0, 0), (0, 0, 1), (1, 2), (2, 0, 1)]
    tokens, model = level_tokens([3, 3, 2]), tiny_model("qwen2", 64, 2)
    trie = SidTrie(sids, tokens)
    ids = torch.tensor([[5, 9, 11], [2, 3, 4]])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=4,
        num_return_sequences=50,
        logits_processor=LogitsProcessorList([CatalogueLogitsProcessor(trie, 3, EOS)]),
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    paths = {tuple([tokens[i][c] for i, c in enumerate(sid)] + [EOS]) for sid in sids}
    found = {tuple(row[3 : 3 + row[3:].index(EOS) + 1]) for row in out.tolist()}
    assert found <= paths and len(found) > 2


def test_a_prompt_longer_than_the_context_is_refused_with_the_setting_to_lower():
    model = tiny_model("gpt2", 64)
    trie = SidTrie([(0,), (1,)], level_tokens([2]))
    with pytest.raises(
        UserError,
        match="need 301 tokens, the model's context is 256; "
        "lower data.max_history or model.max_tokens",
    ):
        constrained_beam_search(TreeDecoder(model), [[2] * 300], trie, 2)


def test_fewer_than_one_beam_is_refused():
    with pytest.raises(UserError, match="num_beams: got 0, expected at least 1"):
        search_all(
            tiny_model("qwen2", 64), [[2]], SidTrie([(0,)], level_tokens([1])), 0, batch_size=1
        )
