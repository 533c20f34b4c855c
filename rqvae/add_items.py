"""New items for a model that is trained already.

SIDs for what joined the catalogue later, without moving anybody's.

    python rqvae/add_items.py --config C --items new.csv [--to NAME] [--vectors FILE]

``new.csv`` (or .tsv, .jsonl, .parquet) has the item columns of the data stage, under the names of
``data.columns``. The items are embedded with the experiment's encoder, quantised with its codebooks
as they are, and get the nearest SIDs that are free (``free_sids``). ``runs/<name>`` stays as it is;
a new experiment ``runs/<NAME>`` (default ``<name>-extended``) holds ``data`` (the same
interactions, the longer catalogue) and ``sids`` (every SID as it was, and the new ones). The code
space is the same, so that every token exists in the old model, which then ranks the longer
catalogue:

    bash evaluate.sh --config C --name NAME --evaluate.checkpoint runs/<name>/rl
    python recommend.py --config C --name NAME --evaluate.checkpoint runs/<name>/rl --history ID,ID

An extended experiment can be extended again: ``--name NAME --items more.csv --to OTHER``.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

import dataclasses
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minionerec.catalogue import prepared
from minionerec.catalogue.item_text import item_texts
from minionerec.catalogue.sources.interactions import members
from minionerec.catalogue.sources.items import convert_items, read_items
from minionerec.catalogue.sources.source import ITEM_COLUMNS
from minionerec.catalogue.sources.table import complain
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import append_log, link_or_copy, sha256_file, write_json
from minionerec.experiment.lineage import open_stage
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import Parent, opened, read_manifest, verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import STAGES, next_command, settings_of, stage_path
from minionerec.pages.html import render
from rqvae import build_sids, embed_items
from rqvae.embeddings.encoder import encoder_digest
from rqvae.embeddings.own import beside_text, read_own_vectors
from rqvae.embeddings.parts import join_parts
from rqvae.quantizers.collisions import Sid, as_tuples, colliding, nearest_free
from rqvae.quantizers.methods import Quantizer, load_quantizer
from rqvae.quantizers.rqkmeans import Quantised
from rqvae.report import pad

MADE_BY = STAGES["add_items"].command
EXAMPLES = 50  # new items that the report shows
FOREIGN = 2.0  # times the old items' error; 300 items held out of Amazon Industrial: 1.5


def main() -> None:
    """Read, embed, assign, commit: from top to bottom."""
    experiment, flags = read_command_line(__doc__, own=("items", "to", "vectors"))
    name = flags.get("to", f"{experiment.name}-extended")
    check_names(experiment, name, flags)
    target = experiment.changed({"name": name})
    parents = [open_stage(experiment, stage) for stage in ("data", "sids")]
    data, sids = (parent.path for parent in parents)
    embeddings_path = stage_path(experiment, "embeddings")
    if embeddings_path.exists():  # an encoder that changed since is refused
        embed_items.check_own(experiment, embeddings_path, data)
    check_encoder(experiment, sids)
    old = pd.read_parquet(data / "items.parquet")
    new = read_new_items(Path(flags["items"]), experiment, old["item_id"])
    with locked(stage_path(target, "sids")):
        if is_finished(target, new, data, sids):
            print(f"{stage_path(target, 'sids')}: is there already, with these {len(new)} items")
            return
        vectors = flags.get("vectors", "")
        embeddings, twins = embed_new(experiment, target, new, old, sids, vectors)
        stored = json.loads((sids / "sids.json").read_text(encoding="utf-8"))
        quantizer = load_quantizer(sids)
        quantised = quantizer.quantise(embeddings)
        old_sids = [tuple(stored["sids"][item]) for item in old["item_id"]]
        new_sids = free_sids(
            quantised,
            stored["codebook_sizes"],
            quantizer.sizes,
            old_sids,
            experiment.sids.collision,
        )
        extended = dict(
            zip([*old["item_id"], *new["item_id"]], [*old_sids, *new_sids], strict=True)
        )
        facts = {
            "added": len(new),
            "churn": churn(stored["sids"], extended),
            "same_text_as_an_old_item": twins,
            **describe(
                old,
                new,
                extended,
                quantised,
                quantizer,
                np.load(sids / "embeddings.npy", mmap_mode="r"),
            ),
        }
        new_data = write_data(target, parents[0], old, new, new_sids)
        read = [new_data, parents[1]]
        write_sids(target, read, stored, extended, items_sha256(new), embeddings, facts)
        forget_scratch(target)
    print(summary(facts, target, experiment))


def check_names(experiment: Experiment, name: str, flags: dict[str, str]) -> None:
    """Refuse flags that cannot work before anything is read."""
    problems = []
    items = flags.get("items", "")
    own = experiment.sids.embeddings
    if own and "vectors" not in flags:
        problems.append(
            f"--vectors is missing: these SIDs were made from the vectors of {own}; name a file "
            "like it with those of the new items"
        )
    if "vectors" in flags and not own:
        problems.append(
            "--vectors: these SIDs were made from texts alone (sids.embeddings); leave it out"
        )
    if not items:
        problems.append("--items is missing; name a file with new items, e.g. --items new.csv")
    elif not Path(items).is_file():
        problems.append(f"--items: {items}: no such file")
    if name == experiment.name:
        problems.append(
            f"--to: got '{name}', expected another name than the experiment's own, "
            "which stays as it is"
        )
    try:
        experiment.changed({"name": name})
    except UserError as error:
        problems.append(f"--to: {str(error).removeprefix('name: ')}")
    if problems:
        raise UserError("\n".join(problems))


def check_encoder(experiment: Experiment, sids: Path) -> None:
    """Refuse an encoder that is not the one that the codebooks are of, as far as that is known.

    Raises:
        UserError: it would give new items vectors of another space.
    """
    before = embed_items.embedding_facts(sids).get("encoder_sha256", "")
    now = encoder_digest(experiment.sids.encoder) if before else ""
    if now and now != before:
        raise UserError(
            f"{sids}: was made with another model than '{experiment.sids.encoder}' now holds "
            f"(sha256 {before[:12]}, now {now[:12]}); restore it, or make the SIDs again"
        )


def read_new_items(path: Path, experiment: Experiment, known: pd.Series) -> pd.DataFrame:
    """The checked new items, columns as in ``items.parquet``.

    Raises:
        UserError: one line per kind of mistake; ids that the catalogue has already are one.
    """
    sheet = read_items(path, experiment.data.columns)
    problems: list[str] = []
    items, notes = convert_items(sheet, problems)
    known_already = members(items["item_id"], known)
    expected = "an id that is not in the catalogue yet"
    complain(sheet, "item_id", known_already, expected, problems)
    if problems:
        raise UserError("\n".join(problems))
    for note in sheet.notes + notes:
        print(f"note: {note}")
    return items


def is_finished(target: Experiment, new: pd.DataFrame, data: Path, sids: Path) -> bool:
    """Whether ``runs/<NAME>`` holds just this extension.

    A data directory of it alone is one that was interrupted.

    Raises:
        UserError: it holds something else.
    """
    for stage, parent in (("data", data), ("sids", sids)):
        path = stage_path(target, stage)
        if not path.exists():
            continue
        manifest = verify(path)
        from_parent = read_manifest(parent)["manifest_sha256"] in manifest["parents"].values()
        if manifest.get("added_items_sha256") != items_sha256(new) or not from_parent:
            raise UserError(
                f"{path}: is there already, made from something else; delete {path.parent}, or "
                "give the new experiment another name with --to NAME"
            )
    return stage_path(target, "sids").exists()


def items_sha256(items: pd.DataFrame) -> str:
    """Of the new items' content, whatever file they came in."""
    columns = [items[name].tolist() for name in items]
    rows = list(zip(*columns, strict=True))
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------
# Embed and assign


