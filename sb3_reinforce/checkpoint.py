"""The place of checkpoints until 0.1; they have moved to :mod:`sb3_reinforce.running`."""

from sb3_reinforce.running.checkpoint import TrainingCheckpoint as TrainingCheckpoint
from sb3_reinforce.running.checkpoint_file import CheckpointError as CheckpointError
from sb3_reinforce.running.checkpoint_file import checkpoints_in as checkpoints_in
