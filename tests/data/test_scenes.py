"""Rendered scenes: what a scene depends on, what the picture shows, and what the shards hold."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from titokctl.context import Context
from titokctl.data.scenes.factors import CLASS_NAMES, COLOURS, SHAPES, scene
from titokctl.data.scenes.renderer import render
from titokctl.data.scenes.shards import HELD_OUT_FROM, SceneSet, rendered, write_scene_shards
from titokctl.data.scenes.solids import BOUNDS, hit
from titokctl.data.sources import open_source
from titokctl.errors import UserError


def test_a_scene_depends_on_seed_and_index_alone():
    assert scene(3, 77) == scene(3, 77)
    assert scene(3, 77) != scene(4, 77)
    assert len({scene(0, i).x for i in (*range(40), *range(HELD_OUT_FROM, HELD_OUT_FROM + 40))}) == 80
    assert np.array_equal(render(scene(0, 5), 32), render(scene(0, 5), 32))


def test_every_stretch_holds_all_classes_equally_often():
    assert len(CLASS_NAMES) == len(SHAPES) * len(COLOURS) >= 20
    assert sorted(CLASS_NAMES) == CLASS_NAMES
    drawn = [scene(0, i) for i in range(7, 7 + 2 * len(CLASS_NAMES))]
    assert sorted(s.label for s in drawn) == sorted([*range(len(CLASS_NAMES))] * 2)
    assert all(s.class_name == f"{s.colour}-{s.shape}" for s in drawn)


def test_mirror_images_are_as_likely():
    """So that training may mirror them: the light comes from either side, the solid stands on either side."""
    drawn = [scene(0, i) for i in range(600)]
    for values in ([s.x for s in drawn], [s.light_azimuth for s in drawn]):
        assert abs(np.mean(np.array(values) > 0) - 0.5) < 0.07


@pytest.mark.parametrize("size", [16, 64, 128])
def test_the_solid_has_its_colour_and_is_seen(size):
    for index in range(len(CLASS_NAMES)):
        found = scene(1, index)
        picture = render(found, size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
        background = render_without_solid(found, size)
        differs = np.abs(picture.astype(int) - background).max(2) > 60
        assert 0.01 < differs.mean() < 0.5, found
        # The hue of what differs most: nearer to the class's colour than to any other.
        seen = np.median(picture[differs].astype(float), axis=0)
        angles = {name: cosine(seen, np.array(rgb)) for name, rgb in COLOURS.items()}
        assert max(angles, key=angles.__getitem__) == found.colour, found


def render_without_solid(found, size: int) -> np.ndarray:
    """The same floor and wall, with a solid too small to be seen."""
    import dataclasses

    return render(dataclasses.replace(found, size=1e-3), size).astype(int)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_meet_the_surface(shape):
    """Seen from all sides: hits lie inside the sphere around the solid, normals are unit and look at the ray."""
    draws = np.random.default_rng(0)
    height, radius = BOUNDS[shape]
    targets = draws.normal(size=(3, 4000)).astype(np.float32) * 0.5
    targets[2] += height
    origins = draws.normal(size=(3, 4000)).astype(np.float32)
    origins = origins / np.linalg.norm(origins, axis=0) * 6
    origins[2] = np.abs(origins[2])
    directions = targets - origins
    directions /= np.linalg.norm(directions, axis=0)
    found = hit(shape, tuple(origins), tuple(directions))
    met = np.isfinite(found.distance)
    assert 0.05 < met.mean() < 0.95
    points = (origins + found.distance * directions)[:, met]
    assert points[2].min() > -0.01
    assert np.linalg.norm(points - [[0], [0], [height]], axis=0).max() < radius + 0.01
    normals = np.stack(found.normal)[:, met]
    assert np.linalg.norm(normals, axis=0) == pytest.approx(1, abs=0.01)
    assert ((normals * directions[:, met]).sum(0) < 0.02).mean() > 0.999


def test_larger_pictures_show_the_same():
    small, large = (render(scene(0, 12), size).astype(float) for size in (32, 64))
    shrunk = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 2


def test_shards_carry_the_factors(tmp_path):
    write_scene_shards(tmp_path / "train", SceneSet(35, seed=2, size=32), Context())
    source = open_source([tmp_path / "train"])
    assert len(source) == 35
    assert source.class_names == CLASS_NAMES
    assert source.labels().tolist() == [i % 30 for i in range(35)]
    with tarfile.open(tmp_path / "train/train-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["00000000.json", "00000000.png"] or names[:2] == ["00000000.png", "00000000.json"]
        factors = json.load(tar.extractfile("00000007.json"))
        picture = np.asarray(Image.open(io.BytesIO(tar.extractfile("00000007.png").read())))
    assert factors["class_name"] == CLASS_NAMES[7] == f"{factors['colour']}-{factors['shape']}"
    assert factors["x"] == pytest.approx(scene(2, 7).x, abs=1e-4)
    assert np.array_equal(picture, render(scene(2, 7), 32))


def test_any_number_of_processes_renders_the_same():
    scenes = SceneSet(130, size=16, first=9)
    assert list(rendered(scenes, 3)) == list(rendered(scenes, 1))


def test_finished_shards_are_kept_and_other_things_refused(tmp_path):
    folder, scenes = tmp_path / "set", SceneSet(20, size=16)
    write_scene_shards(folder, scenes, Context())
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.tar")}
    write_scene_shards(folder, scenes, Context())
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.tar")} == before
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        write_scene_shards(folder, SceneSet(20, seed=1, size=16), Context())
    write_scene_shards(folder, SceneSet(20, seed=1, size=16), Context(), overwrite=True)
    assert len(open_source([folder])) == 20
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    with pytest.raises(UserError, match="was not made by `titokctl scenes`"):
        write_scene_shards(tmp_path / "mine", scenes, Context(), overwrite=True)
    assert (tmp_path / "mine/notes.txt").read_text() == "precious"


def test_the_command(run_cli, tmp_path):
    words = ("scenes", "-o", "scenes", "-n", "31", "--heldout", "5", "--size", "32")
    planned = run_cli(*words, "--dry-run", "--json", code=0).json
    assert planned["count"] == 36
    assert not Path(tmp_path / "scenes").exists()
    made = run_cli(*words, "--json", code=0).json
    assert (made["images"], made["held_out_images"]) == (31, 5)
    train, held_out = (open_source([tmp_path / "scenes" / split]) for split in ("train", "heldout"))
    assert (len(train), len(held_out)) == (31, 5)
    assert run_cli(*words, "--dry-run", "--json", code=0).json["done"] == 36
    run_cli("scenes", "-o", "scenes", "--size", "5000", code=2)