def embed_new(
    experiment: Experiment,
    target: Experiment,
    new: pd.DataFrame,
    old: pd.DataFrame,
    sids: Path,
    vectors: str,
) -> tuple[np.ndarray, int]:
    """``(M, D)`` embeddings of the new items, and how many have the text of an old item.

    Those get the old item's vector, to the bit, unless ``vectors`` (a file, maybe "") decides.
    """
    if not vectors:
        embeddings = embed_new_texts(experiment, target, new)
        return same_as_old(experiment, embeddings, new, old, sids)
    embeddings = read_own_vectors(vectors, new["item_id"].tolist())
    weight = experiment.sids.embeddings_weight
    if weight < 1:
        embeddings = beside_text(embeddings, embed_new_texts(experiment, target, new), weight)
    width = np.load(sids / "embeddings.npy", mmap_mode="r").shape[1]
    if embeddings.shape[1] != width:
        raise UserError(
            f"--vectors: {vectors}: gives {embeddings.shape[1]} numbers an item, expected {width} "
            f"as {experiment.sids.embeddings} did"
        )
    return embeddings, 0


def embed_new_texts(experiment: Experiment, target: Experiment, new: pd.DataFrame) -> np.ndarray:
    """``(M, D)`` embeddings of the new items' texts."""
    import torch
    from accelerate import PartialState

    folder = stage_path(target, "sids").parent
    items = folder / ".new-items.parquet"
    new.to_parquet(items)
    scratch = embed_items.scratch_folder(experiment, items, stage_path(target, "embeddings"))
    store, _ = embed_items.embed_texts(
        experiment, items, scratch, PartialState(cpu=not torch.accelerator.is_available())
    )
    join_parts(store, scratch, scratch / "embeddings.npy")
    return np.load(scratch / "embeddings.npy", allow_pickle=False)


