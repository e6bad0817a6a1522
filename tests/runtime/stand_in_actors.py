"""Client actors in this process, with Ray's rules for requests: each actor does what it is asked in order, and one that
dies forgets everything and does what still waits on a fresh one."""

from ray import exceptions

from fedray.errors import ActorLostError, FedrayError
from fedray.federated.clients import first_tables
from fedray.runtime.client_actor import ClientActor
from fedray.types import FeatureNames


class Request:
    def __init__(self, actor, name, args, once):
        self.actor, self.name, self.args, self.once = actor, name, args, once
        self.done, self.answer = False, None

    def finish(self, answer):
        self.done, self.answer = True, answer


class Call:
    def __init__(self, actor, name, once=False):
        self.actor, self.name, self.once = actor, name, once

    def options(self, max_task_retries):
        return Call(self.actor, self.name, max_task_retries == 0)

    def remote(self, *args):
        self.actor.waiting.append(Request(self.actor, self.name, args, self.once))
        return self.actor.waiting[-1]


class StandIn:
    """stalled: it does nothing for now. doomed: it dies of training in that round. unheard: requests of this name that
    get lost on their way, the next one first."""

    def __init__(self, make):
        self._make, self._real, self.waiting = make, make(), []
        self.stalled, self.doomed, self.unheard = False, None, []

    def __getattr__(self, name):
        return Call(self, name)

    def work(self):
        while self.waiting and not self.stalled:
            request = self.waiting.pop(0)
            if request.name == "train" and request.args[1] == self.doomed:
                self._die(request)
                continue
            if request.name in self.unheard:
                self.unheard.remove(request.name)
                request.finish(lost())
                continue
            try:
                request.finish(getattr(self._real, request.name)(*request.args))
            except FedrayError as error:
                request.finish(error)

    def _die(self, request):
        self._real, self.doomed = self._make(), None
        assert request.once, "Ray would repeat it, and nobody would hear of the death"
        request.finish(lost())


def lost():
    error = ActorLostError("gone")
    error.__cause__ = exceptions.ActorUnavailableError("gone", b"0" * 16)
    return error


class StandInRay:
    """What an executor uses of Ray."""

    def __init__(self, actors):
        self.actors, self.read = actors, []

    def put(self, value):
        return value

    def wait(self, refs, num_returns=1, timeout=None):
        for actor in self.actors:
            actor.work()
        done = [r for r in refs if r.done][:1]
        assert done or timeout is not None, "it waits for ever"
        return done, [r for r in refs if r not in done]

    def get(self, request):
        assert request.done and request not in self.read
        self.read.append(request)
        if isinstance(request.answer, FedrayError):
            raise request.answer
        return request.answer


def stand_ins(config, method, data, parts, features=None):
    """(actors, births) for the clients at positions `parts[i]`."""
    initial = first_tables(method, config.seed)
    names = FeatureNames(features.names) if features else None
    births = [(data.take(part), initial) for part in parts]
    actors = [StandIn(lambda: ClientActor(config, "cpu", names)) for _ in parts]
    for actor, birth in zip(actors, births, strict=True):
        actor.begin.remote(*birth)
    return actors, births
