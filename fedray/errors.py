"""Every error fedray raises on purpose, in one tree.

Each message says where, what was found, what was expected and what to do about it.

    FedrayError                       exit code 1
    +- ConfigError                    exit code 2
    |  +- UnknownKeyError             a key no part of the config has; names the nearest one
    |  +- MissingKeyError             a key that must be there
    |  +- UnknownNameError            a backbone, plug-in, source, protocol ... that does not exist
    |  +- WrongTypeError              text where a number is wanted, and the like
    |  +- OutOfRangeError             a number outside its range, or a word outside its list
    |  +- MissingPathError            a path that does not exist
    |  +- ConfigFileError             not readable as one YAML mapping
    |  +- UnsupportedError            settings that are fine alone and wrong together
    |  +- WeightsError                weights of an encoder that cannot be had, or cannot be loaded
    |  +- ResumeError                 a run to go on with that was started with other settings or data
    +- DataError                      exit code 2
    |  +- MissingColumnError          a column the file must have
    |  +- EmptyFileError              no rows at all, or none left after filtering
    |  +- EncodingError               not UTF-8
    |  +- FileFormatError             not parseable as what its name says
    |  +- BadRatingError              NaN, infinite or not a number
    |  +- BadIdError                  empty or negative user or item id
    |  +- BadTimestampError           not a number, or infinite
    |  +- BadSplitError               a split label other than train, valid, test
    |  +- DuplicatePairError          only under data.duplicates: error
    |  +- TooFewInteractionsError     only under data.short_users: error
    |  +- FeatureShapeError           a feature matrix with the wrong number of rows or axes
    |  +- FeatureValueError           NaN or infinity in a feature matrix
    +- TrainingError                  exit code 1
    |  +- NonFiniteLossError          names round and clients
    |  +- NonFiniteVectorError        names clients
    |  +- AggregateOverflowError      a sum that leaves the fixed-point range
    |  +- RejectedUpdatesError        too many clients of a round whose updates cannot be taken
    |  +- BadReportError              sums of a host that its clients' uploads cannot come to
    |  +- SweepError                  no trial of a sweep has a result
    +- ContentError                   exit code 1: the content of items, asked for on a client
    +- EncoderError                   exit code 1: an encoder that does not work, or was closed
    +- CheckpointError                exit code 1: a checkpoint that is missing, torn or cannot be shared
    |  +- BeforeChangeError           the newest whole one is from before a change of settings
    +- OutOfStepError                 exit code 1: a client actor asked for another round than it is in
    +- ResourceError                  exit code 3
    |  +- MemoryPlanError             the plan does not fit; says the figures
    |  +- ClusterError                no cluster, no answer, or not allowed in
    |  |  +- ClusterAuthError         the cluster wants a token, or another one
    |  +- PlacementError              actors that cannot be placed: asked, and what there is
    |  +- ActorLostError              an actor died and the run cannot go on here; exit code 75: it can be resumed
    |  +- StoreError                  an embedding store that cannot be opened or written, or not with these values
    |  |  +- StoreBusyError           others have the store open, or it is being collected
    +- CompareError                   exit code 2
    |  +- NoSuchRunError              no run, family, experiment or row of that name; names the nearest
    |  +- AmbiguousRunError           a name or prefix that fits several
    |  +- NotComparableError          other users, other data or another protocol
    |  +- NothingToCompareError       no finished run, or only one row
    +- JobError                       exit code 2
    |  +- NoSuchJobError              no submitted job or run of that name; names the nearest
    |  +- JobRunningError             the run's last attempt still goes on
    |  +- JobDoneError                the run has succeeded: nothing to resume
    |  +- NotShippableError           a folder too big for the cluster, or a path that would not exist there
    +- TrackingError                  exit code 1: the tracking store refused, not merely slept
"""


class FedrayWarning(UserWarning):
    """Something a user should see that is not worth stopping for."""


class FedrayError(Exception):
    """Base of every error on purpose: where, what was found, what was expected, what to do."""

    exit_code = 1

    def __init__(self, found: str, expected: str = "", mend: str = "", where: str = "") -> None:
        self.found, self.expected, self.mend, self.where = found, expected, mend, where
        super().__init__(found, expected, mend, where)

    def __str__(self) -> str:
        head = f"{self.where}: {self.found}" if self.where else self.found
        body = f"{head}; expected {self.expected}" if self.expected else head
        return f"{body}. {self.mend}" if self.mend else body


class ConfigError(FedrayError):
    """The configuration is wrong; nothing was started."""

    exit_code = 2


class UnknownKeyError(ConfigError):
    """A key that no part of the configuration has."""


class MissingKeyError(ConfigError):
    """A key that must be there and is not."""


class UnknownNameError(ConfigError):
    """A backbone, plug-in, source or protocol that does not exist."""


