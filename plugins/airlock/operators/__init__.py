"""Operators: one release action each, from freezing a snapshot to rolling a version back."""
