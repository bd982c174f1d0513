"""The gateway's modules under the names that its process has them, and a gateway that runs."""

from __future__ import annotations

import sys

from tests.support.gateway_process import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "bentos"))
