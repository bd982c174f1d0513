"""Triggers: they look at the gateway without a worker, and write nothing."""
