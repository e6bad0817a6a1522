"""What every part of the configuration is (`Closed`), and the evaluation section; `config` has and reads the others."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedray.errors import OutOfRangeError


class Closed(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )


Ranking = Literal["full", "full_minus_train", "full_minus_all", "sampled99"]
Ties = Literal["pessimistic", "index", "random"]
_Metric = Annotated[str, Field(pattern=r"^([a-z0-9_]+_)?(hr|recall|ndcg|mrr)_at_[1-9][0-9]*$")]


class EvaluationOptions(Closed):
    """Laid over the named protocol; null leaves it as it is. `data.protocols.Protocol` says what each one means.

    They are for comparisons with other code. What differs from the protocol is written on every table.
    """

    negatives: Literal["uniform_resampled", "fixed_lowest"] | None = None
    negatives_spare: Literal["train", "all"] | None = None
    rankings: tuple[Ranking, ...] | None = Field(None, min_length=1)
    share_candidates: bool | None = None
    ties: Ties | None = None
    mask_item0: bool | None = None
    permute_items: bool | None = None
    scored_table: Literal["own", "aggregated"] | None = None
    select_on: tuple[_Metric, ...] | None = Field(None, min_length=1, description="e.g. hr_at_50, or several")
    select_split: Literal["valid", "test"] | None = None
    select_ties: Literal["first", "last"] | None = None

    @field_validator("rankings", "select_on", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("rankings", "select_on")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise OutOfRangeError(f"evaluation.options has {', '.join(value)}", "each name once")
        return value


class EvaluationConfig(Closed):
    """Protocol, metrics and controls."""

    protocol: str = "clean"
    options: EvaluationOptions = EvaluationOptions()
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10, 20, 50), min_length=1)
    every: int = Field(1, ge=1, description="validate every so many rounds")
    test: Literal["selected", "every_round", "protocol"] = Field(
        "protocol", description="when the test set is scored; protocol: as the protocol says"
    )
    controls: bool = Field(True, description="random, popularity, constant and central EASE beside the run")
    local_only: bool = Field(False, description="also train with federation off: the leak detector")
