"""Files on file systems that cannot do everything, and folders that a user names."""

import errno
import os
from pathlib import Path

import pytest

from fedta_app.errors import ConfigError
from fedta_app.files import as_folder, expanded, sync_folder, write_atomically


def refuse_to_flush(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_to_flush(monkeypatch, number)
    write_atomically(tmp_path / "a", "text")
    sync_folder(tmp_path)
    assert (tmp_path / "a").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_or_is_full_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_to_flush(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(tmp_path / "a", "text")
    assert not (tmp_path / "a").exists()


def test_a_home_that_does_not_exist_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        expanded("~nobody-of-that-name/x", "results-dir = '~nobody-of-that-name/x'")
    assert str(refused.value) == (
        "results-dir = '~nobody-of-that-name/x' is not allowed: there is no home folder "
        "~nobody-of-that-name on this machine; give an absolute path"
    )
    # A user without an entry in /etc/passwd, as in a container.
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(ConfigError, match="give an absolute path, or set HOME"):
        expanded("~/x", "results-dir = '~/x'")


@pytest.mark.parametrize("text", ["{0}/file", "{0}/file/below", "{0}/" + 300 * "x", "{0}/a\0b"])
def test_a_folder_that_cannot_be_one_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused:
        as_folder(text.format(tmp_path), "--out X")
    assert str(refused.value).startswith("--out X is not allowed: ")
    assert "\n" not in str(refused.value)


def test_a_folder_may_be_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_folder(tmp_path, "") == tmp_path
    assert as_folder("a/b", "") == tmp_path / "a/b"
    assert not (tmp_path / "a").exists()
