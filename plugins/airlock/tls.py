"""Whom HTTP clients trust."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def trusted() -> ssl.SSLContext:
    """The machine's certificates for ``verify=`` of every client, read once a process: that takes 25 ms."""
    return httpx.create_ssl_context()
