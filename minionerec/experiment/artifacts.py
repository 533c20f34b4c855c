"""The names of the disk layer in one place, until every caller names the file that it means."""

from minionerec.experiment.commit import cleared_on_error, commit, committed
from minionerec.experiment.files import (
    TIMING,
    append_log,
    folder_sha256,
    fsync,
    link_or_copy,
    load_array,
    remove,
    sha256_file,
    size_of,
    timings,
    write_json,
)
from minionerec.experiment.lineage import check_parents, is_done, require_stage
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import MANIFEST, Parent, opened, read_manifest, verify
from minionerec.experiment.stages import (
    COMMANDS,
    WITHOUT_EFFECT,
    baseline_path,
    baseline_stage,
    evaluation_path,
    partial_path,
    settings_difference,
    stage_path,
)
from minionerec.experiment.stages import settings_of as relevant_settings

__all__ = [
    "COMMANDS",
    "MANIFEST",
    "TIMING",
    "WITHOUT_EFFECT",
    "Parent",
    "append_log",
    "baseline_path",
    "baseline_stage",
    "check_parents",
    "cleared_on_error",
    "commit",
    "committed",
    "evaluation_path",
    "folder_sha256",
    "fsync",
    "is_done",
    "link_or_copy",
    "load_array",
    "locked",
    "opened",
    "partial_path",
    "read_manifest",
    "relevant_settings",
    "remove",
    "require_stage",
    "settings_difference",
    "sha256_file",
    "size_of",
    "stage_path",
    "timings",
    "verify",
    "write_json",
]
