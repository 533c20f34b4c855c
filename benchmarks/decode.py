"""Decoding 50 beams per user.

Ours against Hugging Face ``generate`` with ``prefix_allowed_tokens_fn``.

    python benchmarks/decode.py --shape tiny --device cpu --repeats 5
    python benchmarks/decode.py --shape qwen0.5b --device cpu --repeats 5 --batch 4

Both sides decode the same real prompts with the same model object, turn by turn in one process;
medians are compared.

* ``levels + end``: the score of ``generate``, forced end-of-sequence token included. Parity: the
same lists.
* ``levels``: the SID's tokens alone, ``normalize: vocab``, what the stages use. Parity: the same 50
items.
* ``children``: ``normalize: trie``; another distribution, so it has no counterpart on the stock
side.

Parity is checked in float32, where both sides are exact, on as many prompts as ``--parity`` says;
in bfloat16 rounding makes near-ties swap on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import fire
import torch

from benchmarks import workload as w
from minionerec.errors import one_line_errors
from minionerec.model.beam_search import Beams, constrained_beam_search
from minionerec.model.decoders import make_decoder

EOS = 0
# (prompts, with_scores) -> per prompt SIDs as token tuples, and their scores
Decode = Callable[[list[list[int]], bool], tuple[list[list[tuple[int, ...]]], list[list[float]]]]


def stock_decoder(
    model: torch.nn.Module, sids: list[list[int]], num_beams: int, end: bool = True
) -> Decode:
    """Prompts -> (SID token lists, scores), the usual way.

    Left padding, a dict of prefixes, ``generate``; with the forced ``end``.
    """
    allowed: dict[tuple[int, ...], set[int]] = {}
    for sid in sids:
        path = [*sid, EOS]
        for i, token in enumerate(path):
            allowed.setdefault(tuple(path[:i]), set()).add(token)
    tables = {prefix: sorted(tokens) for prefix, tokens in allowed.items()}

    def decode(
        prompts: list[list[int]], with_scores: bool
    ) -> tuple[list[list[tuple[int, ...]]], list[list[float]]]:
        """SIDs and, if asked for, scores of the beams of each prompt."""
        width = max(map(len, prompts))
        ids = torch.tensor([[EOS] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
        )
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            max_new_tokens=len(sids[0]) + end,
            length_penalty=0.0,
            eos_token_id=EOS,
            pad_token_id=EOS,
            prefix_allowed_tokens_fn=lambda _, row: tables.get(tuple(row[width:].tolist()), [EOS]),
            return_dict_in_generate=True,
            output_scores=with_scores,
        )
        rows = [tuple(row) for row in out.sequences[:, width : width + len(sids[0])].tolist()]
        scores = out.sequences_scores.tolist() if with_scores else []
        cut = range(0, len(rows), num_beams)
        return [rows[i : i + num_beams] for i in cut], [scores[i : i + num_beams] for i in cut]

    return decode


def main(
    shape: str = "tiny",
    device: str = "cpu",
    repeats: int = 5,
    batch: int = 4,
    beams: int = 50,
    parity: int = 4,
    preamble: int = 0,
    data: str = "",
    threads: int = 1,
    stock: bool = True,
) -> None:
    """Print seconds per user of every mode, ratios, parity.

    Memory and the share of the GEMM peak.
    """
    torch.set_num_threads(threads)
    sizes, work = w.shape_of(shape), w.load_workload(w.data_folder(data))
    model = w.build_model(sizes, device=device)
    trie, sids = work.trie.to(device), [list(sid) for sid in work.sids.token_ids(work.tokenizer)]
    test = work.samples.splits["test"][:: max(1, len(work.samples.splits["test"]) // 512)]
    wording = w.preamble(work, preamble)
    prompts = sorted(
        (wording + work.renderer.prompt("sid_to_sid", s.history) for s in test), key=len
    )
    middle = prompts[len(prompts) // 2 - batch // 2 :][:batch]
    decoder, reference = make_decoder(model), stock_decoder(model, sids, beams)

    def ours(mode: str, some: list[list[int]]) -> Beams:
        return constrained_beam_search(
            decoder,
            some,
            trie,
            beams,
            normalize="trie" if mode == "children" else "vocab",
            score_eos=EOS if mode == "levels + end" else None,
        )

    modes = ("levels + end", "levels", "children")
    with torch.inference_mode():
        ok = check_parity(
            model,
            work,
            [prompts[i] for i in range(0, len(prompts), len(prompts) // parity)][:parity],
            beams,
        )
        shared = decoder.read_beginning(prompts)  # once per run, as ``search_batches`` does
        sides = {mode: lambda mode=mode: ours(mode, middle) for mode in modes}
        seconds = w.in_turns(
            ({"stock": lambda: reference(middle, False)} if stock else {}) | sides, repeats, device
        )
        peak = w.gemm_peak(sizes.dtype, device)
        memory = {
            name: w.peak_memory(side, device)
            for name, side in (
                ({"stock": lambda: reference(middle, False)} if stock else {}) | sides
            ).items()
        }
    own = sum(len(p) - shared for p in middle) / batch
    print(
        f"{work.name}, {shape}, {device}, {threads} threads, {sizes.dtype}, batch {batch} x "
        f"{beams} beams, prompts of "
        f"{len(middle[0])} to {len(middle[-1])} tokens of which {shared} are the same for all; "
        f"GEMM peak {peak / 1e9:.0f} GFLOP/s"
    )
    flops = {
        "levels + end": 2 * sizes.body * (own + 3 * beams) + 2 * sizes.head * (1 + 3 * beams),
        "levels": 2 * sizes.body * (own + 2 * beams) + 2 * sizes.head * (1 + 2 * beams),
        "children": 2 * sizes.body * (own + 2 * beams),
    }
    for name, value in seconds.items():
        floor = (
            f", {flops[name] / 1e9:.2f} GFLOP/user, {flops[name] * batch / value / peak:.0%} of "
            "the GEMM peak"
            if name in flops
            else ""
        )
        ratio = f", {seconds['stock'] / value:.1f} x" if stock and name != "stock" else ""
        print(
            f"{name:>13}: {value / batch:.4f} s/user, {batch / value:.2f} users/s{ratio}, "
            f"peak memory {memory[name] / 2**20:.0f} MiB{floor}"
        )
    if stock:
        print(
            f"ratio: {seconds['stock'] / seconds['levels']:.2f}  parity: {'ok' if ok else 'FAILED'}"
        )
    sys.exit(not ok)


def check_parity(
    model: torch.nn.Module, work: w.Workload, prompts: list[list[int]], beams: int
) -> bool:
    """Lists with the end token, sets without it, and scores, in float32 against the stock way."""
    dtype = model.dtype
    model.float()
    sids = [list(sid) for sid in work.sids.token_ids(work.tokenizer)]
    expected, expected_scores = stock_decoder(model, sids, beams)(prompts, True)
    decoder = make_decoder(model)
    whole = constrained_beam_search(decoder, prompts, work.trie, beams, score_eos=EOS)
    levels = constrained_beam_search(decoder, prompts, work.trie, beams)

    def tokens_of(leaves: list[int]) -> list[tuple[int, ...]]:
        return [tuple(sids[work.trie.items_of_leaf(leaf)[0]]) for leaf in leaves]

    lists = 0
    sets = 0
    found = zip(whole.leaves.tolist(), levels.leaves.tolist(), expected, strict=True)
    for with_end, without_end, want in found:
        lists += tokens_of(with_end) == want
        sets += set(tokens_of(without_end)) == set(want)
    gap = (whole.scores.cpu() - torch.tensor(expected_scores)).abs().max().item()
    print(
        f"float32 parity on {len(prompts)} prompts: {lists} lists identical, {sets} sets "
        f"identical, scores within {gap:.1e}"
    )
    model.to(dtype)
    return lists == sets == len(prompts) and gap <= 1e-4


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
