"""Checkpoints of a run that may be killed at any time: the folder to copy."""

from experiments.checkpoints.manager import Checkpoints
from experiments.checkpoints.mishaps import CheckpointError, DiskError
from experiments.checkpoints.run_folder import differences

__all__ = ["CheckpointError", "Checkpoints", "DiskError", "differences"]
