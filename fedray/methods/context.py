"""What a method may know when it is made; the same in every process, but for content: a client has its names alone."""

from dataclasses import dataclass

from fedray.config import TrainConfig
from fedray.types import FeatureNames, ItemFeatures


@dataclass(frozen=True)
class Context:
    """Sizes, the schedule and (where the data have them) the frozen item features, or on a client their names."""

    n_items: int
    train: TrainConfig
    features: ItemFeatures | FeatureNames | None = None
