"""How the tests check signatures: shapes and types of each argument, where an int may stand for a float."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
