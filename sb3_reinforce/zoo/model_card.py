"""The model card of ``push``: RL Zoo's, with commands that work and facts that are so."""

import json
import re
import shlex
from pathlib import Path

import yaml

# RL Zoo's scripts, as its commands start them and its model cards name them, and our verbs
VERB_OF_SCRIPT = {
    "enjoy.py": "enjoy",
    "rl_zoo3.enjoy": "enjoy",
    "rl_zoo3.record_video": "record-video",
    "rl_zoo3.load_from_hub": "pull",
    "rl_zoo3.push_to_hub": "push",
    "rl_zoo3.train": "train",
}


def our_card(card: str, folder: Path) -> str:
    """
    :param card: as RL Zoo writes it for REINFORCE
    :param folder: what is uploaded: results, settings and command line of the run; named as the repository
    :return: the card with our commands, that of training as it was given, the score, and no argument of the video's rendering
    """

    def command(match: re.Match[str]) -> str:
        verb, arguments = VERB_OF_SCRIPT[match[1]], " ".join(match[2].split())
        if verb in ("push", "pull"):  # without a name they look for ALGO-ENV
            arguments += f" -name {folder.name}"
        if verb == "train":
            arguments += as_trained(folder)
        return f"sb3-reinforce {verb} {arguments}"

    # the same two commands once more
    card = re.sub(r"If you installed the RL Zoo3 via pip .*?```\n.*?```\n\n", "", card, flags=re.S)
    # what push has added to the environment's arguments, to make the video
    card = re.sub(r"(,\s*)?'render_mode': 'rgb_array'(?(1)|,?\s*)", "", card)
    card = re.sub(r"# Environment Arguments\n```python\n\{\}\n```\n", "", card)
    card = re.sub(r"python -m (rl_zoo3\.\w+)( --algo reinforce .*)", command, card)
    card = card.replace("pip install rl_zoo3", 'pip install "sb3-reinforce[zoo]"')
    card = card.replace(
        "Install the RL Zoo (with SB3 and SB3-Contrib):",
        "Install sb3-reinforce, which registers REINFORCE with the RL Zoo. It runs no code of a model without `--trust`.",
    )
    return card.replace("\n## Usage", f"\n{score_of(folder)}\n\n## Usage", 1)


def score_of(folder: Path) -> str:
    """:return: a sentence about the episodes that ``push`` has played"""
    score = json.loads((folder / "results.json").read_text())
    kind = "deterministic" if score["is_deterministic"] else "stochastic"
    return f"Return: {score['mean_reward']:.1f} +- {score['std_reward']:.1f} over {score['n_eval_episodes']} {kind} episodes."


def as_trained(folder: Path) -> str:
    """:return: what the command line of training had besides the environment: seed, steps, settings"""
    given, config = (yaml.load((folder / name).read_text(), Loader=yaml.UnsafeLoader) for name in ("args.yml", "config.yml"))
    given, words = dict(given), ["--seed", str(dict(given)["seed"])]
    if given["n_timesteps"] > 0:
        words += ["-n", str(given["n_timesteps"])]
    if given["env_kwargs"]:
        words += ["--env-kwargs", *(f"{name}:{value!r}" for name, value in given["env_kwargs"].items())]
    # a config of the user's own is not there for others: all that was read from it
    own_config = Path(given["conf_file"]).name != "reinforce.yml"
    settings = dict(config) if own_config else given["hyperparams"] or {}
    if settings:
        words += ["-params", *(f"{name}:{value!r}" for name, value in settings.items())]
    return " " + shlex.join(words)
