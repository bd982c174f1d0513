"""The command line, ``airlock``: thin over Airflow's REST API, the ledger and the embedded stack.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 a part of the stack does not answer,
130 interrupted.
"""

from airlock.cli.app import main

__all__ = ["main"]
