"""What each command runs of the files in a run's folder: nothing, unless the user says ``--trust``."""

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rl_zoo3")

from sb3_reinforce.running.trust import UntrustedError
from sb3_reinforce.zoo import cli, trust
from sb3_reinforce.zoo.trust import PlainLoader, check_config, check_text, needs_trust
from tests.test_trust import Runs, planted

RUN = Path("logs/reinforce/CartPole-v1_1")
MODEL, CONFIG = RUN / "CartPole-v1.zip", RUN / "CartPole-v1"
TRAIN = ["train", "--env", "CartPole-v1", "-n", "100", "--checkpoint-every", "1"]
ENJOY = ["enjoy", "--env", "CartPole-v1", "-n", "5", "--no-render"]
GO_ON = [*TRAIN, "-i", str(MODEL)]
RESUME = ["train", "--resume", str(RUN)]
COMPARE = ["compare-baselines", "--env", "CartPole-v1", "--episodes", "4", "--model", str(MODEL)]
BENCHMARK = ["benchmark", "-n", "5"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*TRAIN, "-params", "n_envs:1", "n_steps:64", "normalize:True"]) == 0
    return folder


@pytest.fixture
def foreign(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run, in the working directory, beside a module that makes a folder when it is imported."""
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("planted_module.py").write_text("import pathlib; pathlib.Path('ran').mkdir()")
    monkeypatch.delitem(__import__("sys").modules, "planted_module", raising=False)
    return tmp_path


CALL = "__import__('os').mkdir('ran')"
OBJECT = f"!!python/object/apply:eval ['{CALL.replace(chr(39), chr(34))}']"


def edited(file: str, **entries: object) -> Callable[[], object]:
    """Set keys of config.yml, or of args.yml; text is YAML."""

    def edit() -> None:
        path = CONFIG / file
        content = yaml.load(path.read_text(), Loader=PlainLoader)
        for key in entries:
            content.pop(key, None)
        path.write_text(yaml.dump(dict(content)) + "".join(f"{key}: {value}\n" for key, value in entries.items()))

    return edit


def saved_run(**values: object) -> Callable[[], object]:
    """Change run.json; ``arguments`` are appended."""

    def edit() -> None:
        path = RUN / "checkpoints/run.json"
        content = json.loads(path.read_text())
        hyperparams = content["hyperparams"] | values.get("hyperparams", {})
        path.write_text(
            json.dumps(content | {"arguments": content["arguments"] + values.get("arguments", []), "hyperparams": hyperparams})
        )

    return edit


def statistics() -> None:
    (CONFIG / "vecnormalize.pkl").write_bytes(pickle.dumps(Runs(Path("ran"))))


def model() -> None:
    planted(MODEL, policy_class=Runs(Path("ran")))


def results() -> None:
    Path("all.pkl").write_bytes(pickle.dumps(Runs(Path("ran"))))


def merged() -> None:
    values = {"last_evals": np.zeros(2)}
    Path("all.pkl").write_bytes(pickle.dumps({"A": {"x": values}, "results_table": {"headers": [], "value_matrix": []}}))
    Path("more.pkl").write_bytes(pickle.dumps(Runs(Path("ran"))))


TEXT = json.dumps(CALL)
ATTACKS = {
    "enjoy, model": (model, ENJOY, "its entry policy_class names posix.mkdir"),
    "enjoy, statistics": (statistics, ENJOY, "vecnormalize.pkl names posix.mkdir"),
    "enjoy, YAML of the config": (edited("config.yml", gamma=OBJECT), ENJOY, "it holds the Python object object/apply:eval"),
    "enjoy, YAML of the arguments": (edited("args.yml", seed=OBJECT), ENJOY, "it holds the Python object object/apply:eval"),
    "enjoy, text in the config": (edited("config.yml", normalize=TEXT), ENJOY, "its normalize calls __import__"),
    "enjoy, wrapper": (edited("config.yml", env_wrapper="planted_module.W"), ENJOY, "its env_wrapper names planted_module.W"),
    "record-video, model": (model, ["record-video", *ENJOY[1:]], "its entry policy_class names posix.mkdir"),
    "push, text": (
        edited("config.yml", normalize=TEXT),
        ["push", *ENJOY[1:], "-orga", "me"],
        "its normalize calls __import__",
    ),
    "train -i, model": (model, GO_ON, "its entry policy_class names posix.mkdir"),
    "train -i, statistics": (statistics, GO_ON, "vecnormalize.pkl names posix.mkdir"),
    "train -i, YAML": (edited("config.yml", gamma=OBJECT), GO_ON, "it holds the Python object object/apply:eval"),
    "train -i, text": (edited("config.yml", policy_kwargs=TEXT), GO_ON, "its policy_kwargs calls __import__"),
    "train -i, callback": (edited("config.yml", callback="[planted_module.C]"), GO_ON, "its callback names planted_module.C"),
    "benchmark, YAML": (edited("args.yml", seed=OBJECT), BENCHMARK, "it holds the Python object object/apply:eval"),
    "benchmark, environment": (edited("args.yml", env="planted_module:CartPole-v1"), BENCHMARK, "imports a module"),
    "--resume, checkpoint": (
        lambda: [planted(path, a=Runs(Path("ran"))) for path in RUN.glob("checkpoints/*.zip")],
        RESUME,
        "its entry a names posix.mkdir",
    ),
    "--resume, -params": (saved_run(arguments=["-params", f"gamma:{CALL}"]), RESUME, "its -params calls __import__"),
    "--resume, --env-kwargs": (saved_run(arguments=["--env-kwargs", f"x:{CALL}"]), RESUME, "its --env-kwargs calls"),
    "--resume, --gym-packages": (saved_run(arguments=["--gym-packages", "planted_module"]), RESUME, "imports planted_module"),
    "--resume, --env": (saved_run(arguments=["--env", "planted_module:CartPole-v1"]), RESUME, "imports planted_module:"),
    "--resume, --conf-file": (saved_run(arguments=["--conf-file", "planted_module"]), RESUME, "imports planted_module"),
    "--resume, trusting itself": (saved_run(arguments=["--trust", "-params", f"x:{CALL}"]), RESUME, "its -params calls"),
    "--resume, text": (saved_run(hyperparams={"policy_kwargs": CALL}), RESUME, "its policy_kwargs calls __import__"),
    "--resume, policy": (saved_run(hyperparams={"policy": "planted_module.P"}), RESUME, "its policy names planted_module.P"),
    "compare-baselines, model": (model, COMPARE, "its entry policy_class names posix.mkdir"),
    "compare-baselines, statistics": (statistics, COMPARE, "vecnormalize.pkl names posix.mkdir"),
    "plot-file": (results, ["plot-file", "-i", "all"], "all.pkl names posix.mkdir"),
    "plot-file --merge": (merged, ["plot-file", "-i", "all", "--merge", "more.pkl"], "names posix.mkdir"),
}


@pytest.mark.parametrize("plant, command, words", ATTACKS.values(), ids=ATTACKS)
def test_no_command_runs_what_a_file_holds(
    foreign: Path, plant: Callable[[], object], command: list[str], words: str, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("seaborn")
    plant()
    try:
        code = cli.main(command)
    except SystemExit as end:
        code = end.code
    assert not Path("ran").exists()
    assert code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert words in line
    assert "--trust" in line


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("command", [BENCHMARK, ["record-training", "--env", "CartPole-v1", "-n", "5", "-o", "videos"]])
def test_commands_that_start_others(foreign: Path, command: list[str], trusted: bool, capfd: pytest.CaptureFixture[str]):
    pytest.importorskip("moviepy")
    model()
    with suppress(Exception, SystemExit):
        cli.main([*command, *["--trust"] * trusted])
    assert Path("ran").exists() == trusted
    assert ("its entry policy_class names posix.mkdir" in capfd.readouterr().err) == (not trusted)


# The config of these is not read again, and the environment is the one of the checkpoint
NOT_REACHED = ("--resume, trusting itself", "--resume, --conf-file", "--resume, --env")
TRUSTED = [name for name in ATTACKS if name not in NOT_REACHED]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUSTED)
def test_trusted_files_run(foreign: Path, name: str):
    """So each file above is one that runs code upstream."""
    pytest.importorskip("seaborn")
    plant, command, _ = ATTACKS[name]
    plant()
    with suppress(Exception, SystemExit):
        cli.main([*command, "--trust"])
    assert Path("ran").exists()


def test_an_ordinary_run_needs_no_trust(foreign: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(ENJOY) == 0
    assert cli.main([*RESUME, "-n", "200"]) == 0
    assert cli.main(GO_ON) == 0
    assert cli.main(COMPARE) == 0
    assert trust.yaml.UnsafeLoader is not PlainLoader  # put back


def test_a_stopped_run_says_whether_it_needs_trust(foreign: Path):
    (checkpoint,) = list(RUN.glob("checkpoints/*.zip"))[:1]
    assert not needs_trust(RUN, checkpoint)
    planted(checkpoint, baseline=Runs(Path("ran")))
    assert needs_trust(RUN, checkpoint)


def test_what_the_user_types_is_trusted(foreign: Path):
    saved_run(arguments=["--gym-packages", "planted_module"])()
    assert cli.main([*RESUME, "--gym-packages", "planted_module"]) == 0
    assert Path("ran").exists()


@pytest.mark.parametrize(
    "text",
    ["dict(net_arch=[64, -1], activation_fn=nn.Tanh)", "{'a': (1, 2.5e-3, None)}", "2**10", "True", "th.nn.ReLU", "1/3"],
)
def test_text_that_is_a_value(text: str):
    check_text(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("open('x')", "calls open"), ("nn.Tanh()", "calls nn.Tanh"), ("dict.__class__", "names dict.__class__"),
        ("nn.modules.sys", "names nn.modules.sys"), ("[x for x in ()]", "is more than a value"), ("lambda: 0", "is more"),
        ("(a := 1)", "is more than a value"), ("f'{open}'", "is more than a value"), ("dict(**vars)", "names vars"),
        ("import os", "is not a value"), ("[].append", r"names \[\].append"), ("a[0]", "is more than a value"),
    ],
)  # fmt: skip
def test_text_that_is_more(text: str, words: str):
    with pytest.raises(UntrustedError, match=words):
        check_text(text)


def test_configs_that_runs_save_are_read():
    """Wrappers and callbacks of the packages that RL Zoo itself imports; classes by name in YAML."""
    config = {
        "env_wrapper": [
            {"stable_baselines3.common.atari_wrappers.AtariWrapper": {"clip_reward": False}},
            "rl_zoo3.wrappers.YAMLCompatResizeObservation",
        ],
        "callback": "stable_baselines3.common.callbacks.CheckpointCallback",
        "policy_kwargs": "dict(net_arch=dict(pi=[256], vf=[256]), activation_fn=nn.ReLU)",
        "normalize": "dict(norm_obs=False, norm_reward=True)",
        "env_kwargs": {"gravity": 9.8},
    }  # fmt: skip
    check_config(config, "config.yml")
    with pytest.raises(UntrustedError, match=r"config\.yml: its env_wrapper names gymnasium\.wrappers\.common\.gym"):
        check_config({"env_wrapper": "gymnasium.wrappers.common.gym"}, "config.yml")
    text = "a: !!python/tuple [1, 2]\nb: !!python/name:torch.nn.modules.activation.ReLU ''\n"
    assert yaml.load(text, Loader=PlainLoader) == yaml.load(text, Loader=yaml.UnsafeLoader)
    with pytest.raises(UntrustedError, match=r"it names os\.system"):
        yaml.load("!!python/name:os.system ''", Loader=PlainLoader)
