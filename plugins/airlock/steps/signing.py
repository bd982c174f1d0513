"""Signatures of what Airlock writes: Ed25519 over the file's bytes, in a small JSON document beside it.

The private key is made at the first signature, in the home's ``keys`` folder, readable by its owner alone. The public
key lies beside it and is what others need to verify.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from airlock.core.errors import ArtifactCorrupt
from airlock.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE = "release.key"
PUBLIC = "release.pub"
_ALGORITHM = "ed25519"


def sign(settings: Settings, content: bytes) -> str:
    """The signature document of ``content``: algorithm, fingerprint of the public key, signature in base64."""
    key = _private_key(settings)
    document = {
        "algorithm": _ALGORITHM,
        "key": _fingerprint(_raw_public(key)),
        "signature": base64.b64encode(key.sign(content)).decode(),
    }
    return json.dumps(document, indent=2) + "\n"


def verify(content: bytes, signature: str, public_key: Path) -> str:
    """Check ``content`` against its signature document and return the key's fingerprint.

    Raises:
        ArtifactCorrupt: it was changed, was signed with another key, or the signature cannot be read.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(public_key.read_text().strip(), validate=True)
        document = json.loads(signature)
        algorithm, named, signed = document["algorithm"], document["key"], document["signature"]
        decoded = base64.b64decode(signed, validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw)
    except OSError as error:
        raise ArtifactCorrupt(f"no public key at {public_key}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"not a signature, or not a key at {public_key}: {error}") from error
    if algorithm != _ALGORITHM:
        raise ArtifactCorrupt(f"signed with {algorithm!r}; only {_ALGORITHM} is taken")
    if named != _fingerprint(raw):
        raise ArtifactCorrupt(f"signed with key {named}, but the key at {public_key} is {_fingerprint(raw)}")
    try:
        key.verify(decoded, content)
    except InvalidSignature:
        raise ArtifactCorrupt(f"signature and content do not fit: one was changed after key {named} signed") from None
    return str(named)


def public_key(settings: Settings) -> Path:
    """Where the home's public key lies."""
    return settings.keys / PUBLIC


def _private_key(settings: Settings) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = settings.keys / PRIVATE
    if not path.exists():
        settings.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        making = path.with_name(f".{PRIVATE}.{os.getpid()}.tmp")
        making.unlink(missing_ok=True)
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(making, path)  # fails where another process was faster: its key is the one
        except FileExistsError:
            pass
        finally:
            making.unlink()
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(path.read_text().strip()))
    public = public_key(settings)
    if not public.exists():
        making = public.with_name(f".{PUBLIC}.{os.getpid()}.tmp")
        making.write_text(base64.b64encode(_raw_public(key)).decode() + "\n")
        making.replace(public)
    return key


def _raw_public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _fingerprint(raw_public: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw_public).hexdigest()