def same_as_old(
    experiment: Experiment,
    embeddings: np.ndarray,
    new: pd.DataFrame,
    old: pd.DataFrame,
    sids: Path,
) -> tuple[np.ndarray, int]:
    """The embeddings, of items with the text of an old one that one's; how many these are."""
    parts = experiment.sids.text
    row_of_text: dict[str, int] = {}
    for row, text in enumerate(item_texts(old, parts)):
        row_of_text.setdefault(text, row)
    twins = []
    for row, text in enumerate(item_texts(new, parts)):
        if text in row_of_text:
            twins.append((row, row_of_text[text]))
    if twins:
        rows, old_rows = map(list, zip(*twins, strict=True))
        embeddings[rows] = np.load(sids / "embeddings.npy", mmap_mode="r")[old_rows]
    return embeddings, len(twins)


def forget_scratch(target: Experiment) -> None:
    """Remove what only an interrupted run needs."""
    folder = stage_path(target, "sids").parent
    for name in (".new-items.parquet", ".all-embeddings.npy"):
        (folder / name).unlink(missing_ok=True)
    for parts in folder.glob(".embeddings.parts-*"):
        shutil.rmtree(parts)


def free_sids(
    quantised: Quantised,
    final_sizes: list[int],
    sizes: list[int],
    old_sids: list[Sid],
    policy: str,
) -> list[Sid]:
    """SIDs of the new items: the nearest free ones.

    With ``keep`` those that the quantiser gives, shared or not.

    With ``extra_level`` a new item whose codes a group of items has gets the group's next further
    code, as long as there is one (the model has no tokens for more). Items that have a SID of L
    codes keep these to themselves, since no SID may begin another.

    Args:
        final_sizes: of the catalogue's SIDs, with the further level if there is one.
        sizes: of the quantiser's L levels.

    Raises:
        UserError: the code space is full.
    """
    if policy == "keep":
        return as_tuples(quantised.codes)
    num_further = final_sizes[len(sizes)] if len(final_sizes) > len(sizes) else 0
    placed = further_codes(as_tuples(quantised.codes), old_sids, len(sizes), num_further)
    rest = np.array([row for row in range(len(quantised.codes)) if row not in placed], np.int64)
    if len(rest):
        taken = np.array([sid[: len(sizes)] for sid in [*old_sids, *placed.values()]], np.int64)
        some = dataclasses.replace(
            quantised, codes=quantised.codes[rest], points=quantised.points[rest]
        )
        placed |= dict(
            zip(rest.tolist(), as_tuples(nearest_free(some, sizes, taken=taken)), strict=True)
        )
    return [placed[row] for row in range(len(quantised.codes))]


