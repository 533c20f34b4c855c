"""The words that a setting may have, where several settings or other files need them too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from minionerec.experiment.baselines import BASELINES

if TYPE_CHECKING:
    # Names in lists and mappings are text to a type checker, so that any function may take them
    Task = str
    CodeTask = str
    RLTask = str
    RewardName = str
    Column = str
    BaselineName = str
    ExpertName = str
    TeacherName = str
    SoftLabelKey = str
    FusionKey = str
    TextPart = str
else:
    # What a model learns to complete; the first five are the paper's.
    Task = Literal[
        "sid_to_sid",
        "sid_to_title",
        "title_to_sid",
        "sids_to_title",
        "titles_to_sid",
        "description_to_sid",
    ]
    # What it may learn of codes besides, in SFT alone (minionerec/training/code_words.py).
    CodeTask = Literal["words_to_code", "code_to_words"]
    # Tasks that end in a semantic ID, so that a completion is an item.
    RLTask = Literal["sid_to_sid", "title_to_sid", "titles_to_sid", "description_to_sid"]
    BaselineName = Literal[tuple(BASELINES)]
    RewardName = Literal["rule", "ranking", "semantic", "collaborative", "prefix"]
    # Rankers whose scores are read as probabilities (minionerec/rankers/experts.py); with networks
    # that have not seen the rows they are asked about (minionerec/rankers/crossfit.py).
    ExpertName = Literal["popularity", "markov", "item_knn", "text_knn"]
    TeacherName = Literal[ExpertName, "sasrec", "gru4rec", "hstu"]
    SoftLabelKey = Literal[
        "weight",
        "final_weight",
        "top_k",
        "sharpness",
        "items",
        "pairs",
        "open_histories",
        "temperature",
    ]
    FusionKey = Literal["model", TeacherName, "temperature"]
    # What is written about an item (minionerec/catalogue/item_text.py).
    TextPart = Literal["title", "brand", "categories", "description"]
    # Our names of the columns of two tables.
    Column = Literal[
        "user_id",
        "item_id",
        "timestamp",
        "rating",
        "split",
        "items_item_id",
        "title",
        "description",
        "brand",
        "categories",
    ]

Quantizer = Literal[
    "rqvae", "rqkmeans", "balanced_rqkmeans", "rqkmeans_plus", "opq", "random", "given"
]
Schedule = Literal["cosine", "linear", "constant"]

TASKS: tuple[str, ...] = get_args(Task)
CODE_TASKS: tuple[str, ...] = get_args(CodeTask)
QUANTIZERS: tuple[str, ...] = get_args(Quantizer)
