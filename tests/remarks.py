"""Progress for tests that listens: what a job said, and which phases it began."""

from titokctl.progress import SilentProgress


class Remarks(SilentProgress):
    """Keeps what is said and started; `words in remarks` tells whether any of it contains them."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, what: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.said.append(f"start {what}")

    def say(self, text: str) -> None:
        self.said.append(text)

    def __contains__(self, words: str) -> bool:
        return any(words in text for text in self.said)
