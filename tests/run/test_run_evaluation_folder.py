"""The folder of an evaluation: parts become one file, a damaged part is made again, another evaluation is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.run.evaluation_folder import EvaluationFolder, evaluation_name

SETTINGS: dict[str, Any] = {"split": "test", "sampling": {"num_responses": 1, "stop": ("a", "b")}}


def part(start: int, count: int) -> list[Any]:
    own = {"sample": 0, "prompt": "1+1?", "response": "#2", "correct": True, "label": None, "faithful": None}
    own |= {
        "answer": "2",
        "reference": "2",
        "reward": None,
        "reward_parts": {},
        "response_tokens": 3,
        "truncated": False,
    }
    return [{"prompt_index": start + number, **own} for number in range(count)]


def begun(path: Path, settings: Any = SETTINGS) -> EvaluationFolder:
    folder = EvaluationFolder(path, sizes=[2, 1])
    folder.begin(settings)
    return folder


def test_parts_become_one_file(tmp_path: Path) -> None:
    folder = begun(tmp_path / "out")
    assert (folder.read(), folder.missing()) == (None, [0, 1])
    folder.write_part(1, part(2, 1))
    assert folder.missing() == [0]
    with pytest.raises(UserError, match=r"part_000000\.parquet is missing; all ranks must write into one folder"):
        folder.join()
    folder.write_part(0, part(0, 2))
    assert [item["prompt_index"] for item in folder.join()] == [0, 1, 2]
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "items.parquet", "settings.json"]
    folder.release()
    again = begun(tmp_path / "out")
    again.write_part(1, part(2, 1))  # left by a kill while the parts were removed
    assert again.read() == part(0, 3)
    assert not (tmp_path / "out" / "parts").exists()


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    folder = begun(tmp_path / "out")
    folder.write_part(0, part(0, 2))
    (path,) = (tmp_path / "out" / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is not what was written"):
        assert folder.missing() == [0, 1]


def test_another_evaluation_or_another_process_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path / "out")
    with pytest.raises(UserError, match="another process evaluates into"):
        begun(tmp_path / "out")
    folder.release()
    other = {**SETTINGS, "sampling": {"num_responses": 2, "stop": ["a", "b"]}}
    with pytest.raises(UserError, match=r"contains another evaluation \(sampling\.num_responses: 1, and now 2\)"):
        begun(tmp_path / "out", other)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "items.parquet").touch()
    with pytest.raises(UserError, match="contains files of another origin"):
        begun(tmp_path / "strange")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output: .*file cannot be written into"):
        begun(tmp_path / "file")


def test_a_folder_has_another_name_for_other_settings() -> None:
    first = evaluation_name(SETTINGS, split="test", model="../a b/c")
    assert first.startswith("test-.._a_b_c-")
    assert "/" not in first
    assert first != evaluation_name({**SETTINGS, "split": "validation"}, split="test", model="../a b/c")
