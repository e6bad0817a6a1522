"""What every part of the configuration is (`Closed`), and the sections that name no module; `config` has the others."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedray.errors import OutOfRangeError


class Closed(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )


Ranking = Literal["full", "full_minus_train", "full_minus_all", "sampled99"]
Ties = Literal["pessimistic", "index", "random"]
Slice = Literal["cold_items", "cold_users", "tail"]
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
        return value if value is None else _once(value, "evaluation.options")


def _once(value: tuple[str, ...], where: str) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise OutOfRangeError(f"{where} has {', '.join(value)}", "each name once")
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
    controls: bool = Field(
        True, description="random, popularity, constant, each feature's content and central EASE beside"
    )
    local_only: bool = Field(False, description="also train with federation off: the leak detector")
    ablation: bool = Field(True, description="score the end once more without ID rows and each feature of the items")
    slices: tuple[Slice, ...] = Field(
        (), description="test metrics over parts of the clients too: cold_items, cold_users, tail"
    )

    @field_validator("slices", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("slices")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _once(value, "evaluation.slices")


class EncoderConfig(Closed):
    """What every encoder shares; `Config` of an encoder module adds its own keys."""

    name: str
    input: Literal["auto", "image", "text"] = Field("auto", description="auto: by the feature's name, image or text")
    fields: tuple[str, ...] = Field(
        (), description="text: columns of the items, joined by '. '; empty: those of title, description that there are"
    )
    prompt: str = Field("{}", description="text: what is encoded; {} is the joined fields")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the numbers in the store")

    @field_validator("fields", mode="before")
    @classmethod
    def _one_or_several_fields(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("prompt")
    @classmethod
    def _has_its_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise OutOfRangeError(f"prompt is {value!r}", "exactly one {}, where the text goes")
        return value


class EncodingConfig(Closed):
    """The encoder pool and its store. Nothing here is part of the fingerprint."""

    store: str = Field(".fedray/embeddings", description="folder of the embeddings; jobs may share it")
    min_actors: int = Field(1, ge=1)
    max_actors: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="auto: one per CPU, or per GPU share"
    )
    cpus_per_actor: float = Field(1.0, gt=0, description="also the threads of an actor's forward pass, rounded down")
    gpu_share: float = Field(1.0, gt=0, le=1, description="GPU fraction of one encoder actor")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = Field(32, ge=1, description="items in one forward pass")
    linger_ms: float = Field(5.0, ge=0, description="how long a part of a batch waits for more requests")
    queue: int = Field(4096, ge=1, description="items that may wait; who asks for more waits, too")
    decode_threads: int = Field(2, ge=1, description="image decoders of an actor, beside its forward pass")
    batch_timeout_s: float = Field(300.0, gt=0, description="an actor that takes longer is replaced")
    attempts: int = Field(3, ge=1, description="lost actors a batch may cost before its items are tried one by one")
    idle_s: float = Field(30.0, gt=0, description="an actor above min_actors leaves after so long without work")
    max_pixels: int = Field(50_000_000, ge=1, description="of an image; more is taken for a decompression bomb")


class TrainConfig(Closed):
    """The federated schedule and the local optimiser."""

    rounds: int = Field(100, ge=1)
    clients_per_round: float = Field(
        1.0, gt=0, description="up to 1: the ratio of clients in a round; above: their number"
    )

    over_select: float = Field(
        1.0,
        ge=1,
        description="select so many times more clients; a round closes when clients_per_round have reported",
    )
    min_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a round of which a smaller fraction of clients_per_round is left is abandoned; 0: if nobody is",
    )

    @field_validator("clients_per_round")
    @classmethod
    def _ratio_or_number(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise OutOfRangeError(f"train.clients_per_round is {value}", "a ratio up to 1 or a whole number above")
        return value

    @model_validator(mode="after")
    def _pairs_fit_batches(self) -> "TrainConfig":
        if self.loss == "bpr" and (self.batch_size % 2 or not self.negatives):
            raise OutOfRangeError(
                f"train.loss: bpr with batch_size {self.batch_size} and negatives {self.negatives}",
                "an even batch_size and at least one negative: its samples are pairs",
            )
        return self

    local_epochs: int = Field(1, ge=1)
    batch_size: int = Field(256, ge=1, description="samples (positives and negatives) in a local step")
    negatives: int = Field(4, ge=0, description="drawn per positive, anew each round")
    loss: Literal["bce", "bpr"] = Field("bce", description="bpr: on pairs of a positive and one of its negatives")
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = Field(0.0, ge=0, description="L2, added to the gradients")
    private_weight_decay: float | None = Field(
        None, ge=0, description="of private parameters that are no item tables; null: weight_decay"
    )
    private_steps: int = Field(
        0,
        ge=0,
        description="in each local step so many updates of private parameters (item tables aside) alone, then one of "
        "the rest; 0: all at once, as the method says",
    )
    patience: int = Field(0, ge=0, description="stop after so many validations without a new best; 0 = off")
    path: Literal["auto", "compiled", "vmap"] = Field(
        "auto", description="auto: the compiled kernel where the method has one, else the vmapped loss"
    )
    max_update_norm: float = Field(
        0.0, ge=0, description="an update of a larger L2 norm, all tables together, is refused; 0: of any norm"
    )
    max_rejected: float = Field(
        0.5, ge=0, le=1, description="the run ends where more than this ratio of a round's clients is refused, or all"
    )
    block_width: int = Field(
        32, ge=32, multiple_of=32, description="clients stacked in one vmapped block; whole vector registers only"
    )


class CheckpointConfig(Closed):
    """What a run leaves on disk, so that it can go on after any failure."""

    every: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="rounds from one to the next; auto: at least 10 and 20 s, and so many that it costs about a "
        "twentieth of the time; 0: none. There is also one when the run is stopped",
    )
    path: str = Field(
        ".fedray/checkpoints", description="folder or fsspec URI that all nodes share; each run has its own in it"
    )
    keep: int = Field(2, ge=1, description="the newest so many stay")


class RuntimeConfig(Closed):
    """Where things run. Nothing here may change a result, and it is not part of the fingerprint; but under
    `recovery: drop` faults and timing may, and every report says whose updates were missing."""

    executor: Literal["ray", "serial"] = "ray"
    address: str = Field("", description="of a Ray cluster; empty: RAY_ADDRESS, else a local one")
    actors: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="client actors; auto: one per CPU (or GPU share)"
    )
    clients_per_actor: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="1 is one actor per client, to the letter; auto packs"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_share: float = Field(1.0, gt=0, le=1, description="GPU fraction of one client actor")
    memory_limit_gb: float = Field(0.0, ge=0, description="refuse a plan above; 0: what the machine has free")
    start_timeout_s: float = Field(120.0, gt=0)
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: Literal["exact", "drop", "none"] = Field(
        "exact",
        description="exact: what a dead actor's clients were is restored and done again; drop: rounds go on without "
        "them until they are back, as of the last checkpoint, and results depend on it; none: the run ends",
    )
    deadline_s: float = Field(
        0.0,
        ge=0,
        description="recovery: drop: actors that take longer to train, or to evaluate, are left out there; 0: none are",
    )
    max_restarts: int = Field(100, ge=0, description="deaths of actors that a run survives")


class TrackingConfig(Closed):
    """Where runs are recorded."""

    backend: Literal["mlflow", "jsonl", "none"] = "mlflow"
    uri: str = Field("sqlite:///mlflow.db", description="MLflow tracking URI; a path for jsonl")
    experiment: str = Field("", description="empty: fedray/<data>/<protocol>")
    run_name: str = Field("", description="empty: <name>-s<seed>")
    spool: str = Field(".fedray/spool", description="where points wait while the server is away")
    log_item_media: bool = Field(False, description="allow posters and titles in artifacts (local stores)")
