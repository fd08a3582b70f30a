"""Exceptions that the command line shows as one sentence and a hint, without a traceback."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # stopped by SIGTERM or SIGUSR1 after saving: run the same command again
EXIT_INTERRUPTED = 130  # Ctrl-C


class UserError(Exception):
    """An error that the user can fix: one sentence, and a hint.

    Args:
        message: one sentence that names what was found and what was expected.
        hint: what to type or to change; may be empty.
        exit_code: exit code of the process; 1, or 2 for a wrong command line.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(UserError):
    """A UserError about the command line, with exit code 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, EXIT_USAGE)


class Stopped(Exception):
    """A signal stopped a long job, which saved its state; the same command resumes it.

    Args:
        exit_code: 130 after Ctrl-C, 75 after SIGTERM or SIGUSR1.
        message: a sentence about what was saved.
    """

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
