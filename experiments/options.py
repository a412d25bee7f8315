"""The options of the commands, which are read before anything that takes seconds to import."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

DatasetName = Literal[
    "watch", "vowels", "cifar10", "fashion_mnist", "motionsense", "mobiact", "verb_agg", "lfw"
]
"""The rows of `tasks.TASKS`."""
DefenceName = Literal[
    "none",
    "reversed",
    "noisy",
    "private",
    "clipped",
    "sum_only",
    "top_k",
    "shuffle",
    "mixnn",
    "mixnn_proxy",
    "shuffle_noisy",
    "mixnn_noisy",
]
"""The rows of `conditions.DEFENCES`."""
AttackName = Literal["passive", "adaptive", "learned", "active"]
"""The rows of `conditions.ATTACKS`."""


StudyName = Literal[
    "core",
    "active",
    "defences",
    "participants",
    "epochs",
    "learning_rates",
    "optimizers",
    "architectures",
    "noise",
    "groups",
    "rescaling",
    "batch_sizes",
    "widths",
    "shares",
    "list_sizes",
    "preferences",
    "central",
]
"""The rows of `scenarios.STUDIES`."""
AttributeName = Literal["own", "random", "brightness"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What every command that trains on a dataset asks."""

    dataset: DatasetName = "watch"
    """Which data to run on."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder with the dataset's files, or of TensorFlow Datasets."""
    participants: int = 20
    """Who takes part, where participants are dealt from a pool of images."""
    per_client: int = 500
    """Training examples of each, where participants are dealt from a pool of images."""
    preferred: float = 0.8
    """Share of their images from the classes they prefer."""
    attribute: AttributeName = "own"
    """What the server asks: the dataset's own; a coin tossed for each person, the control in which
    nothing can be told; or, where participants are dealt, whose images are brighter."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Options):
    """Evaluate utility and ∇Sim under plain FL, noise, the shuffle control and MixNN."""

    defences: tuple[DefenceName, ...] = (
        "none",
        "reversed",
        "noisy",
        "shuffle",
        "mixnn",
        "mixnn_proxy",
        "mixnn_noisy",
    )
    """What stands between the clients and the server."""
    attacks: tuple[AttackName, ...] = ("passive", "adaptive", "learned", "active")
    """What the server does."""
    rounds: int = 20
    """Rounds of federated learning."""
    seeds: int = 5
    """Repetitions, each with its own people, or images dealt to them, first model and mixings. The
    published results have more."""
    list_size: int = 5
    """Entries in each list of the proxy."""
    kept: tuple[float, ...] = (0.1, 0.01)
    """Shares of an update that top-k compression keeps."""
    noise: tuple[float, ...] | None = None
    """Standard deviations of the noisy gradient; the dataset's by default, as all below."""
    clip_norm: float | None = None
    """Bound on the norm of an update before noise is added."""
    auxiliary: int | None = None
    """How many people the server has auxiliary data of."""
    epochs: int | None = None
    """Local epochs a round."""
    batch_size: int | None = None
    """Examples a local step."""
    learning_rate: float | None = None
    """Of local SGD."""
    momentum: float = 0.9
    """Of local SGD."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write; results/DATASET by default."""
    resume: bool = False
    """Continue a run that was stopped, with the same options."""
    overwrite: bool = False
    """Remove results that are there, and start afresh."""
    checkpoint_every: int = 0
    """Rounds between checkpoints inside a trajectory; 0 saves whole trajectories only."""


@dataclasses.dataclass(frozen=True)
class Adversaries(Options):
    """Every defence against every attack, and curves of what attacks depend on."""

    studies: tuple[StudyName, ...] = ("defences",)
    """What to compare; each is a table, and a curve of its own but for the defences."""
    rounds: int = 10
    """Rounds of federated learning."""
    seeds: int = 10
    """Repetitions, each with its own people, first model and mixing."""
    per_client: int = 100
    """Training examples of each, where participants are dealt from a pool of images."""
    quick: bool = False
    """Two seeds of four rounds: a look, and no result."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write; results/adversaries_DATASET by default."""


@dataclasses.dataclass(frozen=True)
class Membership(Options):
    """Evaluate membership scores behind each defence: a cosine, and a likelihood ratio (LiRA)."""

    rounds: int = 5
    """Rounds before the one that is looked at."""
    seeds: int = 10
    """Repetitions, each with its own people as participants, halves of records and first model."""
    shadows: int = 64
    """Federations on other halves, which the likelihood ratio is estimated from."""
    defences: tuple[DefenceName, ...] = ("none", "shuffle", "mixnn", "sum_only", "top_k", "noisy")
    """What stands between the clients and the server."""
    kept: tuple[float, ...] = (0.1, 0.01)
    """Shares of an update that top-k compression keeps."""
    noise: tuple[float, ...] | None = None
    """Standard deviations of the noisy gradient; the dataset's largest by default."""
    epochs: int | None = None
    """Local epochs a round; the dataset's by default."""
    batch_size: int | None = None
    """Examples a local step; the dataset's by default."""
    learning_rate: float | None = None
    """Of local SGD; the dataset's by default."""
    momentum: float = 0.9
    """Of local SGD."""
    auxiliary: int | None = None
    """How many people take no part; the dataset's by default."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write; results/membership_DATASET by default."""


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run the published configurations and write the page of results."""

    only: tuple[str, ...] = ()
    """Names of configurations; all by default."""
    quick: bool = False
    """Toy sizes, to see that everything runs."""
    data: Annotated[dict[str, Path], tyro.conf.arg(metavar="DATASET DIR")] = dataclasses.field(
        default_factory=dict
    )
    """Folders of data sets: --data cifar10 DIR motionsense DIR."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """Where runs are kept."""
    page: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The page; docs/results.md by default, with --quick OUT/quick/results.md."""
