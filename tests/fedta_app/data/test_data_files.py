"""How CIFAR-100's files are found, fetched and refused: with small ones in their place."""

import hashlib
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from fedta_app.data.loading import DataSplits, load_data
from fedta_app.errors import DataError


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def small_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that holds a small archive, which torchvision takes for the original."""
    source = tmp_path / "source"
    folder = source / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, number in (("train", 400), ("test", 100)):
        content = {
            "data": random.integers(0, 256, (number, 3072), dtype=np.uint8),
            "fine_labels": [i % 100 for i in range(number)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    archive = source / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "train_list", [["train", _md5(folder / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", _md5(folder / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": _md5(folder / "meta")})
    monkeypatch.setattr(CIFAR100, "tgz_md5", _md5(archive))
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/unreachable.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return source


@pytest.fixture
def server(small_cifar100: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The archive is on the web, here."""
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(small_cifar100))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{web.server_port}/cifar-100-python.tar.gz"
        monkeypatch.setattr(CIFAR100, "url", url)
        yield
        web.shutdown()
        thread.join()


def _load(data_dir: Path) -> DataSplits:
    return load_data("cifar100", data_dir, val_size=0.25, seed=0)


def _names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


UNPACKED = [f"cifar-100-python{name}" for name in ("", "/meta", "/test", "/train")]


def test_files_that_are_there_are_read(small_cifar100: Path) -> None:
    data = _load(small_cifar100)
    assert [len(data.train), len(data.val), len(data.test)] == [300, 100, 100]
    raw = pickle.loads((small_cifar100 / "cifar-100-python" / "test").read_bytes())
    assert np.array_equal(data.test.images.flatten(1).numpy(), raw["data"])
    assert data.test.images.shape == (100, 3, 32, 32) and data.test.images.is_contiguous()
    assert data.test.labels.tolist() == raw["fine_labels"]
    assert (data.num_classes, data.crop_padding, data.flip) == (100, 4, True)


def test_an_archive_that_is_there_is_unpacked(small_cifar100: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(small_cifar100 / "cifar-100-python.tar.gz", home)
    assert _load(home).digest == _load(small_cifar100).digest
    assert _names(home) == sorted([*UNPACKED, "cifar-100-python.tar.gz"])


def test_missing_files_are_downloaded(server: None, small_cifar100: Path, tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    assert _load(home).digest == _load(small_cifar100).digest
    assert _names(home) == UNPACKED


def test_a_spoilt_download_is_refused_and_removed(
    server: None, small_cifar100: Path, tmp_path: Path
) -> None:
    archive = small_cifar100 / "cifar-100-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    home = tmp_path / "home"
    with pytest.raises(DataError, match="could not be fetched"):
        _load(home)
    assert _names(home) == []


def test_without_network_the_sentence_says_where_files_go(
    small_cifar100: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with pytest.raises(DataError) as caught:
        _load(home)
    message = str(caught.value)
    assert f"files train, test, meta into {home}/cifar-100-python" in message
    assert f"or cifar-100-python.tar.gz into {home}" in message and "\n" not in message
    assert _names(home) == []


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_is_named(small_cifar100: Path, name: str) -> None:
    file = small_cifar100 / "cifar-100-python" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    before = file.read_bytes()
    with pytest.raises(DataError, match=f"cifar-100-python/{name} is damaged"):
        _load(small_cifar100)
    assert file.read_bytes() == before


def test_a_damaged_archive_is_named(small_cifar100: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "cifar-100-python.tar.gz").write_bytes(b"half a downl")
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz is damaged"):
        _load(home)
    assert _names(home) == ["cifar-100-python.tar.gz"]


def test_a_data_dir_that_is_a_file_is_refused(small_cifar100: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be fetched"):
        _load(tmp_path / "file")
