"""Patches of RL Zoo's plots, of how it finds models, and of what it uploads: see ``test_patches.py``."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rl_zoo3")

from sb3_reinforce.zoo import cli, patches
from tests.test_patches import MODEL, the_zoo_alone

# --- missing_runs_named, single_evaluations, single_runs ---


def plot_alone(runs: dict[str, list], monkeypatch: pytest.MonkeyPatch) -> None:
    """RL Zoo's plot and table of evaluations by run."""
    pytest.importorskip("seaborn")
    for name, results in runs.items():
        Path("logs", name).mkdir(parents=True)
        np.savez(f"logs/{name}/evaluations.npz", timesteps=np.arange(1, len(results) + 1), results=results)
    the_zoo_alone("plots.all_plots", ["-a", "ppo", "a2c", "-e", "X", "-f", "logs", "--no-display", "-o", "all"], monkeypatch)


def last_evals() -> np.ndarray:
    return pickle.loads(Path("all.pkl").read_bytes())["X"]["PPO-logs"]["last_evals"]


def test_missing_runs_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    plot_alone({"ppo/X_1": [[1, 2], [3, 4]]}, monkeypatch)
    assert "0.0 +/- 0.0" in capsys.readouterr().out, "delete missing_runs_named"


def test_missing_runs_named(capsys: pytest.CaptureFixture[str]):
    from pytablewriter import MarkdownTableWriter

    cells = [["X", "0 +/- 0", "0.0 +/- 0.0"]]
    with patches.missing_runs_named():
        MarkdownTableWriter(headers=["a", "b", "c"], value_matrix=cells).write_table()
    assert cells == [["X", "0 +/- 0", "no run"]]
    assert "no run" in capsys.readouterr().out


def test_single_evaluations_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The mean of the last evaluations is taken over the runs."""
    monkeypatch.chdir(tmp_path)
    plot_alone({"ppo/X_1": [[1], [3]], "ppo/X_2": [[1], [9]]}, monkeypatch)
    assert last_evals().tolist() == 6, "delete single_evaluations"


def test_single_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with patches.single_evaluations():
        plot_alone({"ppo/X_1": [[1], [3]], "ppo/X_2": [[1], [9]]}, monkeypatch)
    assert last_evals().tolist() == [3, 9]


def test_single_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    plot_alone({"ppo/X_1": [[1, 2], [3, 4]]}, monkeypatch)
    assert np.ndim(last_evals()) == 0, "delete single_runs"


def test_single_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also of files that were written before."""
    monkeypatch.chdir(tmp_path)
    with patches.single_runs():
        plot_alone({"ppo/X_1": [[1, 2], [3, 4]]}, monkeypatch)
        assert last_evals().tolist() == [3.5]
        Path("old.pkl").write_bytes(pickle.dumps({"X": {"a": {"last_evals": np.float64(2)}}}))
        with open("old.pkl", "rb") as file:
            assert pickle.load(file)["X"]["a"]["last_evals"].tolist() == [2]


# --- models_of_train ---

UUIDS = ("3f0c1a52-8f6c-4d0e-9a53-0d4f0a3b1c2d", "1b4e28ba-2fa1-41d2-883f-0016d3cca427")


def models(top: Path) -> Path:
    """Runs 1 and 2, and two of ``--uuid``: the second is the newest, and has a checkpoint to resume from."""
    for age, name in enumerate([f"X_2_{UUIDS[0]}", f"X_2_{UUIDS[1]}", "X_2", "X_1"]):
        (top / "ppo" / name / "X").mkdir(parents=True)
        (top / "ppo" / name / "X.zip").touch()
        (top / "ppo" / name / "X/args.yml").touch()
        os.utime(top / "ppo" / name / "X/args.yml", (1000 - (age - 1) ** 2, 1000 - (age - 1) ** 2))
    newest = top / "ppo" / f"X_2_{UUIDS[1]}"
    for steps in (5, 50):
        (newest / "checkpoints").mkdir(exist_ok=True)
        (newest / f"checkpoints/checkpoint_{steps}_steps.zip").touch()
    return newest


def test_models_of_train_alone(tmp_path: Path):
    from rl_zoo3.utils import get_latest_run_id, get_model_path

    newest = models(tmp_path)
    assert get_latest_run_id(str(tmp_path / "ppo"), "X") == 2
    with pytest.raises(ValueError, match="No checkpoint found"):
        get_model_path(0, str(tmp_path), "ppo", "X", load_last_checkpoint=True)  # else: delete models_of_train
    shutil.rmtree(newest.with_name("X_2"))
    assert get_model_path(0, str(tmp_path), "ppo", "X")[2].endswith("X_1")


