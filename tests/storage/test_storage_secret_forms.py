"""Which settings are secrets, and which texts contain one."""

from __future__ import annotations

import time

import pytest

from ippo_lightning.storage.secret_forms import HIDDEN, hidden_value, is_secret_key, without_secret_forms

SECRETS = (
    "api_key api-key apiKey OPENAI_API_KEY api_keys token hub_token api_token neptune_api_token hf_token secret_key "
    "access_key aws_secret_access_key private_key password wandb_password passwd passphrase credentials Authorization "
    "X-Api-Key logger.client_secret"
)
TOKENIZER = (
    "pad_token eos_token stop_tokens max_tokens max_new_tokens special_tokens num_tokens additional_special_tokens "
    "decoder_start_token mask_token pad_token_id key keys author tokenizer secretary"
)


def test_names_of_secrets_and_names_of_a_tokenizer() -> None:
    assert [name for name in SECRETS.split() if not is_secret_key(name)] == []
    assert [name for name in TOKENIZER.split() if is_secret_key(name)] == []
    assert [hidden_value(value) for value in ("", "null", "true", "</s>", "[PAD]", "abc")] == [
        *("", "null", "true", "</s>", "[PAD]"),
        HIDDEN,
    ]


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "aB" * 17,
        "sk-proj-" + "abcDEF1234567890abcd",
        "sk-" + "a1" * 24,
        "github_pat_" + "11ABCDEFG0abcdefghijkl",
        "ghp_" + "a1" * 18,
        "AKIA" + "IOSFODNN7EXAMPLE",
        "xoxb-" + "123456789012-abc",
    ],
)
def test_keys_of_a_known_form_are_hidden_in_any_text(secret: str) -> None:
    assert without_secret_forms(f"use {secret}, please") == f"use {HIDDEN}, please"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer abcdefgh12345678", f"Bearer {HIDDEN}"),
        ("https://ann:hunter2@host.org/a", "https://host.org/a"),
        ("s3://ann:hunter2@host/a", "s3://host/a"),
        ("https://h/x?n=1&api_key=SECRET#a", f"https://h/x?n=1&api_key={HIDDEN}#a"),
        *((text, text) for text in ("sk-learn-something-like-thisxx", "mailto://a@b", "hf_hub", "a?key=b")),
    ],
)  # fmt: skip
def test_secrets_in_a_text(text: str, shown: str) -> None:
    assert without_secret_forms(text) == shown


@pytest.mark.parametrize("piece", ["sk-", "eyJ-", "://", "?a", "Bearer ", "://a:", "hf_a", "-eyJaaaaaaaaaaa."])
def test_a_hostile_text_takes_no_longer_than_its_length(piece: str) -> None:
    start = time.perf_counter()
    without_secret_forms(piece * (50_000 // len(piece)))
    assert time.perf_counter() - start < 5
