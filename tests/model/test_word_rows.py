"""SID rows from the words of a code's items."""

from __future__ import annotations

import pytest
import torch

from minionerec.catalogue.sids import SidTable
from minionerec.model import word_rows
from minionerec.model.vocabulary import extend_vocabulary, train_tokenizer
from tests.worlds import tiny_model, word_tokenizer

TEXTS = ["red cordless drill", "red cordless drill bits", "red garden hose", "red garden hose"]
CODES = [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_the_words_of_a_code_are_those_that_set_it_apart_from_the_others_of_its_level():
    words = word_rows.words_of_codes(TEXTS, CODES, level=0, codebook_size=3)
    assert words[1] == []  # no item has it
    # (1 + ln count) (1 + ln(4 / (1 + codes with the word))): drill 1.69 x 1.69, red 1.69 x 1.29,
    # bits 1 x 1.69.
    assert words[0] == ["cordless", "drill", "red", "bits"]
    assert words[2] == ["garden", "hose", "red"]


def test_items_with_a_shorter_sid_have_no_say_at_a_deeper_level():
    words = word_rows.words_of_codes(["alpha", "beta"], [(0,), (0, 1)], level=1, codebook_size=2)
    assert words == [[], ["beta"]]


def test_texts_without_words_give_no_words():
    assert word_rows.words_of_codes(["", "7"], [(0,), (1,)], 0, 2) == [[], []]


def test_a_row_is_the_mean_of_its_words_at_the_mean_norm_of_the_table():
    tokenizer = word_tokenizer(["drill", "hose"])  # <eos> 0, <unk> 1, drill 2, hose 3
    table = torch.tensor([[3.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 4.0]])  # mean norm 3
    drawn = torch.full((3, 2), 7.0)
    rows = word_rows.rows_from_words(table, tokenizer, [["drill"], [], ["drill", "hose"]], drawn)
    assert torch.allclose(rows[0], torch.tensor([3.0, 0.0]))
    assert torch.equal(rows[1], drawn[1])
    expected = torch.tensor([1.0, 2.0]) * 3 / 5**0.5  # mean of (2, 0) and (0, 4), then length 3
    assert torch.allclose(rows[2], expected)


def test_a_word_counts_as_it_stands_in_running_text():
    """With the space before it: alone it is another token, which texts hardly ever have."""
    tokenizer = train_tokenizer(["a drill and a drill and a drill"] * 9, 300)
    inside, alone = (tokenizer(text)["input_ids"] for text in (" drill", "drill"))
    assert len(inside) == 1 and inside != alone
    table = torch.randn(len(tokenizer), 4, generator=torch.Generator().manual_seed(0))
    row = word_rows.rows_from_words(table, tokenizer, [["drill"]], torch.zeros(1, 4))[0]
    expected = table[inside[0]] / table[inside[0]].norm() * table.norm(dim=1).mean()
    assert torch.allclose(row, expected, atol=1e-6)


def test_shuffled_words_are_the_same_lists_on_other_codes():
    words = [[str(i)] for i in range(20)]
    other = word_rows.shuffled(words, seed=1)
    assert sorted(other) == sorted(words) and other != words
    assert other == word_rows.shuffled(words, seed=1) != word_rows.shuffled(words, seed=2)


@pytest.mark.parametrize("tied", [True, False])
def test_new_sid_tokens_start_from_their_words_on_both_sides_and_old_rows_stay(tied):
    tokenizer = word_tokenizer(["drill", "hose", "<a_0>"])  # <a_0> is known: its row was trained
    model = tiny_model("llama", vocab_size=5, tie_word_embeddings=tied)
    sids = SidTable(["1", "2"], [(0,), (1,)], [3], "digest")
    before = model.get_input_embeddings().weight.detach().clone()
    new_ids = extend_vocabulary(model, tokenizer, sids, seed=0)  # <a_1> and <a_2>
    drawn = model.get_input_embeddings().weight.detach().clone()
    word_rows.start_from_words(model, tokenizer, sids, ["drill", "hose"], new_ids, 5)
    hose = tokenizer.convert_tokens_to_ids("hose")
    for side in (model.get_input_embeddings(), model.get_output_embeddings()):
        table = side.weight.detach()
        first, second = table[tokenizer.convert_tokens_to_ids("<a_1>")], table[hose]
        assert torch.allclose(first / first.norm(), second / second.norm(), atol=1e-6)
        assert torch.allclose(first.norm(), table[:5].norm(dim=1).mean(), rtol=1e-5)
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after[:5], before)
    nobody = tokenizer.convert_tokens_to_ids("<a_2>")  # no item has the code
    assert torch.equal(after[nobody], drawn[nobody])
