"""The wheel: built, installed elsewhere, and used from there. No network is needed."""

import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sb3_reinforce

CHECKOUT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
EXTRAS = {
    "zoo", "atari", "contrib", "estimators", "wandb", "plots", "video", "docs", "dashboards", "envpool", "dev", "all", "peers",
}  # fmt: skip


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def python(code: str, path: Path, cwd: Path) -> str:
    """
    What a program prints that finds the package in ``path``.

    -I: neither PYTHONPATH nor the working directory may lead back to the checkout.
    """
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_wheel_trains(installed: Path, tmp_path: Path):
    code = """
import sb3_reinforce
from sb3_reinforce import REINFORCE
model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=2, seed=0, device="cpu").learn(100)
model.save("model")
print(sb3_reinforce.__file__)
print(REINFORCE.load("model").num_timesteps >= 100)
"""
    module, trained = python(code, installed, tmp_path).split()
    assert Path(module).is_relative_to(installed)
    assert trained == "True"


def test_the_installed_wheel_finds_its_configs(installed: Path, tmp_path: Path):
    found = Path(python("from sb3_reinforce.zoo import config_file; print(config_file())", installed, tmp_path).strip())
    assert found == installed / "sb3_reinforce" / "zoo_configs" / "reinforce.yml"
    for source in (CHECKOUT / "zoo_configs").iterdir():
        assert (found.parent / source.name).read_bytes() == source.read_bytes()


def test_a_checkout_finds_its_configs(tmp_path: Path):
    found = python("from sb3_reinforce.zoo import config_file; print(config_file())", CHECKOUT, tmp_path).strip()
    assert Path(found) == CHECKOUT / "zoo_configs" / "reinforce.yml"


def test_the_command_is_installed(installed: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, installed / "bin" / "sb3-reinforce", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: sb3-reinforce COMMAND" in done.stdout


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]):
    from sb3_reinforce.zoo import cli

    assert cli.main(["--version"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"sb3-reinforce {sb3_reinforce.__version__}"
    assert second.startswith("stable-baselines3 2.")


def test_what_the_source_archive_holds():
    held = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"/docs", "/benchmarks", "/examples", "/tests", "/sb3_reinforce", "/zoo_configs"} <= set(held)
    assert not [name for name in held if not (CHECKOUT / name.strip("/")).exists()]


def test_the_wheel_is_typed_and_carries_no_tests(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "sb3_reinforce/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"sb3_reinforce", f"sb3_reinforce-{sb3_reinforce.__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_metadata(metadata: Message):
    assert metadata["Name"] == "sb3-reinforce"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(required) == ["gymnasium>=1.1", "stable-baselines3<3,>=2.7", "threadpoolctl>=3.8"]


def test_the_version_has_one_source(metadata: Message):
    assert metadata["Version"] == sb3_reinforce.__version__
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert "version" not in PYPROJECT["project"]
    assert "\nversion:" not in (CHECKOUT / "CITATION.cff").read_text()


def test_all_means_all_extras():
    extras = PYPROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = everything.removeprefix("sb3-reinforce[").removesuffix("]").split(",")
    # envpool has no build for every platform, and the peers and estimators are for one benchmark each, in its own environment
    assert set(named) == set(extras) - {"all", "docs", "envpool", "peers", "estimators"}
    assert "sb3-reinforce[docs]" in extras["dev"]


def test_the_main_packages_are_pinned():
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    # a torch that is not pinned exactly may be replaced by a CUDA build of several GB
    assert {"torch", "stable-baselines3", "gymnasium", "numpy", "rl_zoo3", "wandb", "mujoco", "Box2D"} <= set(pins)


def test_import_and_training_need_no_optional_package(tmp_path: Path):
    code = """
import sys
from importlib.machinery import PathFinder

OPTIONAL = {"rl_zoo3", "wandb", "matplotlib", "seaborn", "pandas", "rliable", "moviepy", "imageio", "optuna", "tensorboard",
            "tqdm", "rich", "yaml", "sb3_contrib", "huggingface_hub", "mujoco", "Box2D", "wandb_workspaces", "ale_py", "cv2"}

class InstalledWithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in OPTIONAL else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = InstalledWithoutExtras
import sb3_reinforce, sb3_reinforce.zoo, sb3_reinforce.zoo.cli, sb3_reinforce.tracking
for name in sb3_reinforce.__all__:
    getattr(sb3_reinforce, name)
sb3_reinforce.REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=2, device="cpu").learn(20)
print(sorted(OPTIONAL & {name.split(".")[0] for name in sys.modules}))
"""
    assert python(code, CHECKOUT, tmp_path).strip() == "[]"


def required_by(*requirements: str) -> set[str]:
    """:return: names of the distributions that pip would install for them"""
    names: set[str] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        requirement = todo.pop()
        names.add(canonicalize_name(requirement.name))
        for line in requires(requirement.name) or []:
            needed = Requirement(line)
            if canonicalize_name(needed.name) not in names and (
                needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""})
            ):
                todo.append(needed)
    return names


def test_the_extra_zoo_is_all_that_training_from_the_command_line_needs(tmp_path: Path):
    installed = required_by(*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["zoo"])
    assert {"torch", "stable-baselines3", "optuna", "pandas"} <= installed
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & (installed | {"sb3-reinforce"})
    }
    assert {"matplotlib", "wandb", "ale_py"} <= hidden
    code = f"""
import sys
from importlib.machinery import PathFinder

class InstalledWithTheZoo(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = InstalledWithTheZoo
from sb3_reinforce.zoo.cli import main
print(main(["train", "--env", "CartPole-v1", "-n", "300", "--eval-final", "2"]))
"""
    printed = python(code, CHECKOUT, tmp_path)
    assert "needs matplotlib" in printed or "not drawn" in printed
    assert printed.splitlines()[-1] == "0"
