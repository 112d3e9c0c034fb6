"""RL Zoo: registration of REINFORCE and the configs shipped with it. The command line is in ``cli``."""

from pathlib import Path

__all__ = ["config_file", "register"]


def register() -> None:
    """
    Make ``--algo reinforce`` known to RL Zoo.

    All of the zoo's commands share ``rl_zoo3.ALGOS`` and the two tables of its search, so one assignment each is enough. Call
    this before a command builds its argument parser, which takes its choices from there.

    :raises ModuleNotFoundError: if rl_zoo3 is not installed
    """
    import rl_zoo3  # optional: the extra `zoo`
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    from sb3_reinforce import REINFORCE
    from sb3_reinforce.zoo.search_space import convert_reinforce_params, sample_reinforce_params

    rl_zoo3.ALGOS["reinforce"] = REINFORCE
    HYPERPARAMS_SAMPLER["reinforce"] = sample_reinforce_params
    HYPERPARAMS_CONVERTER["reinforce"] = convert_reinforce_params


def config_file(name: str = "reinforce.yml") -> Path:
    """
    Find a file of ``zoo_configs/``: inside the package in a wheel, beside it in a checkout or an editable install.

    :param name: the file's name within ``zoo_configs/``
    :return: its path
    :raises FileNotFoundError: if there is no such file
    """
    package = Path(__file__).resolve().parents[1]
    folders = (package / "zoo_configs", package.parent / "zoo_configs")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no {name} in {' or '.join(str(folder) for folder in folders)}")
