import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import jax
import numpy as np
import pytest

from experiments.data import downloads, image_sets, tfds_sets


def small_arrays(name="cifar10", count=12, classes=10, shape=(32, 32, 3)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, count).astype(np.int32)
    names = tuple(f"class{i}" for i in range(classes))
    return image_sets.Arrays(name, images, labels, images[:5], labels[:5], names)


def pack(official: tfds_sets.CifarArchive, arrays: image_sets.Arrays, path) -> str:
    """An archive in the official format; its sha256."""

    def records(images, labels):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        columns = [labels[:, None].astype(np.uint8)] * len(official.names)
        return np.concatenate([*columns, planes], axis=1).tobytes()

    parts = np.array_split(np.arange(len(arrays.train_labels)), len(official.train))
    files = {
        name: records(arrays.train_images[part], arrays.train_labels[part])
        for name, part in zip(official.train, parts, strict=True)
    }
    files[official.test[0]] = records(arrays.test_images, arrays.test_labels)
    for name in official.names.values():
        files[name] = "\n".join(arrays.classes).encode() + b"\n"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-binary/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pack_idx(arrays: image_sets.Arrays, folder) -> dict[str, str]:
    """The four files of an MNIST set; file -> sha256."""
    content = {
        "train-images-idx3": arrays.train_images[..., 0],
        "train-labels-idx1": arrays.train_labels.astype(np.uint8),
        "t10k-images-idx3": arrays.test_images[..., 0],
        "t10k-labels-idx1": arrays.test_labels.astype(np.uint8),
    }
    found = {}
    for name, array in content.items():
        header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
        packed = gzip.compress(header + array.tobytes())
        (folder / f"{name}-ubyte.gz").write_bytes(packed)
        found[f"{name}-ubyte.gz"] = hashlib.sha256(packed).hexdigest()
    return found


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


def assert_same(found, expected, ordered=True):
    for split in ("train", "test"):
        places = []
        for arrays in (found, expected):
            images = getattr(arrays, f"{split}_images")
            pixels = images.reshape(len(images), -1)
            key = np.arange(len(images)) if ordered else np.lexsort(pixels.T)
            labels = getattr(arrays, f"{split}_labels")
            places.append((images[key], labels[key]))
        np.testing.assert_array_equal(places[0][0], places[1][0])
        np.testing.assert_array_equal(places[0][1], places[1][1])
    assert found.classes == expected.classes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_set_is_downloaded_built_and_cached(
    name, server, tmp_path, monkeypatch
):
    folder, url = server
    arrays = small_arrays(name, classes=10 if name == "cifar10" else 100)
    official = tfds_sets.OFFICIAL[name]
    packed = folder / official.url.rsplit("/", 1)[-1]
    served = dataclasses.replace(
        official, url=f"{url}/{packed.name}", sha256=pack(official, arrays, packed)
    )
    monkeypatch.setitem(tfds_sets.OFFICIAL, name, served)
    root = tmp_path / "root"
    assert_same(image_sets.load(name, root), arrays)
    packed.unlink()  # from now on the cache must do
    assert_same(image_sets.load(name, root), arrays)
    forget_cache(root, name)
    assert_same(image_sets.load(name, root), arrays)  # from the prepared set


def forget_cache(root, name):
    cached = root / "sslx" / f"{name}.npz"
    cached.unlink()
    cached.with_suffix(".json").unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_missing_mnist_is_downloaded_or_found_installed_built_and_cached(
    name, installed, server, tmp_path, monkeypatch
):
    folder, url = server
    official = tfds_sets.OFFICIAL[name]
    arrays = dataclasses.replace(
        small_arrays(name, shape=(28, 28, 1)), classes=official.names
    )
    served = dataclasses.replace(
        official,
        url="http://127.0.0.1:9/" if installed else f"{url}/",
        sha256=pack_idx(arrays, folder),
        installed=folder if installed else None,
    )
    monkeypatch.setitem(tfds_sets.OFFICIAL, name, served)
    root = tmp_path / "root"
    first = image_sets.load(name, root)
    assert_same(first, arrays, ordered=False)
    forget_cache(root, name)
    assert_same(image_sets.load(name, root), first)  # from the prepared set


