"""The run around the algorithm: processes, checkpoints, callbacks, VecNormalize, loggers and files."""
