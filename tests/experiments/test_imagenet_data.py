import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.data import crops, downloads, imagenet_sets
from experiments.data import imagenet as imagenet_data
from experiments.imagenet_ssl import __main__ as imagenet_ssl
from tests.experiments.imagenet_tars import (
    PER_CLASS,
    SYNSETS,
    TESTS,
    assert_same_batches,
    picture,
    stream,
    take,
    write_tars,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with a prepared `imagenet2012` of three of its classes."""
    folder = tmp_path_factory.mktemp("tfds")
    write_tars(folder / "downloads" / "manual")
    imagenet_sets.prepare("imagenet2012", folder)
    return folder


# The set.


def test_tfds_reads_the_prepared_set_as_its_own(root):
    """With the features, labels and files of its own builder; without TensorFlow."""
    library = imagenet_sets.tfds()
    source = library.data_source(
        "imagenet2012",
        split="train",
        data_dir=root,
        decoders={"image": library.decode.SkipDecoding()},
    )
    expected = write_tars(root / "again")
    names = library.builder("imagenet2012", data_dir=root).info.features["label"].names
    assert len(names) == 1000
    found = {row["file_name"].decode(): row for row in source}
    assert {name: row["image"] for name, row in found.items()} == expected
    for name, row in found.items():
        assert names[row["label"]] == name.split("_")[0]
    assert "tensorflow" not in sys.modules


def test_validation_labels_go_by_the_order_of_the_names(root):
    rows = stream(root).records("validation")
    labels = stream(root).classes
    for row in rows:
        number = int(row["file_name"].decode().split("_")[-1].removesuffix(".JPEG"))
        assert labels[row["label"]] == SYNSETS[number % 3]
    assert len(rows) == stream(root).test_count == TESTS
    assert stream(root).count == len(SYNSETS) * PER_CLASS


def test_a_missing_set_says_which_files_go_where_and_the_command(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    config = imagenet_ssl.Config(data_dir=tmp_path, run=tmp_path / "run")
    with pytest.raises(downloads.DataError) as error:
        imagenet_ssl.main(config)
    text = str(error.value)
    assert f"no prepared imagenet2012 in {tmp_path / 'imagenet2012'}" in text
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in text
    assert f"into {manual} " in text
    assert f"python -m experiments.imagenet_sets --data-dir {tmp_path}" in text
    with pytest.raises(
        downloads.DataError, match=r"has no ILSVRC.*train.*and no ILSVRC"
    ):
        imagenet_sets.prepare("imagenet2012", tmp_path)
    assert not list((tmp_path / "imagenet2012").iterdir())


def test_a_tar_that_does_not_fit_its_labels_leaves_nothing_behind(tmp_path):
    write_tars(tmp_path / "m", tests=TESTS - 1)
    with pytest.raises(downloads.DataError, match="got 4 images, expected 5"):
        imagenet_sets.prepare("imagenet2012", tmp_path, tmp_path / "m")
    (tmp_path / "m" / "labels.txt").write_text("n01440764\n")
    with pytest.raises(
        downloads.DataError, match="'n01443537' is not one of the 1 classes"
    ):
        imagenet_sets.prepare("imagenet2012", tmp_path, tmp_path / "m")
    train_tar = tmp_path / "m" / imagenet_sets.TARS["train"]
    train_tar.write_bytes(train_tar.read_bytes()[:3000])
    with pytest.raises(downloads.DataError, match="damaged"):
        imagenet_sets.prepare("imagenet2012", tmp_path, tmp_path / "m")
    assert not list((tmp_path / "imagenet2012").iterdir())


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "PNG")])
def test_cmyk_and_png_files_become_rgb_jpegs(mode, kind):
    grey = Image.new("RGB", (20, 10), (200, 60, 40)).convert(mode)
    out = io.BytesIO()
    grey.save(out, kind)
    with Image.open(io.BytesIO(imagenet_sets.as_jpeg("x", out.getvalue()))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (20, 10))
        assert np.abs(np.asarray(image)[5, 5].astype(int) - (200, 60, 40)).max() < 12
    plain = picture(np.random.default_rng(0))
    assert imagenet_sets.as_jpeg("x", plain) is plain
    with pytest.raises(downloads.DataError, match="x in the tar is not an image"):
        imagenet_sets.as_jpeg("x", b"no")


def test_sets_of_another_format_are_refused(tmp_path):
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "imagenet2012-train.tfrecord-00000-of-00001").touch()
    with pytest.raises(downloads.DataError, match="not in the array_record format"):
        imagenet_sets.prepared("imagenet2012", tmp_path)


# The crops.


def gradient(width: int, height: int) -> bytes:
    """Red is the column, green the row, in steps that JPEG keeps."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, np.zeros_like(x)], axis=-1).round().astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def test_the_centre_crop_is_the_middle_of_the_image():
    pixels = crops.centre_crop(gradient(400, 320), 224).astype(int)
    share = 320 * 224 / 256
    for place, size, colour in ((0, 400, 0), (1, 320, 1)):
        line = pixels[112, :, colour] if place == 0 else pixels[:, 112, colour]
        low, high = (size - share) / 2 / size * 255, (size + share) / 2 / size * 255
        np.testing.assert_allclose((line[0], line[-1]), (low, high), atol=4)


def test_random_crops_keep_to_their_area_and_shape_and_mirror_half():
    """The first and last pixel of a gradient tell what part of the image it was."""
    content = gradient(300, 200)
    mirrored, areas, ratios = 0, [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        pixels = crops.random_crop(content, rng, 24, 0.25).astype(float)
        left, right = pixels[12, 0, 0], pixels[12, -1, 0]
        mirrored += left > right
        width = abs(right - left) / 255 * 300 * 24 / 23
        height = (pixels[-1, 12, 1] - pixels[0, 12, 1]) / 255 * 200 * 24 / 23
        areas.append(width * height / 60_000)
        ratios.append(width / height)
    assert 0.4 < mirrored / 200 < 0.6
    assert 0.2 < min(areas) < 0.32 and 0.8 < max(areas) < 1.05
    assert 0.7 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.45
    again = crops.random_crop(content, np.random.default_rng(199), 24, 0.25)
    np.testing.assert_array_equal(again, pixels)


def test_an_image_in_which_no_shape_fits_gives_its_centre():
    crop = crops.random_crop(gradient(400, 40), np.random.default_rng(0), 16, 1.0)
    assert abs(crop[8, :, 0].astype(int).mean() - 127.5) < 6


# The stream.


def test_batches_are_a_function_of_seed_and_step(root):
    """Whatever the number of worker processes, and from whichever step on."""
    batches = stream(root).train_batches(7, 4)
    whole = take(imagenet_data.Loader(batches, 0), 12)
    later = imagenet_data.Loader(batches, 2)
    later.set_state(b'{"given": 5}')
    assert_same_batches(take(later, 7), whole[5:])
    assert json.loads(later.get_state()) == {"given": 12}
    other = take(imagenet_data.Loader(stream(root).train_batches(8, 4), 0), 1)
    assert (other[0]["image"] != whole[0]["image"]).any()


def test_every_epoch_has_each_image_at_most_once_cropped_anew(root):
    source = stream(root)
    whole = take(imagenet_data.Loader(source.train_batches(0, 7), 0), 6)
    for epoch in (whole[:3], whole[3:]):
        labels = np.concatenate([batch["label"] for batch in epoch])
        assert np.bincount(labels).tolist() == [PER_CLASS] * 3
    first, second = (
        {crop.tobytes() for batch in epoch for crop in batch["image"]}
        for epoch in (whole[:3], whole[3:])
    )
    assert len(first | second) == 42  # no crop twice


def test_scores_count_every_test_image_once(root):
    source = stream(root, test_batch=2)
    labels = [row["label"] for row in source.records("validation")]

    def always(variables, images, train):
        return jnp.zeros((len(images), 3)).at[:, 1].set(variables["a"])

    scores = source.make_scores(always)
    share = float(np.mean(np.equal(labels, 1)))
    for _ in range(2):
        found = scores({"a": jnp.ones(())})
        assert found == {"test_accuracy": pytest.approx(share), "test_top5": 1.0}


def test_top_hits_are_those_of_sorting():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 20)).astype(np.float32)
    labels = rng.integers(-1, 20, 50)
    order = np.argsort(-logits, axis=1)
    expected = [(order[:, 0] == labels).sum(), (order[:, :5] == labels[:, None]).sum()]
    assert imagenet_data.top_hits(logits, labels).tolist() == expected


def test_normalised_pixels_have_imagenets_moments():
    pixels = np.array([[[[0, 128, 255]]]], np.uint8)
    mean, deviation = imagenet_data.MEAN, imagenet_data.DEVIATION
    expected = (pixels[0, 0, 0] / 255 - mean) / deviation
    found = imagenet_data.normalise(jnp.asarray(pixels))
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5)
