"""Every key of an experiment's YAML file: type, meaning, unit, range, default and its source.

``minionerec/experiment/config.py`` reads a file and the command line into these frozen models and
refuses what is not declared here: a file per section. A check that takes two keys to see stands
with the later one. "paper" is the MiniOneRec report, arXiv:2510.24431, and its reference code.

    python -m minionerec.experiment.settings --schema > configs/schema.json     # for editors
"""

from minionerec.experiment.settings.baselines import BaselineSettings
from minionerec.experiment.settings.data import DataSettings
from minionerec.experiment.settings.evaluate import EvaluateSettings
from minionerec.experiment.settings.experiment import (
    MOVED,
    SECTIONS,
    TOP_LEVEL,
    Experiment,
    keys_of,
    schema,
    section_class,
)
from minionerec.experiment.settings.model import ModelSettings
from minionerec.experiment.settings.rl import RL_PRESETS, RLSettings
from minionerec.experiment.settings.section import Settings
from minionerec.experiment.settings.sft import SFTSettings
from minionerec.experiment.settings.sids import SidSettings

__all__ = [
    "MOVED",
    "RL_PRESETS",
    "SECTIONS",
    "TOP_LEVEL",
    "BaselineSettings",
    "DataSettings",
    "EvaluateSettings",
    "Experiment",
    "ModelSettings",
    "RLSettings",
    "SFTSettings",
    "Settings",
    "SidSettings",
    "keys_of",
    "schema",
    "section_class",
]
