"""The exceptions that are shown to the user as one sentence and a hint, without a traceback."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # stopped by SIGTERM or SIGUSR1 after saving: run the same command again
EXIT_INTERRUPTED = 130  # Ctrl-C


class UserError(Exception):
    """Something the user can mend: one clear sentence, and what to do about it.

    Args:
        message: one sentence that names what was found and what was expected.
        hint: what to type or to change; "" when there is nothing useful to say.
        exit_code: process exit code, 1 unless the command line itself was wrong.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(UserError):
    """The command line is wrong: shown like every UserError, with exit code 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, EXIT_USAGE)


class Stopped(Exception):
    """A signal asked a long job to end; its state is saved, and the same command goes on from there.

    Args:
        exit_code: 130 after Ctrl-C, 75 after SIGTERM or SIGUSR1.
        message: what was saved.
    """

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
