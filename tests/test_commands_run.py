"""The commands of README and of the first tutorial, carried out one after the other as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Installed

CHECKOUT = Path(__file__).parent.parent
# Of an option given twice the last counts: shorter, but for training itself, which README promises a result of
SHORTER = {"enjoy": ["-n", "600"], "tune": ["--n-trials", "2", "-n", "1000"], "compare-baselines": ["--episodes", "16"]}


def commands_of(page: str) -> list[list[str]]:
    """The arguments of each `sb3-reinforce` in the page's blocks of bash."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (CHECKOUT / page).read_text(), re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("sb3-reinforce ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/first_agent.md"])
def test_commands(page: str, command: Installed, tmp_path: Path):
    printed = ""
    for verb, *arguments in commands_of(page):
        done = command(verb, *arguments, *SHORTER.get(verb, []), cwd=tmp_path, WANDB_MODE="offline")
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (verb, arguments, done.stdout, done.stderr)
        printed += done.stdout
    assert "500.0 +- 0.0 over 100 deterministic episodes" in printed
    assert (tmp_path / "logs/reinforce/CartPole-v1_1/learning_curve.png").exists()
    assert (tmp_path / "logs/report.html").stat().st_size > 50_000


def test_commands_are_found():
    assert [verb for verb, *_ in commands_of("README.md")] == [
        "train",
        "train",
        "enjoy",
        "tune",
        "compare-baselines",
        "report",
    ]
    assert [verb for verb, *_ in commands_of("docs/first_agent.md")] == ["train", "enjoy", "report"]
