"""A run's model and catalogue in the formats of other engines.

    python -m minionerec.serving.export --for flashrec --run runs/quickstart --out exported
    python -m minionerec.serving.export --for nvidia   --run runs/quickstart --out exported
    python -m minionerec.serving.export --for vllm     --run runs/quickstart --out exported

* ``flashrec`` (package ``flashrec``, 0.1.2): SID tokens are called ``<s_a_0>`` there, in contiguous
  blocks with ``<|sid_begin|>`` and ``<|sid_end|>`` behind them, and ``catalogue.json`` has keys
  ``"a,b,c"``.
* ``nvidia`` (sid-gr-inference): ``catalogue.jsonl`` with ``item_id, token_ids, metadata``.
* ``vllm``: the plain Hugging Face folder with ``generate.py``, which keeps ``model.generate`` in
  the catalogue. vLLM's own beam search looks at the 2 W likeliest tokens of the whole vocabulary
  before anything can be filtered; how many legal ones that loses on this model is measured and
  printed.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minionerec.catalogue.sids import LEVELS
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.config import split_flags
from minionerec.experiment.files import write_json
from minionerec.model.ranking import TASK
from minionerec.serving.lost_tokens import lost_tokens
from minionerec.serving.recommender import Recommender

BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
SAMPLE = 16  # validation rows on which lost tokens are counted

GENERATE = '''"""Items of the catalogue from plain ``model.generate``; needs minionerec.

    python generate.py "PROMPT"
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from minionerec.catalogue.trie import SidTrie
from minionerec.model.logits_processor import CatalogueLogitsProcessor

HERE = Path(__file__).resolve().parent


