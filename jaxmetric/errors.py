"""What ends a training run before its time."""


class Interrupted(KeyboardInterrupt):
    """Training was told to stop, and stopped with everything saved; `signum` is the signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is NaN or infinite."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written."""
