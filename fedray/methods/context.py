"""What a method may know when it is made; the same in every process."""

from dataclasses import dataclass

from fedray.config import TrainConfig
from fedray.types import ItemFeatures


@dataclass(frozen=True)
class Context:
    """Sizes, the schedule and (where the data have them) the frozen item features."""

    n_items: int
    train: TrainConfig
    features: ItemFeatures | None = None
