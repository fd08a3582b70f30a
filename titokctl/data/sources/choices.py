"""The user's choices where the files of a source can be read in several ways."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from titokctl.errors import UsageError

NO_SPLIT = "none"
SORTS = ("name", "natural")


@dataclass(frozen=True)
class Choices:
    """Choices about classes, labels and columns; None and True leave them to the files.

    Args:
        split: the sub-folder that holds the images of one split; NO_SPLIT if `train`, `val` and `test` are classes.
        classes: a text file with the names of the class folders, one per line, in the order of their labels.
        use_labels: False reads the images without labels.
        sort: the order of class folders: "name" as text, as torchvision has it; "natural" puts 2 before 10.
        image_key: the member of a WebDataset sample (`image.png`) or the column of a table that holds the image.
        label_key: the member, the field of a JSON member, or the column that holds the label.

    Raises UsageError for an unknown order.
    """

    split: str | None = None
    classes: Path | None = None
    use_labels: bool = True
    sort: str | None = None
    image_key: str | None = None
    label_key: str | None = None

    def __post_init__(self) -> None:
        if self.sort not in (None, *SORTS):
            raise UsageError(f"unknown order {self.sort!r}", f"one of: {', '.join(SORTS)}")
        if self.classes is not None and not self.use_labels:
            raise UsageError("--classes and --no-labels are mutually exclusive", "leave out one of them")

    def whatever_labels(self) -> "Choices":
        """Return the same choices for a reader that has no use for labels: class folders are sorted as text."""
        return self if self.sort or self.classes or not self.use_labels else replace(self, sort="name")

    def record(self) -> dict[str, Any]:
        """Return JSON of the choices that were made; {} if none was. The paths of a source show its split."""
        made = {name: value for name, value in asdict(self).items() if value not in (None, True) and name != "split"}
        return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in made.items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Choices":
        """Return the choices that `record` returned; fields of other versions and of other types are ignored."""
        known = {field.name for field in fields(cls)}
        given: dict[str, Any] = {n: v for n, v in record.items() if n in known and isinstance(v, str | bool)}
        if isinstance(given.get("classes"), str):
            given["classes"] = Path(given["classes"])
        return cls(**given)


NO_CHOICES = Choices()