class WrongTypeError(ConfigError):
    """A value of the wrong type."""


class OutOfRangeError(ConfigError):
    """A value outside its range or list."""


class MissingPathError(ConfigError):
    """A path that does not exist."""


class ConfigFileError(ConfigError):
    """A file that is not one YAML mapping."""


class UnsupportedError(ConfigError):
    """Settings that are fine alone and wrong together."""


class WeightsError(ConfigError):
    """Weights of an encoder that cannot be had (hub out of reach, package not installed) or cannot be loaded."""


class ResumeError(ConfigError):
    """A run that cannot go on under these settings or with these data."""


class DataError(FedrayError):
    """The data are wrong; nothing was written."""

    exit_code = 2


class MissingColumnError(DataError):
    """A column the file must have."""


class EmptyFileError(DataError):
    """No rows, or none left."""


class EncodingError(DataError):
    """Bytes that are not UTF-8."""


class FileFormatError(DataError):
    """A file that cannot be parsed as what its name says."""


class BadRatingError(DataError):
    """A rating that is not a finite number."""


class BadIdError(DataError):
    """An empty or negative id."""


class BadTimestampError(DataError):
    """A timestamp that is not a finite number."""


class BadSplitError(DataError):
    """A split label that is none of train, valid, test."""


class DuplicatePairError(DataError):
    """A (user, item) pair that occurs twice, where the policy forbids it."""


class TooFewInteractionsError(DataError):
    """A user with too few interactions to split, where the policy forbids it."""


class FeatureShapeError(DataError):
    """A feature matrix of the wrong shape."""


class FeatureValueError(DataError):
    """NaN or infinity in a feature matrix."""


class TrainingError(FedrayError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """A client's loss became NaN or infinite."""


class NonFiniteVectorError(TrainingError):
    """A client's vector, which clients are grouped by, has NaN or infinity in it."""


class AggregateOverflowError(TrainingError):
    """A sum over clients that leaves the fixed-point range."""


class RejectedUpdatesError(TrainingError):
    """Too many clients of a round whose updates were refused: of a wrong shape, of wrong rows, or too long."""


class BadReportError(TrainingError):
    """What a host reports of a round is not what uploads of its clients can come to, or is of another round."""


class SweepError(TrainingError):
    """No trial of a sweep has a result."""


class ContentError(FedrayError):
    """Content of items where only its names are: on a client, which computes with the server's views."""


class EncoderError(FedrayError):
    """An encoder that starts and does not work."""


class CheckpointError(FedrayError):
    """A checkpoint that is missing, torn, or not where all who need it can reach it."""


class BeforeChangeError(CheckpointError):
    """The newest whole checkpoint is from before a change of settings, and not for the settings after it."""


class OutOfStepError(FedrayError):
    """A client actor was asked for another round than the one it is in: it was restarted, or did it already."""


class ResourceError(FedrayError):
    """The machine or the cluster does not give what the run needs."""

    exit_code = 3


class MemoryPlanError(ResourceError):
    """The plan needs more memory than there is."""


class ClusterError(ResourceError):
    """The cluster cannot be reached or refuses."""


class ClusterAuthError(ClusterError):
    """The cluster wants a token, or another one than it was given."""


class PlacementError(ResourceError):
    """Actors that cannot be placed."""


class ActorLostError(ResourceError):
    """An actor died and the run cannot go on without it; from its last checkpoint it can."""

    exit_code = 75


class StoreError(ResourceError):
    """An embedding store cannot be opened or written, or not with these values."""


class StoreBusyError(StoreError):
    """Others hold the embedding store in a way that shuts this out."""


class TrackingError(FedrayError):
    """The tracking store refused a request for good."""


class CompareError(FedrayError):
    """Runs that cannot stand in one table."""

    exit_code = 2


class NoSuchRunError(CompareError):
    """No run, family, experiment or row is called that."""


class AmbiguousRunError(CompareError):
    """A name or prefix that fits several."""


class NotComparableError(CompareError):
    """Other users, other data or another protocol."""


class NothingToCompareError(CompareError):
    """No finished run, or only one row."""


class JobError(FedrayError):
    """A submitted job cannot be had, started or sent as asked; nothing was sent."""

    exit_code = 2


class NoSuchJobError(JobError):
    """No submitted job or run is called that."""


class JobRunningError(JobError):
    """The run's last attempt still goes on."""


class JobDoneError(JobError):
    """The run has succeeded: there is nothing to resume."""


class NotShippableError(JobError):
    """A folder that is too big for the cluster, or a path that would not exist there."""


class Terminated(BaseException):
    """SIGINT or SIGTERM during a run, raised in the main thread so that the run is closed. Not an error."""


class StoppedBetweenRounds(Terminated):
    """The same after a round that was finished first: there can be a checkpoint."""
