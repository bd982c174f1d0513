"""Whom HTTP clients trust."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def trusted() -> ssl.SSLContext:
    """For ``verify=`` of every client: httpx's own choice (certifi's authorities, or ``SSL_CERT_FILE``), read once a
    process, which takes 25 ms. A changed file counts from the next start on."""
    return httpx.create_ssl_context()
