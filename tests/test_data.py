import functools
import hashlib
import http.server
import io
import tarfile
import threading

import jax
import numpy as np
import pytest

from experiments import cifar_tfds, data


def small_arrays(name="cifar10", count=12, classes=10):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, count).astype(np.int32)
    names = tuple(f"class{i}" for i in range(classes))
    return data.Arrays(name, images, labels, images[:5], labels[:5], names)


def pack(archive: cifar_tfds.Archive, arrays: data.Arrays, path) -> str:
    """An archive in the official format; its sha256."""

    def records(images, labels):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        columns = [labels[:, None].astype(np.uint8)] * len(archive.labels)
        return np.concatenate([*columns, planes], axis=1).tobytes()

    parts = np.array_split(np.arange(len(arrays.train_labels)), len(archive.train))
    files = {
        name: records(arrays.train_images[part], arrays.train_labels[part])
        for name, part in zip(archive.train, parts, strict=True)
    }
    files[archive.test[0]] = records(arrays.test_images, arrays.test_labels)
    for name in archive.labels.values():
        files[name] = "\n".join(arrays.classes).encode() + b"\n"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-binary/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def assert_same(found, expected):
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))
    assert found.classes == expected.classes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_set_is_downloaded_built_and_cached(
    name, server, tmp_path, monkeypatch
):
    folder, url = server
    arrays = small_arrays(name, classes=10 if name == "cifar10" else 100)
    official = cifar_tfds.ARCHIVES[name]
    packed = folder / official.url.rsplit("/", 1)[-1]
    archive = cifar_tfds.Archive(
        f"{url}/{packed.name}",
        pack(official, arrays, packed),
        official.labels,
        official.train,
        official.test,
    )
    monkeypatch.setitem(cifar_tfds.ARCHIVES, name, archive)
    root = tmp_path / "root"
    assert_same(data.load(name, root), arrays)
    packed.unlink()  # from now on the cache must do
    assert_same(data.load(name, root), arrays)
    cached = root / "sslx" / f"{name}.npz"
    cached.unlink()
    cached.with_suffix(".json").unlink()
    assert_same(data.load(name, root), arrays)  # from the prepared set


def test_a_changed_archive_is_refused_and_leaves_nothing(server, tmp_path):
    folder, url = server
    (folder / "a.tar.gz").write_bytes(b"not what was expected")
    target = tmp_path / "downloads" / "a.tar.gz"
    with pytest.raises(data.DataError, match=r"sha256 is .* expected 00"):
        data.download(f"{url}/a.tar.gz", "00", target, "there")
    assert list(target.parent.iterdir()) == []


def test_without_network_the_folder_the_option_and_digits_are_named(
    tmp_path, monkeypatch
):
    official = cifar_tfds.ARCHIVES["cifar10"]
    nowhere = cifar_tfds.Archive(
        "http://127.0.0.1:9/a.tar.gz",
        official.sha256,
        official.labels,
        official.train,
        official.test,
    )
    monkeypatch.setitem(cifar_tfds.ARCHIVES, "cifar10", nowhere)
    with pytest.raises(data.DataError) as error:
        data.load("cifar10", tmp_path)
    for word in (str(tmp_path / "cifar10"), "--data-dir", "--data digits"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", ["flip a byte", "cut short", "remove", "bad json"])
def test_a_damaged_cache_is_named(tmp_path, spoil):
    path = tmp_path / "sslx" / "cifar10.npz"
    data.write_cache(path, small_arrays())
    assert_same(data.load("cifar10", tmp_path), small_arrays())
    content = bytearray(path.read_bytes())
    if spoil == "flip a byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif spoil == "cut short":
        path.write_bytes(content[:-100])
    elif spoil == "remove":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{")
    with pytest.raises(data.DataError, match=r"cifar10\.npz .*delete"):
        data.load("cifar10", tmp_path)


def test_digits_are_the_real_ones_split_once_and_for_all():
    from sklearn.datasets import load_digits

    arrays = data.load("digits")
    assert arrays.train_images.shape == (1498, 32, 32, 3)
    assert arrays.test_images.shape == (299, 32, 32, 3)
    truth = load_digits()
    np.testing.assert_array_equal(arrays.test_labels, truth.target[5::6])
    grey = arrays.test_images[0, ::4, ::4, 0]
    np.testing.assert_array_equal(grey, np.round(truth.images[5] * 255 / 16))


def test_unknown_set():
    with pytest.raises(ValueError, match="got 'mnist', expected one of cifar10"):
        data.load("mnist")


def test_moments_are_numpys():
    arrays = small_arrays()
    mean, deviation = arrays.moments()
    scaled = arrays.train_images / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(deviation, scaled.std((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_every_augmented_image_is_a_crop_perhaps_mirrored(flip):
    images = small_arrays().train_images
    found = np.asarray(data.augment(jax.random.key(3), images, pad=2, flip=flip))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    mirrored = 0
    for n in range(len(images)):
        crops = [padded[n, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
        plain = any(np.array_equal(found[n], crop) for crop in crops)
        turned = any(np.array_equal(found[n], crop[:, ::-1]) for crop in crops)
        assert plain or (flip and turned)
        mirrored += turned and not plain
    assert (mirrored > 0) == flip