def further_codes(
    codes: list[Sid],
    old_sids: list[Sid],
    num_levels: int,
    num_further: int,
) -> dict[int, Sid]:
    """Rows of new items whose group has a further code left, and the SID that they get.

    >>> further_codes([(0, 0), (0, 1), (0, 0)], [(0, 0, 0), (0, 1)], num_levels=2, num_further=2)
    {0: (0, 0, 1)}
    """
    alone, times = {sid for sid in old_sids if len(sid) == num_levels}, Counter(codes)
    used: defaultdict[Sid, set[int]] = defaultdict(set)
    for sid in old_sids:
        if len(sid) > num_levels:
            used[sid[:num_levels]].add(sid[num_levels])
    placed = {}
    for row, code in enumerate(codes):
        further = next((k for k in range(num_further) if k not in used[code]), None)
        if further is not None and code not in alone and (used[code] or times[code] > 1):
            placed[row] = (*code, further)
            used[code].add(further)
    return placed


def churn(before: dict[str, list[int]], after: dict[str, Sid]) -> int:
    """How many SIDs moved; anything but 0 is a defect of this program, so nothing may be written.

    Raises:
        RuntimeError: one did.
    """
    moved = [item for item, sid in before.items() if after.get(item) != tuple(sid)]
    if moved:
        raise RuntimeError(f"the SID of item '{moved[0]}' would move ({len(moved)} in all)")
    return len(moved)


def describe(
    old: pd.DataFrame,
    new: pd.DataFrame,
    extended: dict[str, Sid],
    quantised: Quantised,
    quantizer: Quantizer,
    old_embeddings: np.ndarray,
) -> dict[str, Any]:
    """What ``report.json`` says.

    What it cost to add the items, and beside which old ones they stand.
    """
    sids = list(extended.values())
    codes, new_sids = pad(sids, max(map(len, sids))), sids[len(old) :]
    sample = np.sort(
        np.random.default_rng(0).choice(len(old), min(len(old), 10_000), replace=False)
    )
    errors = {
        name: float(np.median(lost(points, quantizer)))
        for name, points in (
            ("new", quantised),
            ("old", quantizer.quantise(np.array(old_embeddings[sample]))),
        )
    }
    return {
        "items": len(codes),
        "items_that_share_a_sid": int(colliding(codes).sum()),
        "re_assigned": sum(
            tuple(code) != sid[: len(code)]
            for code, sid in zip(quantised.codes.tolist(), new_sids, strict=True)
        ),
        "quantisation_error": {name: round(error, 6) for name, error in errors.items()},
        "examples": [
            {
                "item_id": new["item_id"].iloc[row],
                "title": new["title"].iloc[row],
                "sid": list(new_sids[row]),
                "shares": shared,
                "beside": old["title"].iloc[beside],
            }
            for row in range(min(len(new), EXAMPLES))
            for shared, beside in [neighbour(codes[: len(old)], new_sids[row])]
        ],
    }


def lost(quantised: Quantised, quantizer: Quantizer) -> np.ndarray:
    """``(N,)`` squared distance of each item from what its codes say, over its squared length."""
    rest = quantised.points.astype(np.float32, copy=True)
    for level, codebook in enumerate(quantizer.codebooks):
        rest -= codebook[quantised.codes[:, level]]
    return np.square(rest).sum(axis=1) / np.maximum(np.square(quantised.points).sum(axis=1), 1e-30)


def neighbour(codes: np.ndarray, sid: Sid) -> tuple[int, int]:
    """How many first codes a SID shares with the old item that shares most, and that item's row.

    Codes are ``(N, L)``.
    """
    width = min(codes.shape[1], len(sid))
    same = np.cumprod(codes[:, :width] == np.array(sid[:width]), axis=1).sum(axis=1)
    return int(same.max()), int(same.argmax())


# ------------------------------------------------------------------------------------------------
# Write


