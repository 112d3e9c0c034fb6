"""Default step sizes, which depend on the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.utils import update_learning_rate

from sb3_reinforce.running.devices import has_convolutions

# Measured: docs/results.md without convolutions, docs/atari.md with them
DEFAULTS = {"learning_rate": 3e-3, "value_learning_rate": 1e-2}
WITH_CONVOLUTIONS = {"learning_rate": 3e-4, "value_learning_rate": 1e-3}


@contextmanager
def default_learning_rates(model: Any) -> Iterator[None]:
    """Around the making of a REINFORCE's networks: rates that are None become those that suit the networks."""
    unset = [name for name in DEFAULTS if getattr(model, name) is None]
    for name in unset:
        setattr(model, name, DEFAULTS[name])
    yield
    if unset and has_convolutions(model.policy):
        for name in unset:
            setattr(model, name, WITH_CONVOLUTIONS[name])
        model._renew_schedules()
        update_learning_rate(model.policy.optimizer, model.lr_schedule(1.0))
