"""What a run of the benchmark measures: the schema of configs/benchmark/*.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from visionssm.engine.config import ConfigError

__all__ = [
    "BenchmarkConfig",
    "CostConfig",
    "DenseConfig",
    "GeometryConfig",
    "LearningConfig",
    "RecipeConfig",
    "SeeingConfig",
    "Size",
]

Size = tuple[int, int]


def _at_least(place: str, least: int, *values: int) -> None:
    for value in values:
        if value < least:
            raise ConfigError(f"{place}: {value} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """Properties of the routes alone.

    Args:
        on: Whether to compute them.
        sizes: Images (H, W).
        within: For each t: the share of neighbouring pixels that a route visits within t steps.
        lags: Longest lag of the autocorrelation of photographs along a route.
        channels, element_size: Width in values, and bytes of each, of the maps whose memory locality is counted.
        window: Steps over which a sector, once fetched, is still there.
    """

    on: bool = True
    sizes: tuple[Size, ...] = ((14, 14), (32, 32), (56, 56))
    within: tuple[int, ...] = (1, 4, 16, 64)
    lags: int = 64
    channels: int = 96
    element_size: int = 4
    window: int = 32

    def __post_init__(self) -> None:
        _at_least("geometry.sizes", 2, *(side for size in self.sizes for side in size))
        _at_least("geometry.within", 1, *self.within)
        for name in ("lags", "channels", "element_size", "window"):
            _at_least(f"geometry.{name}", 1, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """Time and memory of one image mixer (VMamba's SS2D) per order.

    Args:
        on: Whether to measure them.
        sizes: Images (H, W) in tokens; two or more give the exponent of the growth.
        batches: Images per call.
        dtypes: Of input and weights; the state is float32 in all of them.
        devices: "cpu", "cuda".
        backends: Scan kernels by name ("numba", "triton", "chunked", "reference"), or "auto".
        channels: Width of the mixer, which is also that of its scan.
        d_state: N.
        repeats: A time is the median of so many runs after a warm-up.
    """

    on: bool = True
    sizes: tuple[Size, ...] = ((14, 14), (28, 28), (56, 56))
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",)
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu",)
    backends: tuple[str, ...] = ("auto",)
    channels: int = 96
    d_state: int = 1
    repeats: int = 7

    def __post_init__(self) -> None:
        _at_least("cost.sizes", 1, *(side for size in self.sizes for side in size))
        _at_least("cost.batches", 1, *self.batches)
        for name in ("channels", "d_state", "repeats"):
            _at_least(f"cost.{name}", 1, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Recipe of the two tasks that answer per pixel: segmentation of digits, denoising of photographs.

    Args:
        size: Side of the square images, in pixels.
        steps: Updates, AdamW under a cosine.
        batch_size: Images per update.
        lr, weight_decay: As in AdamW.
        test_images: How many are scored; the same for all orders and seeds.
        noise: Standard deviation of the noise, in grey levels of 255.
        photos: Folder with a user's own photographs, of which every fourth is for testing; None for the embedded ones.
    """

    size: int = 64
    steps: int = 400
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    test_images: int = 64
    noise: float = 25.0
    photos: str | None = None

    def __post_init__(self) -> None:
        _at_least("learning.dense.size", 48, self.size)  # three digits of 16 pixels and room to move
        for name in ("steps", "batch_size", "test_images"):
            _at_least(f"learning.dense.{name}", 1, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """A user's own data, as a recipe of one of the trainers.

    Args:
        trainer: Which: tools/train_<trainer>.py takes the recipe.
        recipe: YAML file; its model must take `scan`.
    """

    trainer: Literal["classification", "restoration"] = "classification"
    recipe: str


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """The same small backbone trained with each order.

    Args:
        on: Whether to train.
        tasks: Of the embedded data.
        seeds: Runs per order and task; seed s is 0, 1, ..., and pairs an order with raster.
        model: timm name of the backbone; must take `scan`.
        kwargs: Its further arguments.
        classification: Recipe of the embedded classification, as tools/train_classification.py takes it, without `run.output`,
            `run.seed` and `model`.
        recipes: Of a user's own data; each is one more task, with its own model, named after its file.
        dense: Recipe of the other two tasks.
    """

    on: bool = True
    tasks: tuple[Literal["classification", "segmentation", "restoration"], ...] = (
        "classification",
        "segmentation",
        "restoration",
    )
    seeds: int = 3
    model: str = "vmamba_nano"
    kwargs: dict[str, Any] = field(default_factory=dict)
    classification: dict[str, Any] = field(default_factory=dict)
    recipes: tuple[RecipeConfig, ...] = ()
    dense: DenseConfig = field(default_factory=DenseConfig)

    def __post_init__(self) -> None:
        _at_least("learning.seeds", 2, self.seeds)  # one seed has no standard deviation and no test


@dataclass(frozen=True, kw_only=True)
class SeeingConfig:
    """What a trained backbone sees: effective receptive fields and hidden attention.

    Args:
        on: Whether to look.
        photos: Photographs that the receptive field is averaged over; attention is shown on the first.
        size: Side of the photographs, in pixels.
    """

    on: bool = True
    photos: int = 4
    size: int = 64

    def __post_init__(self) -> None:
        _at_least("seeing.photos", 1, self.photos)
        _at_least("seeing.size", 16, self.size)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """A run of the benchmark.

    Args:
        output: Folder of the report and of the cache of finished cells.
        scans: Orders by name, or as {name: ..., options}; empty for all that a backbone for images can use.
        baseline: Name of the order that the others are tested against.
        workers: Processes that train; None for one per core. Times are always measured alone.
        draw: Side of the images whose routes are drawn.
    """

    output: str
    scans: tuple[Any, ...] = ()
    baseline: str = "raster"
    workers: int | None = None
    draw: int = 8
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    seeing: SeeingConfig = field(default_factory=SeeingConfig)

    def __post_init__(self) -> None:
        _at_least("draw", 2, self.draw)
        if self.workers is not None:
            _at_least("workers", 1, self.workers)
