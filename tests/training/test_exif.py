"""A tokenizer records how its images were decoded, and what is made with it follows."""

from pathlib import Path

import stages
import tiny

from titokctl.formats.run_folder import open_run
from titokctl.weights.read import trained_with_exif


def test_the_exif_setting_is_recorded_and_makes_another_run(tmp_path: Path) -> None:
    data = tiny.class_folder(tmp_path / "photos", 8)
    few = ("training.steps=1",)
    plain = stages.train(data, "single", tmp_path / "runs", tmp_path, *few)
    turned = stages.train(data, "single", tmp_path / "runs", tmp_path, *few, exif=True)
    assert plain.run != turned.run
    assert (trained_with_exif(plain.run), trained_with_exif(turned.run)) == (False, True)
    assert open_run(turned.run).inputs["preprocessing"] == {"exif": True}
