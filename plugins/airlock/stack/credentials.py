"""Passwords and keys of one home, made at random on its first start and readable by their owner alone."""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from airlock.core.errors import NotFound, Unavailable
from airlock.settings import Settings

ADMIN = "admin"
APPROVER = "approver"
REVIEWER = "reviewer"
"""The second person, for models that two have to approve."""
# The least role that Airflow lets answer a human-in-the-loop request is `user`; `op` also manages assets and pools.
ROLES = {ADMIN: "admin", APPROVER: "user", REVIEWER: "user"}
USERS = tuple(ROLES)


@dataclass(frozen=True)
class Credentials:
    """What the embedded Airflow signs with, and its users' passwords by name."""

    jwt_secret: str = field(repr=False)
    fernet_key: str = field(repr=False)
    api_secret: str = field(repr=False)
    passwords: dict[str, str] = field(repr=False)


def passwords_file(settings: Settings) -> Path:
    """The file in Airflow's own format: a JSON object of passwords by user name."""
    return settings.stack / "airflow-passwords.json"


def credentials(settings: Settings) -> Credentials:
    """The home's credentials, generated where they are missing. Both files have mode 0600."""
    keys = _read(settings.stack / "airflow-keys.json")
    keys.setdefault("jwt_secret", secrets.token_urlsafe(48))
    keys.setdefault("fernet_key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    keys.setdefault("api_secret", secrets.token_urlsafe(32))
    write_private(settings.stack / "airflow-keys.json", json.dumps(keys))
    passwords = _read(passwords_file(settings))
    for name in ROLES:
        passwords.setdefault(name, secrets.token_urlsafe(18))
    write_private(passwords_file(settings), json.dumps(passwords))
    return Credentials(**keys, passwords=passwords)


def password_of(settings: Settings, user: str) -> str:
    """The password of one of the embedded Airflow's users.

    Raises:
        Unavailable: no stack was ever started in this home.
        NotFound: there is no such user; the message names those there are.
    """
    passwords = _read(passwords_file(settings))
    if not passwords:
        raise Unavailable(
            f"no stack was started in {settings.home}; start one with: airlock up, "
            "or name a demo's folder: airlock --home .airlock/demo ..."
        )
    if user not in passwords:
        raise NotFound(f"the embedded Airflow has no user {user!r}; users: {', '.join(sorted(passwords))}")
    return passwords[user]


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _read(path: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
