"""``MANIFEST.json``: what a committed directory holds, how it was made and from what.

It lists the settings, versions, the size and sha256 of every file, and the parents with the digests
of their manifests. The digest of a manifest therefore stands for the whole directory.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from minionerec.errors import UserError
from minionerec.experiment.files import sha256_file, sha256_json

MANIFEST = "MANIFEST.json"
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "sentence-transformers",
    "numpy",
    "pandas",
)


class Parent(NamedTuple):
    """A committed directory as it was when it was opened.

    What is made from it records this digest. The commit compares it with the disk again, so nothing
    can claim to be made from a directory that was replaced while it was read.
    """

    path: Path
    digest: str  # manifest_sha256


def opened(path: Path, digests: bool = True) -> Parent:
    """Verify a committed directory and note which one it is, before anything is read from it.

    Raises:
        UserError: as ``verify``.
    """
    return Parent(path, verify(path, digests)["manifest_sha256"])


def manifest_for(
    staging: Path,
    final: Path,
    stage: str,
    settings: dict[str, Any],
    parents: list[Parent],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The manifest of the files in ``staging``, which will be called ``final``."""
    files = {}
    for path in sorted(staging.rglob("*")):
        if path.is_file() and path != staging / MANIFEST:
            entry = {"size": path.stat().st_size, "sha256": sha256_file(path)}
            files[str(path.relative_to(staging))] = entry
    manifest = {
        "stage": stage,
        "settings": settings,
        "versions": _versions(),
        "git_commit": _git_commit(),
        "files": files,
        "parents": {os.path.relpath(parent.path, final): parent.digest for parent in parents},
        **facts,
    }
    manifest = json.loads(json.dumps(manifest))  # as a reader will see it: no tuples, no int keys
    manifest["manifest_sha256"] = sha256_json(manifest)
    return manifest


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write ``MANIFEST.json``; ``read_manifest`` accepts these bytes and no others."""
    (directory / MANIFEST).write_text(_text(manifest), encoding="ascii")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a committed directory, byte for byte as it was written.

    Raises:
        UserError: there is none, or it was changed.
    """
    file = path / MANIFEST
    try:
        text = file.read_bytes().decode("ascii")
        manifest = json.loads(text)
        content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
        intact = sha256_json(content) == manifest["manifest_sha256"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: has no {MANIFEST}; "
            "it was not written by this pipeline or was only partly copied"
        ) from None
    except (ValueError, KeyError, AttributeError):
        raise UserError(
            f"{file}: is damaged (not the JSON that was written); delete {path} and make it again"
        ) from None
    if not intact or _text(manifest) != text:
        raise UserError(
            f"{file}: is damaged (its digest does not match); delete {path} and make it again"
        )
    return manifest


def verify(path: Path, digests: bool = True) -> dict[str, Any]:
    """Compare every file of a committed directory with its manifest; returns the manifest.

    Args:
        path: the directory.
        digests: False compares sizes only, which is instant: for a first look that another reader
            repeats in full.

    Raises:
        UserError: naming the first file that is missing, has another size, or was changed.
    """
    manifest = read_manifest(path)
    advice = f"delete {path} and make it again"
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: is missing though {MANIFEST} lists it; {advice}")
        size = file.stat().st_size
        if size != expected["size"]:
            raise UserError(
                f"{file}: is damaged ({size} bytes, {MANIFEST} lists {expected['size']}); {advice}"
            )
        if digests and sha256_file(file) != expected["sha256"]:
            raise UserError(
                f"{file}: is damaged (its sha256 is not the one in {MANIFEST}); {advice}"
            )
    return manifest


def _text(manifest: dict[str, Any]) -> str:
    """The only bytes that a manifest may consist of, so that no change to them goes unseen."""
    return json.dumps(manifest, indent=1) + "\n"


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def _git_commit() -> str:
    """The commit of this code, ``-dirty`` if files were changed since; ``unknown`` outside git."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(
        [*command, "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else "unknown"
