"""How the pipeline is run: models, sizes, thresholds, in one YAML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "configs"
MODEL_STAGES = ("score", "locate", "segment", "synthesise", "verify", "embed")


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least 1.")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does a stage."""

    batch_size: int = 8
    """Samples that one is given at once."""
    workers: int = 1
    """How many; more than one run as processes."""
    gpus: float = 0.0
    """GPUs that each needs, which Daft and Ray place it by."""

    def __post_init__(self):
        _whole("batch_size", self.batch_size)
        _whole("workers", self.workers)
        if not isinstance(self.gpus, (int, float)) or self.gpus < 0:
            raise ValueError(f"gpus is {self.gpus!r}; give 0 or more.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Workers):
    """What answers a stage, each worker with a copy of it."""

    backend: str = "classical"
    options: dict = field(default_factory=dict)
    """Keywords of the back end's class, such as ``model`` or ``device``."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a value must lie within to be kept. Both ends belong to it."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self):
        for name in ("min", "max"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"A bound's {name} is {value!r}; give a number.")
        if self.min is None and self.max is None:
            raise ValueError("A bound has neither min nor max; give one.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run. What is not given is as here."""

    name: str = "classical"
    frames: int = 8
    """Frames of a clip that the models see, spread over it evenly."""
    side: int = 448
    """Longest side of those frames in pixels; smaller clips stay as they are."""
    lossless: bool = False
    """Whether those frames are kept as PNG instead of JPEG."""
    vary: bool = False
    """Whether references are asked for in another pose, view and light than the clip's."""
    attempts: int = 3
    """How often a model is asked for an answer that can be read, and how many deaths of a worker a sample may see."""
    seed: int = 0
    ingest: Workers = Workers()
    score: ModelConfig = ModelConfig()
    locate: ModelConfig = ModelConfig()
    segment: ModelConfig = ModelConfig()
    synthesise: ModelConfig = ModelConfig()
    verify: ModelConfig = ModelConfig()
    embed: ModelConfig = ModelConfig()
    keep: dict[str, Bound] = field(default_factory=dict)
    """By "stage.value", what is kept. Later stages are only run for what passes; nothing is ever deleted."""
    duplicates: float = 0.97
    """Cosine from which two samples are one, of both their references and their targets; above 1 for never."""

    def __post_init__(self):
        for name in ("frames", "side", "attempts"):
            _whole(name, getattr(self, name))
        if isinstance(self.duplicates, bool) or not self.duplicates > 0:
            raise ValueError(f"duplicates is {self.duplicates!r}; give a cosine, such as 0.97, or 2 for never.")


def names() -> list[str]:
    """Names of the configs that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(given: str | Path) -> Config:
    """The config of a file, or one of :func:`names`. ValueError or FileNotFoundError says what is wrong with it."""
    import yaml

    path = FOLDER / f"{given}.yaml" if str(given) in names() else Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"There is no config {given}; give a YAML file or one of {', '.join(names())}.")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return parse(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse(fields: object) -> Config:
    """A config of plain values, as a YAML file has them."""
    fields = dict(_table("The config", fields, Config))
    if "ingest" in fields:
        fields["ingest"] = Workers(**_table("ingest", fields["ingest"], Workers))
    for stage in MODEL_STAGES:
        if stage in fields:
            fields[stage] = ModelConfig(**_table(stage, fields[stage], ModelConfig))
            if not isinstance(fields[stage].options, dict):
                raise ValueError(f"{stage}.options is no table; give name: value lines.")
    if "keep" in fields:
        bounds = fields["keep"] or {}
        if not isinstance(bounds, dict):
            raise ValueError("keep is no table; give lines such as score.overall: {min: 6}.")
        fields["keep"] = {name: Bound(**_table(f"keep {name}", value, Bound)) for name, value in bounds.items()}
    return Config(**fields)


def plain(config: Config) -> dict:
    """The values that :func:`parse` makes the config of."""
    return dataclasses.asdict(config)


def _table(name: str, fields: object, kind: type) -> dict:
    known = [one.name for one in dataclasses.fields(kind)]
    if not isinstance(fields, dict):
        raise ValueError(f"{name} is no table; give {', '.join(known)}.")
    for key in fields:
        if key not in known:
            raise ValueError(f"{name} has no field {key!r}; it has {', '.join(known)}.")
    return fields
