"""Passwords and keys of services: by the name of a setting, and by the forms that well-known services give them."""

from __future__ import annotations

import re

HIDDEN = "<hidden>"
"""Stands where a secret was."""

_ENDS = (
    "apikey", "apikeys", "accesskey", "accesskeyid", "accountkey", "privatekey", "secretkey", "signingkey", "sshkey",
    "encryptionkey", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials",
    "authorization", "accesstokens", "apitokens", "authtokens", "hubtokens", "hftokens", "cookie",
)  # fmt: skip
_WHOLE = ("auth", "bearer", "pwd", "pat")
# Words before `token` that make it one of a tokenizer or a count. Plurals such as `stop_tokens` are no secrets either.
_TOKENIZER = (
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "eot", "eom", "eod", "boi", "eoi", "start", "end", "begin",
    "stop", "special", "image", "audio", "video", "max", "min", "num", "new", "per", "each", "first", "last", "next",
    "prompt", "response", "system", "user", "assistant", "think", "extra", "tool",
)  # fmt: skip
_MODEL_TOKEN = re.compile(r"<.*>|\[[A-Z]+\]", re.DOTALL)
_NOTHING = ("", "null", "none", "~", "true", "false")

# Each pattern is bounded: a text of any origin costs time in proportion to its length.
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}\b|AIza[\w-]{35}\b|xox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|sk-(?=[\w-]{0,200}[A-Za-z0-9]{16})(?=[\w-]{0,200}\d)[\w-]{20,}"
    r"|eyJ[\w-]{10,2000}\.[\w-]{2,2000}\.[\w-]{0,2000})"
)
_BEARER = re.compile(r"\b(Bearer\s{1,4})[\w.~+/=-]{16,}", re.IGNORECASE)
_WEB_LOGIN = re.compile(r"(?<=https://|.http://)[^/@\s\"'<>]+@|(?<=://)[^/@:\s\"'<>]*:[^/@\s\"'<>]+@")
_PARAMETER = re.compile(r"(?<=[?&;])([\w.-]{1,100})=([^&;#\s\"'<>]+)")
_OF_ADDRESSES = ("key", "sig", "signature", "xamzsignature", "xamzsecuritytoken")


def is_secret_key(key: str) -> bool:
    """Return whether a setting of this name contains a password or a key of a service.

    Args:
        key: of a mapping, or an option; of a dotted name, the last part counts. Case, `-` and `_` make no difference.

    Example:
        >>> [is_secret_key(key) for key in ("logger.Api-Key", "hub_token", "pad_token", "max_new_tokens")]
        [True, True, False, False]
    """
    name = re.sub(r"[-_\s]", "", key[-200:].rsplit(".", 1)[-1].lower())
    if name.endswith("token"):
        return not name.removesuffix("token").endswith(_TOKENIZER)
    return name in _WHOLE or name.endswith(_ENDS)


def hidden_value(value: str) -> str:
    """Return what is shown of the value of a secret setting: whether there is one.

    Args:
        value: in words; null, true, false and a token of a tokenizer such as `<pad>` are no secrets.
    """
    return value if value.lower() in _NOTHING or _MODEL_TOKEN.fullmatch(value) else HIDDEN


def without_secret_forms(text: str) -> str:
    """Return a text without keys of a well-known form, logins in addresses, and secret parameters of addresses.

    Args:
        text: of any kind.

    Example:
        >>> without_secret_forms("https://ada:pw@host.org/x?api_key=12&n=3")
        'https://host.org/x?api_key=<hidden>&n=3'
    """
    text = _BEARER.sub(rf"\1{HIDDEN}", _FORMS.sub(HIDDEN, text))
    if "://" in text:
        text = _PARAMETER.sub(_shown_parameter, _WEB_LOGIN.sub("", text))
    return text


def _shown_parameter(found: re.Match[str]) -> str:
    name = re.sub(r"[-_]", "", found[1].lower())
    return f"{found[1]}={HIDDEN}" if name in _OF_ADDRESSES or is_secret_key(found[1]) else found[0]
