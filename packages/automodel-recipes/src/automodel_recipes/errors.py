"""What can go wrong in a run, each with the exit code that the command line returns."""


class RecipeError(RuntimeError):
    """A run cannot go on; the message says what was given, what is allowed and what to do."""

    exit_code = 1


class RunDirectoryError(RecipeError):
    """The output directory cannot take this run."""

    exit_code = 2


class UnusableInputError(RecipeError):
    """A model, data set or checkpoint that the configuration or the command line names cannot be used."""

    exit_code = 2


class OutOfMemory(RecipeError):
    """Memory ran out; notes say what it was used for and what would need less."""

    exit_code = 3


class NonFiniteLossError(RecipeError):
    """The loss, the gradient norm or a weight is NaN or infinite."""

    exit_code = 5


class LossSpikeError(RecipeError):
    """The loss stands out, and the configuration asks to stop then."""

    exit_code = 5


class Interrupted(RecipeError):
    """A signal ended the run after the current step; the exit code is 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
