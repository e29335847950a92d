"""A configuration for others: only private values change, and the rest of the text stays as it is written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from ippo_lightning.experiments import __path__ as experiments
from ippo_lightning.storage.public_yaml import public_value, public_yaml
from ippo_lightning.storage.secret_forms import HIDDEN

PRIVATE = r"""# made in /home/annleak/work/x by hand
loop: {run_dir: /home/annleak/proj/out, max_iterations: 3}
policy:
  pretrained: &base '/home/annleak/mymodel'
  again: *base
  headers: {Authorization: Bearer SECRET, accept: json}
  api_keys: [SECRET, 'SECRET']
  password: |
    SECRET
  credentials:
    user: SECRET
  token: null
  kwargs: '{"api_key": "SECRET", "n": 1}'
  url: https://h/x?api_key=SECRET
  pad_token: <pad>
  windows: c:\Users\Ann Smith\x
  database: sqlite:////home/annleak/x.db
"""
KEPT = r"""
system_prompt: /no_think
chat_template: "{% if x %}/a/b{% endif %}"
prompt_template: "Use ~3/4 and /a/b: {prompt}"
agent_prompt: You work in /home/user/project.
answer_pattern: (?:/usr/bin|/bin)
stop: ['/home/x/y', "Q:\\nA:\\n"]
stop_tokens: [/usr/bin]
messages:
- content: /home/x/y
endpoint: /v1/score
text: <think>/x/y</think>
list:
- "ä"   # a comment
- !!str 3
"""


def test_private_values_are_replaced_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/annleak")
    shown = public_yaml(PRIVATE)
    assert "SECRET" not in shown
    assert "ann" not in shown.lower()
    assert shown.startswith('# made in x by hand\nloop: {run_dir: "out", max_iterations: 3}\n')
    policy = yaml.safe_load(shown)["policy"]
    assert policy == {
        "pretrained": "mymodel",
        "again": "mymodel",
        "headers": {"Authorization": HIDDEN, "accept": "json"},
        "api_keys": [HIDDEN, HIDDEN],
        "password": HIDDEN,
        "credentials": {"user": HIDDEN},
        "token": None,
        "kwargs": json.dumps({"api_key": HIDDEN, "n": 1}),
        "url": f"https://h/x?api_key={HIDDEN}",
        "pad_token": "<pad>",
        "windows": "x",
        "database": "sqlite:///x.db",
    }


def test_prompts_patterns_and_addresses_stay_as_they_are_written() -> None:
    assert public_yaml(KEPT) == KEPT
    assert public_value('{"api_key": "in an example"}', key="system_prompt") == '{"api_key": "in an example"}'


def test_a_json_stays_a_json() -> None:
    content = {"password": 12, "base_model_name_or_path": "/scratch/ann/base", "r": 8, "target_modules": ".*(q|v)_proj"}
    public = {**content, "password": HIDDEN, "base_model_name_or_path": "base"}
    assert json.loads(public_yaml(json.dumps(content, indent=2))) == public


def test_what_is_no_yaml_is_read_line_by_line() -> None:
    broken = "a: 1\n- path: /scratch/ann/x\n  api_key: 'SECRET'\nb: [1, 2\x00"
    assert public_yaml(broken) == f"a: 1\n- path: x\n  api_key: '{HIDDEN}'\nb: [1, 2\x00"


def test_the_packaged_configurations_have_nothing_to_hide() -> None:
    files = sorted(Path(experiments[0]).rglob("*.yaml"))[::5]
    assert files
    assert [path.name for path in files if public_yaml(text := path.read_text(encoding="utf-8")) != text] == []


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "a: {" * 10_000, "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "a" * 50_000]
)
def test_a_hostile_configuration_takes_no_time(text: str) -> None:
    start = time.perf_counter()
    assert public_yaml(text) == text
    assert time.perf_counter() - start < 5
