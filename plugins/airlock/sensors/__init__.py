"""Sensors: they look once, and wait without a worker only when they have to."""
