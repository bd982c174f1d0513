"""Release control: moves releases through their phases and traffic with them."""

from airlock.control.release import ReleaseControl

__all__ = ["ReleaseControl"]
