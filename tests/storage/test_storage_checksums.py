"""A file with a checksum tells each change of itself."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import yaml

from ippo_lightning.storage.checksums import (
    digest_of,
    has_wrong_checksum,
    has_wrong_checksum_line,
    is_intact,
    label_of,
    with_checksum,
    with_checksum_line,
    write_checked,
)

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


CONFIGURATION = """loop:
  max_iterations: 4
  run_dir: runs/größe
"""


def test_a_configuration_stays_what_it_is_and_tells_its_changes() -> None:
    text = with_checksum_line(CONFIGURATION)
    assert yaml.safe_load(text) == yaml.safe_load(CONFIGURATION)
    assert not has_wrong_checksum_line(text)
    assert has_wrong_checksum_line(text.replace("4", "40", 1))
    assert has_wrong_checksum_line(text + "seed_everything: 3\n")
    assert not has_wrong_checksum_line(CONFIGURATION)


def test_numbers_tell_their_changes_and_any_order_is_right() -> None:
    content = {"exact_match": 0.1 + 0.2, "k": 4, "names": ("a", "b"), "nothing": None}
    read = json.loads(json.dumps(with_checksum(content)))
    assert not has_wrong_checksum(read)
    assert not has_wrong_checksum(dict(reversed(read.items())))
    assert has_wrong_checksum({**read, "k": 5})
    assert has_wrong_checksum({**read, "more": 1})
    assert not has_wrong_checksum(content)
