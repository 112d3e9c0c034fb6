"""
Gymnasium vector environments and EnvPool as Stable-Baselines3 ``VecEnv``.

A vector environment steps all its environments in one call, often far faster than ``DummyVecEnv``, which calls one
environment after the other. At the end of an episode the two interfaces differ:

===========  ======================================================================================================
autoreset    what ``step`` returns for an environment whose episode ends
===========  ======================================================================================================
SB3          the first observation of the next episode; the last one is ``info["terminal_observation"]``
SAME_STEP    the same, with the last observation in ``infos["final_obs"]``
DISABLED     the last observation; the caller resets, with ``reset(options={"reset_mask": mask})``
NEXT_STEP    the last observation; the *next* step ignores the action, resets, and returns reward 0. This step is no
             transition: it would teach that any action leads from the end of an episode to the start of another
===========  ======================================================================================================

:class:`VectorEnvAdapter` steps all of them as SB3 does. In NEXT_STEP mode it resets the environments that ended at once, so
that the step that is no transition never happens.
"""

from sb3_reinforce.vec_env.adapter import VectorEnvAdapter
from sb3_reinforce.vec_env.atari import make_atari_env
from sb3_reinforce.vec_env.convert import vectorize
from sb3_reinforce.vec_env.infos import EndedEpisodes, StepInfos
from sb3_reinforce.vec_env.resets import MaskedReset

__all__ = ["EndedEpisodes", "MaskedReset", "StepInfos", "VectorEnvAdapter", "make_atari_env", "vectorize"]