@pytest.mark.parametrize("spoil", ["magic", "sizes", "cut short"])
def test_a_damaged_idx_file_is_named(tmp_path, spoil):
    files = pack_idx(small_arrays(shape=(28, 28, 1)), tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    if spoil == "magic":
        content[3] = 3
    elif spoil == "sizes":
        content[7] += 1
    else:
        content = content[:-1]
    path.write_bytes(gzip.compress(bytes(content)))
    official = tfds_sets.IdxFiles("nowhere", files, ("a",), "1.0.0", tmp_path)
    with pytest.raises(downloads.DataError, match=r"train-labels.* expected 0x801"):
        list(official.records(tmp_path, "train"))


def test_a_changed_archive_is_refused_and_leaves_nothing(server, tmp_path):
    folder, url = server
    (folder / "a.tar.gz").write_bytes(b"not what was expected")
    target = tmp_path / "downloads" / "a.tar.gz"
    with pytest.raises(downloads.DataError, match=r"sha256 is .* expected 00"):
        downloads.download(f"{url}/a.tar.gz", "00", target, "there")
    assert list(target.parent.iterdir()) == []


def test_without_network_the_folder_the_option_and_digits_are_named(
    tmp_path, monkeypatch
):
    official = tfds_sets.OFFICIAL["cifar10"]
    nowhere = dataclasses.replace(official, url="http://127.0.0.1:9/a.tar.gz")
    monkeypatch.setitem(tfds_sets.OFFICIAL, "cifar10", nowhere)
    with pytest.raises(downloads.DataError) as error:
        image_sets.load("cifar10", tmp_path)
    for word in (str(tmp_path / "cifar10"), "--data-dir", "--data digits"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", ["flip a byte", "cut short", "remove", "bad json"])
def test_a_damaged_cache_is_named(tmp_path, spoil):
    path = tmp_path / "sslx" / "cifar10.npz"
    image_sets.write_cache(path, small_arrays())
    assert_same(image_sets.load("cifar10", tmp_path), small_arrays())
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
    with pytest.raises(downloads.DataError, match=r"cifar10\.npz .*delete"):
        image_sets.load("cifar10", tmp_path)


def test_digits_are_the_real_ones_split_once_and_for_all():
    from sklearn.datasets import load_digits

    arrays = image_sets.load("digits")
    assert arrays.train_images.shape == (1498, 32, 32, 3)
    assert arrays.test_images.shape == (299, 32, 32, 3)
    truth = load_digits()
    np.testing.assert_array_equal(arrays.test_labels, truth.target[5::6])
    grey = arrays.test_images[0, ::4, ::4, 0]
    np.testing.assert_array_equal(grey, np.round(truth.images[5] * 255 / 16))


def test_unknown_set():
    with pytest.raises(ValueError, match="got 'svhn', expected one of cifar10"):
        image_sets.load("svhn")


def test_moments_are_numpys():
    arrays = small_arrays()
    mean, deviation = arrays.moments()
    scaled = arrays.train_images / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(deviation, scaled.std((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_every_augmented_image_is_a_crop_perhaps_mirrored(flip):
    images = small_arrays().train_images
    found = np.asarray(image_sets.augment(jax.random.key(3), images, pad=2, flip=flip))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    mirrored = 0
    for n in range(len(images)):
        crops = [padded[n, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
        plain = any(np.array_equal(found[n], crop) for crop in crops)
        turned = any(np.array_equal(found[n], crop[:, ::-1]) for crop in crops)
        assert plain or (flip and turned)
        mirrored += turned and not plain
    assert (mirrored > 0) == flip
