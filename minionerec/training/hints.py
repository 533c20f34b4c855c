"""Hints: the first codes of the target, as many as it takes for a group to hold it.

A group without the target earns no rule reward and teaches nothing. For every row one pass finds
the least number of true codes after which the target is among the beams; they then join the prompt,
and the policy generates the rest. So every row teaches the levels that it can learn.

The pass costs one beam search per row and code. It asks the model that RL starts from, and its
result is kept beside the stage under the digest of all that it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.files import sha256_json, write_json
from minionerec.experiment.run import say
from minionerec.experiment.stages import stage_path
from minionerec.model.beam_search import constrained_beam_search, length_sorted
from minionerec.model.decoders import make_decoder
from minionerec.model.policy import Policy
from minionerec.training.rollouts import given_nodes

ROWS_PER_FORWARD = 64
HINTS_FILE = "rl.hints.json"


def least_hints(
    model: nn.Module,
    rows: Sequence[Row],
    trie: SidTrie,
    num_beams: int,
    normalize: str,
) -> list[int]:
    """Per row the least number of the target's codes that puts it among the beams.

    At least one code is left to generate, also where even that does not bring the target in.
    Several processes share the rows.

    Args:
        model: on the trie's device.
        rows: to be rolled out.
        trie: the catalogue.
        num_beams: G of the rollouts.
        normalize: ``vocab`` or ``trie``.
    """
    state = PartialState()
    was_training = model.training
    model.eval()
    batches = length_sorted([row.prompt for row in rows], ROWS_PER_FORWARD)
    found: list[tuple[int, int]] = []  # (number of the row, its codes)
    for batch in batches[state.process_index :: state.num_processes]:
        # All rows without a hint first; those that miss again with one code, with two, ...
        missing = batch
        codes = 0
        while missing:
            still_missing = []
            chosen = [rows[i] for i in missing]
            given = [codes] * len(chosen)
            hits = _hits(model, chosen, given, trie, num_beams, normalize)
            for i, hit in zip(missing, hits, strict=True):
                # With all of its codes given a SID would leave nothing to generate
                last = len(trie.item_path(rows[i].target_item)) - 1
                if hit or codes >= last:
                    found.append((i, min(codes, last)))
                else:
                    still_missing.append(i)
            missing = still_missing
            codes += 1
    model.train(was_training)
    if state.num_processes > 1:
        found = gather_object(found)
    return [codes for _, codes in sorted(found)]


def _hits(
    model: nn.Module,
    rows: Sequence[Row],
    given: Sequence[int],
    trie: SidTrie,
    num_beams: int,
    normalize: str,
) -> list[bool]:
    """Whether each row's target is among its beams behind so many of its codes."""
    beams = constrained_beam_search(
        make_decoder(model),
        [row.prompt for row in rows],
        trie,
        num_beams,
        normalize=normalize,
        given=given_nodes(trie, rows, given) if any(given) else None,
    )
    targets = torch.from_numpy(trie.leaf_of_item)[[row.target_item for row in rows]]
    return (beams.leaves.cpu() == targets[:, None]).any(1).tolist()


def kept_hints(
    policy: Policy,
    decoder: nn.Module,
    rows: Sequence[Row],
    device: torch.device,
    keep: bool = True,
) -> list[int]:
    """``least_hints`` of the policy that RL starts from, made once for a checkpoint and settings.

    An empty list where ``rl.hints`` is off, or where nothing is rolled out.

    They are kept in ``runs/<name>/rl.hints.json``, which is made anew where it belongs to another
    checkpoint, other rows or another group size.

    Args:
        policy: of the checkpoint.
        decoder: its model, or a copy of it, on the device.
        rows: to be rolled out.
        device: of the model.
        keep: write them down; a dry run writes nothing.
    """
    experiment = policy.catalogue.experiment
    if not experiment.rl.hints or not experiment.rl.rolls_out:
        return []
    num_beams = experiment.rl.num_generations
    file = stage_path(experiment, HINTS_FILE)
    # Whatever changes a search changes the digest: weights, prompts, targets, SIDs, width
    asked = [(row.prompt, row.target_item) for row in rows]
    digest = sha256_json(
        [
            policy.checkpoint.digest,
            policy.catalogue.sids.sha256,
            policy.normalize,
            num_beams,
            asked,
        ]
    )
    codes = _read(file, digest)
    if codes is None:
        trie = policy.trie.to(device)
        codes = least_hints(decoder, rows, trie, num_beams, policy.normalize)
        if keep and PartialState().is_main_process:
            # Under another name first, so that what has the name is whole
            staging = file.with_suffix(".new")
            write_json(staging, {"digest": digest, "codes": codes})
            staging.replace(file)
    hinted = sum(number > 0 for number in codes)
    say(
        f"hints: {hinted:,} of {len(rows):,} prompts need {sum(codes) / max(1, hinted):.2f} codes "
        f"of their target to hold it among {num_beams} beams"
    )
    return codes


def _read(file: Path, digest: str) -> list[int] | None:
    """The codes in a file; None where it is missing, cut off, or of something else."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["codes"] if kept["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
