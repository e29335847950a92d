"""A file with a checksum tells each change of itself."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from ippo_lightning.storage.checksums import digest_of, is_intact, label_of, write_checked

CONTENT = random.Random(0).randbytes(5000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checked(tmp_path / "file", lambda file: file.write(CONTENT), label="iteration 3")
    return tmp_path / "file"


def test_the_content_comes_first_and_the_checksum_covers_the_label(path: Path) -> None:
    before = CONTENT + b"\niteration 3, sha256 "
    assert path.read_bytes() == before + hashlib.sha256(before).hexdigest().encode() + b"\n"
    assert is_intact(path) is True
    assert label_of(path) == "iteration 3"


def test_each_flipped_bit_and_each_cut_is_noticed(path: Path) -> None:
    written = path.read_bytes()
    # every byte of the end, and some before it
    for place in [*range(0, len(CONTENT), 49), *range(len(CONTENT), len(written))]:
        changed = bytearray(written)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        assert is_intact(path) is not True, place
        path.write_bytes(written[:place])
        assert is_intact(path) is not True, place


@pytest.mark.parametrize("content", [b"", b"\n", CONTENT], ids=["empty", "a line", "bytes"])
def test_a_file_without_a_checksum_says_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_intact(path) is None
    assert label_of(path) is None
    assert label_of(tmp_path / "missing") is None


@pytest.mark.parametrize("size", [None, 0, 1, 4999])
def test_the_digest_is_that_of_the_first_bytes(size: int | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert digest_of(path, size=size) == hashlib.sha256(CONTENT[:size]).hexdigest()
