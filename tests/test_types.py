"""What a type checker tells a user of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent

SCRIPT = """
from sb3_reinforce import REINFORCE, EpisodicAlgorithm

class Mine(EpisodicAlgorithm):
    def train(self) -> None:
        pass

reveal_type(REINFORCE("MlpPolicy", "CartPole-v1").learn(100))
reveal_type(REINFORCE.load("model.zip"))
reveal_type(REINFORCE.resume("run", "CartPole-v1"))
reveal_type(Mine("MlpPolicy", "CartPole-v1").learn(100))
reveal_type(REINFORCE("MlpPolicy", "CartPole-v1").batch.episodes.returns)
REINFORCE("MlpPolicy", "CartPole-v1", baseline="vlaue")
REINFORCE("MlpPolicy", "CartPole-v1", baseline="leave_one_out").learn("many")
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[str]:
    pytest.importorskip("mypy")
    file = tmp_path_factory.mktemp("user") / "script.py"
    file.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--config-file", str(CHECKOUT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    return [line.partition(": ")[2] for line in done.stdout.splitlines()]


def test_types_are_seen(told):
    revealed = [line for line in told if "Revealed" in line]
    assert [line.split('"')[1].rpartition(".")[2] for line in revealed] == ["REINFORCE"] * 3 + ["Mine", "Tensor"]


def test_errors_are_seen(told):
    errors = [line for line in told if line.startswith("error")]
    assert len(errors) == 2, told
    assert 'Argument "baseline" to "REINFORCE" has incompatible type "Literal[\'vlaue\']"' in errors[0]
    assert 'Argument 1 to "learn" of "ResumableAlgorithm" has incompatible type "str"; expected "int"' in errors[1]
