"""SFT rows that tie a code to the words of its items, both ways (TS-Rec, "TS-Align").

``words_to_code`` shows words and asks for the code, ``code_to_words`` the other way round. The
words are those that set a code apart from the others of its level, the same that
``model.sid_init: words`` starts its row from. Neither task is an item's: they are for SFT alone,
and no prompt of a ranking looks like theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.rows import Row
from minionerec.experiment.choices import CODE_TASKS
from minionerec.model.word_rows import words_of_codes

SHOWN_WORDS = 8  # of at most twenty: the later ones say little, and cost as many tokens
NO_ITEM = -1


def code_rows(
    shares: Mapping[str, float],
    catalogue: Catalogue,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
) -> list[Row]:
    """The rows of those tasks of ``sft.tasks`` that are about codes.

    A share of .3 is a fixed random 30 % of a task's rows, 2 is all of them twice.

    Args:
        shares: task -> share; those of items are passed over.
        catalogue: whose codes and texts.
        tokenizer: with the SID tokens.
        renderer: of the prompts.
    """
    wanted = {task: shares[task] for task in CODE_TASKS if shares.get(task)}
    if not wanted:
        return []
    pairs: list[tuple[int, str]] = []  # a code's token, and its words as they are written
    for level, tokens in enumerate(catalogue.sids.level_token_ids(tokenizer)):
        words = words_of_codes(catalogue.texts(), catalogue.sids.codes, level, len(tokens))
        for token, own in zip(tokens, words, strict=True):
            # A code without items, or whose items have no text, means nothing
            if own:
                pairs.append((token, ", ".join(own[:SHOWN_WORDS])))
    rng = np.random.default_rng(catalogue.experiment.seed)
    rows: list[Row] = []
    for task, share in wanted.items():
        found = []
        for token, text in pairs:
            row = code_row(task, token, text, tokenizer, renderer)
            found.append(row)
        rows += found * int(share)
        rest = round((share - int(share)) * len(found))
        chosen = rng.permutation(len(found))[:rest]
        for number in sorted(chosen):
            rows.append(found[number])
    return rows


def code_row(
    task: str, token: int, words: str, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> Row:
    """One row: ``words: drill, cordless code:`` asks for a token, ``code:<a_3> words:`` back."""
    end = [tokenizer.eos_token_id]
    if task == "words_to_code":
        prompt = renderer.start(f"words: {words} code:")
        return Row(task, "", prompt, [token, *end], NO_ITEM)
    prompt = renderer.start(f"code:{tokenizer.convert_ids_to_tokens(token)} words:")
    completion = tokenizer(f" {words}", add_special_tokens=False)["input_ids"]
    return Row(task, "", prompt, completion + end, NO_ITEM)
