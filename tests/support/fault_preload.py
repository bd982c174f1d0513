"""What a worker would else import, or work out, each time anew: tests/support/fault_worker.py."""

from __future__ import annotations

import gc
import os
import tempfile

import airflow.sdk  # noqa: F401
import mlflow  # noqa: F401
import psycopg  # noqa: F401
import pytest  # noqa: F401
from sqlalchemy.orm import configure_mappers

import airlock.operators.rollback
import airlock.operators.snapshot
import airlock.operators.step
import airlock.steps.registry  # noqa: F401
import tests.support.fault_world  # noqa: F401
from airlock.ledger import Ledger

with tempfile.TemporaryDirectory() as folder:
    Ledger(f"sqlite:///{os.path.join(folder, 'ledger.db')}").models()  # noqa: PTH118
configure_mappers()
gc.freeze()
