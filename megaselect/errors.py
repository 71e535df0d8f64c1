"""Errors that a user can mend. The command line prints one as a single line and exits with code 2.

Every message names the value that was refused, why, and what to do instead.
"""


class MegaselectError(Exception):
    """Base of all errors that are the user's to mend."""


class ConfigError(MegaselectError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(MegaselectError):
    """A corpus, tokenizer or indexed dataset is missing, damaged or too small."""


class DeviceError(MegaselectError):
    """The device or kernel backend that was asked for is not there."""


class OutOfMemoryError(MegaselectError):
    """A run needs more memory than the device has."""


class CheckpointError(MegaselectError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class RecomputeError(MegaselectError):
    """A recompute setting contradicts the model or would save nothing."""


class SampleIndexError(MegaselectError):
    """Dropout was asked for without the sample indices that its masks are a function of."""


class ComparisonError(MegaselectError):
    """A comparison cannot run, or its result cannot be read or written."""


class ModelError(MegaselectError):
    """A model of the user's own cannot be found or made, or does not run on its batch."""


class VerificationError(MegaselectError):
    """A module and a batch give nothing that can be verified, such as no loss."""


class UnsupportedTorchError(MegaselectError):
    """This version of torch does otherwise what the ledger, verify and compare look at; training goes on."""


class RunDirectoryError(MegaselectError):
    """A run directory cannot be written, is another run's for now, or holds what no run wrote."""


class NonFiniteError(MegaselectError):
    """A loss or a gradient is not finite, and the run is to stop there."""


class SamplingError(MegaselectError):
    """A model gives nothing that a token can be drawn from."""


class RankError(MegaselectError):
    """A rank of a run has ended, does not answer, or differs from the others."""


class ToldByAnotherRank(MegaselectError):
    """What ended the run on this rank is in the line of another one."""


class CallbackError(MegaselectError):
    """A callback raised an exception, which is the cause, or is none."""


def as_line(error: BaseException) -> str:
    """Of an error of anybody's: its kind, and the first line of its text."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
