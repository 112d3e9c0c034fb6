"""The place of ``appending_logger`` until 0.1; it has moved to :mod:`sb3_reinforce.running.logs`."""

from sb3_reinforce.running.logs import AppendingCSV as AppendingCSV
from sb3_reinforce.running.logs import AppendingJSON as AppendingJSON
from sb3_reinforce.running.logs import appending_logger as appending_logger