def generate(prompt_ids, num_beams=10):
    """The item ids of the likeliest SIDs, best first, each with its log-probability."""
    about = json.loads((HERE / "catalogue.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(HERE).eval()
    trie = SidTrie(about["codes"], about["level_token_ids"]).to(model.device)
    inputs = model.dummy_inputs["input_ids"].new_tensor([prompt_ids])
    end = about["eos_token_id"]
    processor = CatalogueLogitsProcessor(trie, inputs.shape[1], end)
    output = model.generate(
        input_ids=inputs,
        attention_mask=inputs.new_ones(inputs.shape),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=trie.num_levels,  # without the end token, whose score says nothing
        do_sample=False,
        length_penalty=0.0,
        logits_processor=LogitsProcessorList([processor]),
        renormalize_logits=about["normalize"] == "trie",
        output_scores=True,
        return_dict_in_generate=True,
        eos_token_id=end,
        pad_token_id=end,
    )
    code_of = {}
    for level in about["level_token_ids"]:
        code_of |= {token: code for code, token in enumerate(level)}
    found = []
    for row, score in zip(output.sequences.tolist(), output.sequences_scores.tolist()):
        path = []
        for token in row[inputs.shape[1] :]:
            if token == end:
                break
            path.append(code_of[token])
        for item in trie.items_of_leaf(int(trie.leaf[trie.find(path)])):
            found.append((about["item_ids"][item], score))
    return found


if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    for item_id, score in generate(tokenizer(sys.argv[1])["input_ids"]):
        print(f"{score:9.4f}  {item_id}")
'''


def main() -> None:
    """Read the flags, load the run, write the folder."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(f"{(__doc__ or '').strip()}\n")
        return
    flags = split_flags(sys.argv[1:])
    known = {"for", "run", "out", "checkpoint"}
    wrong = sorted(set(flags) - known)
    if wrong:
        raise UserError(f"command line: unknown flag --{wrong[0]}; expected {', '.join(known)}")
    for name in ("for", "run", "out"):
        if name not in flags:
            raise UserError(f"--{name} is missing; see --help")
    if flags["for"] not in EXPORTS:
        raise UserError(f"--for: got '{flags['for']}', expected one of {', '.join(EXPORTS)}")
    target = Path(flags["out"])
    if target.exists():
        raise UserError(f"--out: {target} is there already; delete it, or name another folder")
    recommender = Recommender.load(flags["run"], flags.get("checkpoint"))
    for note in EXPORTS[flags["for"]](recommender, target):
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(f"written to {target}\n")


def for_flashrec(recommender: Recommender, target: Path) -> list[str]:
    """Write FlashRec's model folder and ``catalogue.json``; returns what to know about it.

    Raises:
        UserError: its format cannot say what this catalogue is.
    """
    policy = recommender.policy
    sids = recommender.catalogue.sids
    num_levels = len(sids.codebook_sizes)
    lengths = set(map(len, sids.codes))
    if lengths != {num_levels} or num_levels == 4:
        raise UserError(
            f"flashrec: SIDs have {sorted(lengths)} levels; expected one length, and not 4, whose "
            "last level FlashRec takes for its end token"
        )
    # Its layout is read off the token ids: blocks of levels without a gap, the two names behind
    blocks = sids.level_token_ids(policy.tokenizer)
    flat = [token for block in blocks for token in block]
    first = flat[0]
    last = flat[-1]
    if flat != list(range(first, last + 1)):
        raise UserError("flashrec: the ids of the SID tokens have gaps; expected one block")
    taken = set(policy.tokenizer.get_vocab().values()) & {last + 1, last + 2}
    if taken:
        raise UserError(f"flashrec: token {min(taken)} behind the SID tokens is another's already")

    target.mkdir(parents=True)
    model = policy.model_again(policy.model.dtype)
    if model.get_input_embeddings().num_embeddings < last + 3:
        model.resize_token_embeddings(last + 3, mean_resizing=False)
    model.save_pretrained(target)
    policy.tokenizer.save_pretrained(target)
    _rename_tokens(target / "tokenizer.json", {BEGIN: last + 1, END: last + 2})
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for item_id, codes in zip(sids.item_ids, sids.codes, strict=True):
        ids[",".join(map(str, codes))].append(item_id)
    write_json(target / "catalogue.json", ids)
    notes = []
    if model.config.model_type != "qwen3":
        notes.append(
            f"FlashRec 0.1.2 runs Qwen3; this is {model.config.model_type}: layout and catalogue "
            "fit, its engine will not load the weights"
        )
    if policy.normalize == "trie":
        notes.append("FlashRec scores over the vocabulary, this model was evaluated over the trie")
    return notes


def for_nvidia(recommender: Recommender, target: Path) -> list[str]:
    """Write the Hugging Face folder and ``catalogue.jsonl``."""
    _save_plain(recommender, target)
    catalogue = recommender.catalogue
    token_ids = catalogue.sids.token_ids(recommender.policy.tokenizer)
    titles = catalogue.items["title"]
    with open(target / "catalogue.jsonl", "w", encoding="utf-8") as handle:
        for item, item_id in enumerate(catalogue.item_ids):
            line = {
                "item_id": item_id,
                "token_ids": token_ids[item],
                "metadata": {"title": titles.iloc[item]},
            }
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
    return []


def for_vllm(recommender: Recommender, target: Path) -> list[str]:
    """Write the Hugging Face folder, ``catalogue.json`` and ``generate.py``."""
    _save_plain(recommender, target)
    policy = recommender.policy
    catalogue = recommender.catalogue
    content: dict[str, Any] = {
        "item_ids": catalogue.item_ids,
        "codes": list(catalogue.sids.codes),
        "level_token_ids": catalogue.sids.level_token_ids(policy.tokenizer),
        "eos_token_id": policy.tokenizer.eos_token_id,
        "normalize": policy.normalize,
    }
    (target / "catalogue.json").write_text(json.dumps(content), encoding="utf-8")
    (target / "generate.py").write_text(GENERATE, encoding="utf-8")
    rows = catalogue.samples.splits["valid"][:SAMPLE]
    prompts = [policy.renderer.prompt(TASK, row.history) for row in rows]
    lost = lost_tokens(policy, prompts, recommender.num_beams)
    return [
        f"a beam search that filters behind the top 2 x {recommender.num_beams} tokens, as vLLM's "
        f"does, never sees {lost.tokens:.1%} of the legal tokens of its beams, and loses "
        f"{lost.items:.1%} of the exact lists ({len(rows)} validation rows)"
    ]


EXPORTS: dict[str, Callable[[Recommender, Path], list[str]]] = {
    "flashrec": for_flashrec,
    "nvidia": for_nvidia,
    "vllm": for_vllm,
}


def _save_plain(recommender: Recommender, target: Path) -> None:
    policy = recommender.policy
    target.mkdir(parents=True)
    policy.save(policy.model, target)


def _rename_tokens(file: Path, new: dict[str, int]) -> None:
    """Give SID tokens FlashRec's names, and add ``new`` ones, in a ``tokenizer.json``."""
    content = json.loads(file.read_text(encoding="utf-8"))
    added = content["added_tokens"]
    for token in added:
        name = token["content"]
        level, _, code = name.strip("<>").partition("_")
        if name == f"<{level}_{code}>" and level in LEVELS and len(level) == 1 and code.isdecimal():
            token["content"] = f"<s_{level}_{code}>"
    for name, number in new.items():
        added.append(added[-1] | {"id": number, "content": name})
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