def test_models_of_train(tmp_path: Path):
    from rl_zoo3 import utils

    newest, folder = models(tmp_path), str(tmp_path)
    with patches.models_of_train():
        run_id = utils.get_latest_run_id(str(newest.parent), "X")
        assert (run_id + 1, f"{run_id}", str(run_id)) == (3, f"2_{UUIDS[1]}", f"2_{UUIDS[1]}")
        assert utils.get_model_path(0, folder, "ppo", "X") == ("final-model-ppo-X", str(newest / "X.zip"), str(newest))
        assert utils.get_model_path(patches.RunId(f"2_{UUIDS[0]}"), folder, "ppo", "X")[2].endswith(UUIDS[0])
        assert utils.get_model_path(2, folder, "ppo", "X")[2].endswith("X_2")
        last = ("checkpoint-50-ppo-X", str(newest / "checkpoints/checkpoint_50_steps.zip"), str(newest))
        assert utils.get_model_path(0, folder, "ppo", "X", load_last_checkpoint=True) == last
        assert utils.get_model_path(0, folder, "ppo", "X", load_checkpoint=5)[0] == "checkpoint-5-ppo-X"
        for which in ({"load_checkpoint": 6}, {"load_best": True}):
            with pytest.raises(ValueError, match=rf"No model found for ppo on X, path: {newest}"):
                utils.get_model_path(0, folder, "ppo", "X", **which)
        # a checkpoint of --save-freq comes first
        (newest / "rl_model_7_steps.zip").touch()
        assert utils.get_model_path(0, folder, "ppo", "X", load_last_checkpoint=True)[0] == "checkpoint-7-ppo-X"
        with pytest.raises(AssertionError, match="Y_9 folder was not found"):
            utils.get_model_path(9, folder, "ppo", "Y")


# --- uploads_masked ---


@pytest.fixture
def push_of_a_secret(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """Arguments of ``push`` for a run whose command line and config have secrets; and the texts that are then uploaded."""
    from huggingface_hub import HfApi

    uploaded = {}

    def upload_folder(api: HfApi, *, folder_path: Path, **_: object) -> None:
        uploaded.update(
            {file.name: file.read_text() for file in Path(folder_path).iterdir() if file.suffix in (".md", ".yml")}
        )

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: "https://nowhere")
    monkeypatch.setattr(HfApi, "snapshot_download", lambda *_, local_dir, **__: Path(local_dir).mkdir(parents=True))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "logs", "logs")
    settings = Path("logs/reinforce/CartPole-v1_2/CartPole-v1")
    args = (settings / "args.yml").read_text()
    assert "- storage\n    - null" in args
    storage = "- storage\n    - postgresql://me:swordfish@host/db"
    (settings / "args.yml").write_text(args.replace("- storage\n    - null", storage))
    with (settings / "config.yml").open("a") as file:
        file.write("  - - env_kwargs_of_another\n    - {api_key: swordfish}\n")
    return [*MODEL, "-f", "logs", "-orga", "me", "--no-render"], uploaded


def test_uploads_masked_alone(push_of_a_secret, monkeypatch: pytest.MonkeyPatch):
    arguments, uploaded = push_of_a_secret
    with patches.hub_metadata():
        the_zoo_alone("push_to_hub", arguments, monkeypatch)
    assert all("swordfish" in uploaded[name] for name in ("args.yml", "config.yml", "README.md")), "delete uploads_masked"


def test_uploads_masked(push_of_a_secret):
    arguments, uploaded = push_of_a_secret
    assert cli.main(["push", *arguments]) == 0
    assert set(uploaded) == {"args.yml", "config.yml", "env_kwargs.yml", "README.md"}
    assert not [name for name, text in uploaded.items() if "swordfish" in text]
    args = yaml.safe_load(uploaded["args.yml"])
    assert (args["storage"], args["env"], args["env_kwargs"]) == ("postgresql://***@host/db", "CartPole-v1", None)
    assert yaml.safe_load(uploaded["config.yml"])["env_kwargs_of_another"] == {"api_key": "***"}
    assert "swordfish" in Path("logs/reinforce/CartPole-v1_2/CartPole-v1/args.yml").read_text()
