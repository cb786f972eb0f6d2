"""Errors whose message is a sentence for the user: which participant, file or column, what is wrong, what to do."""


class PetsynthError(Exception):
    """Base of all errors that are shown to the user without a traceback."""


class UsageError(PetsynthError):
    """Wrong arguments or an unusable dataset, output folder, device or model: nothing is run (exit code 2)."""


class InputError(PetsynthError):
    """Bad input of one participant: that one fails, the others go on (exit code 1)."""


class ModelError(UsageError):
    """A model folder that is incomplete, damaged, or from a newer version of the software."""


class TrainingError(PetsynthError):
    """A training that cannot go on (exit code 1)."""