def write_data(
    target: Experiment,
    parent: Parent,
    old: pd.DataFrame,
    new: pd.DataFrame,
    new_sids: list[Sid],
) -> Parent:
    """Commit ``runs/<NAME>/data``: the same interactions, the longer catalogue."""
    final = stage_path(target, "data")
    if final.exists():  # an interrupted run got this far (``is_finished``)
        return opened(final)
    data = parent.path
    stats = json.loads((data / "stats.json").read_text(encoding="utf-8"))
    stats |= {"items": len(old) + len(new), "added_items": len(new)}
    given = (
        json.loads((data / "given_sids.json").read_text(encoding="utf-8"))
        if (data / "given_sids.json").exists()
        else None
    )
    if given is not None:
        given |= {item: list(sid) for item, sid in zip(new["item_id"], new_sids, strict=True)}
    with committed(
        final,
        "data",
        settings_of(target, "data"),
        [parent],
        made_by=MADE_BY,
        added_items_sha256=items_sha256(new),
    ) as staging:
        items = pd.concat([old[list(ITEM_COLUMNS)], new[list(ITEM_COLUMNS)]], ignore_index=True)
        prepared.write(staging, items, pd.read_parquet(data / "interactions.parquet"), stats, given)
    return opened(final)


def write_sids(
    target: Experiment,
    parents: list[Parent],
    stored: dict[str, Any],
    extended: dict[str, Sid],
    added_sha256: str,
    embeddings: np.ndarray,
    facts: dict[str, Any],
) -> None:
    """Commit ``runs/<NAME>/sids``: every SID as it was, and the new ones behind."""
    final, sids = stage_path(target, "sids"), parents[1].path
    joined = final.with_name(".all-embeddings.npy")
    append_rows(sids / "embeddings.npy", embeddings, joined)
    text = build_sids.sids_json(
        extended, stored["codebook_sizes"], stored["method"], sha256_file(joined)
    )
    with committed(
        final,
        "sids",
        settings_of(target, "sids"),
        parents,
        made_by=MADE_BY,
        added_items_sha256=added_sha256,
        sids_sha256=hashlib.sha256(text.encode()).hexdigest(),
    ) as staging:
        (staging / "sids.json").write_text(text, encoding="utf-8")
        link_or_copy(joined, staging / "embeddings.npy")
        write_json(staging / "item_ids.json", list(extended))
        for name in ("quantizer.safetensors", "quantizer.json", build_sids.EMBEDDING_FACTS):
            if (sids / name).is_file():
                link_or_copy(sids / name, staging / name)
        write_json(staging / "report.json", facts)
        page = render(
            "added_items.html",
            title=f"Items added to {target.name}",
            lines=figures(facts),
            examples=facts["examples"],
        )
        (staging / "report.html").write_text(page, encoding="utf-8")
        append_log(
            staging / "log.jsonl",
            {"stage": "sids", **{key: value for key, value in facts.items() if key != "examples"}},
        )


def append_rows(source: Path, rows: np.ndarray, target: Path) -> None:
    """Write the rows of ``source`` and then ``rows``, without holding the former."""
    old = np.load(source, mmap_mode="r")
    joined = np.lib.format.open_memmap(
        target, mode="w+", dtype=np.float32, shape=(len(old) + len(rows), old.shape[1])
    )
    for start in range(0, len(old), 65_536):
        some = old[start : start + 65_536]
        joined[start : start + len(some)] = some
    joined[len(old) :] = rows
    joined.flush()


def figures(facts: dict[str, Any]) -> list[str]:
    """The report in sentences."""
    error = facts["quantisation_error"]
    foreign = error["new"] > FOREIGN * error["old"]
    return [
        f"{facts['added']:,} items added to {facts['items'] - facts['added']:,}; churn "
        f"{facts['churn']} (SIDs that moved), items that share a SID now: "
        f"{facts['items_that_share_a_sid']}.",
        f"{facts['re_assigned']:,} of the new items got another SID than the quantiser gave, "
        f"because that was taken; {facts['same_text_as_an_old_item']:,} have the text of an old "
        "item.",
        f"Quantisation error (median, share of the vector): {error['new']:.3f} of the new items, "
        f"{error['old']:.3f} of the old ones"
        + (
            "; such items are foreign to the codebooks: consider new SIDs and training again."
            if foreign
            else "."
        ),
    ]


def summary(facts: dict[str, Any], target: Experiment, experiment: Experiment) -> str:
    """For the terminal, with the next command."""
    checkpoint = stage_path(experiment, "rl" if stage_path(experiment, "rl").exists() else "sft")
    return "\n".join(
        [
            *figures(facts),
            f"-> {stage_path(target, 'sids')}",
            f"Next: {next_command('add_items')} --name {target.name} "
            f"--evaluate.checkpoint {checkpoint} with the same --config",
        ]
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
