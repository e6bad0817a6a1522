"""Open encoder pools where a job runs: on Ray, joined or started with the first pool, or in this process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from fedray.config import EncoderConfig, EncodingConfig, RunConfig
from fedray.errors import PlacementError, UnsupportedError
from fedray.runtime import session
from fedray.runtime.encoder_pool import EncoderPool
from fedray.runtime.plan import Resources
from fedray.runtime.workers import LocalWorker

OpenPool = Callable[[EncoderConfig], AbstractContextManager[EncoderPool]]

Pools = Callable[[RunConfig, str], AbstractContextManager[OpenPool]]


@contextmanager
def no_pools(config: RunConfig, namespace: str) -> Iterator[OpenPool]:
    """For who may start nothing: what would have to be encoded is refused."""

    def refuse(encoder: EncoderConfig) -> EncoderPool:
        raise UnsupportedError(
            f"{encoder.name} has items to encode, and a dry run starts nothing",
            "all embeddings in the store",
            "Run `fedray encode` with this job first.",
        )

    yield refuse


@contextmanager
def pools(config: RunConfig, namespace: str) -> Iterator[OpenPool]:
    """A function that opens a pool for an encoder; pools are opened one after another. Ray ends with this block, if it
    was started in it."""
    with ExitStack() as stack:
        there: list[Resources] = []

        def resources() -> Resources:
            if not there:
                there.append(_resources(config, namespace, stack))
            return there[0]

        yield lambda encoder: open_pool(config, encoder, resources())


def _resources(config: RunConfig, namespace: str, stack: ExitStack) -> Resources:
    local = session.local_resources()
    if config.runtime.executor == "serial":
        return local
    if session.remote_address(config):
        session.probe(config)
    stack.enter_context(session.connected(config, namespace, local))
    return session.resources()


def open_pool(config: RunConfig, encoder: EncoderConfig, there: Resources) -> EncoderPool:
    """A pool for this encoder on these resources. Raises `PlacementError` for what is not there."""
    settings, timeout_s = config.encoding, config.runtime.start_timeout_s
    device = pick_device(settings, there)
    if config.runtime.executor == "serial":
        return EncoderPool(lambda: LocalWorker(encoder, settings, device), settings, 1, timeout_s)
    from fedray.runtime.encoder_actor import RayWorker

    most = most_actors(settings, there, device)
    return EncoderPool(lambda: RayWorker(encoder, settings, device), settings, most, timeout_s)


def pick_device(settings: EncodingConfig, there: Resources) -> str:
    """The GPU if there is one and nobody said otherwise."""
    if settings.device == "cuda" and there.gpus <= 0:
        raise PlacementError("encoding.device is cuda and there is no GPU", "a GPU", "Set encoding.device: auto.")
    return "cuda" if settings.device != "cpu" and there.gpus > 0 else "cpu"


def most_actors(settings: EncodingConfig, there: Resources, device: str) -> int:
    """`encoding.max_actors`, or as many as there is room for."""
    largest = max(there.nodes, default=there.cpus)
    if settings.cpus_per_actor > largest:
        raise PlacementError(
            f"encoding.cpus_per_actor is {settings.cpus_per_actor:g}",
            f"at most {largest:g}, the CPUs of the largest node",
            "Lower it.",
        )
    if settings.max_actors != "auto":
        return max(settings.max_actors, settings.min_actors)
    room = there.gpus / settings.gpu_share if device == "cuda" else there.cpus / settings.cpus_per_actor
    return max(1, int(room), settings.min_actors)
