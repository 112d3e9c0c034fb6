"""Checkpoint files that are torn, damaged, malicious or of another run: a clear error, or the one before it."""

import base64
import hashlib
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running import ranks
from sb3_reinforce.running.checkpoint_file import CheckpointError, checkpoint_bytes, checkpoints_in, read_parts
from sb3_reinforce.running.training_state import equal, plain
from tests.runs import make_env, play


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    play(folder, evaluate=False)
    return folder / "checkpoints"


def test_plain_values_survive(run_folder, tmp_path):
    value = {
        "float": 0.1, "nan": float("nan"), "inf": -float("inf"), "big": 2**100, "none": None, "list": [1, (2, "x"), True],
        "array": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.float32(0.3), "tensor": th.tensor([1, 2]), 3: {},
        "empty": np.array([]), "texts": np.array(["a", "bc"]),
    }  # fmt: skip
    model = REINFORCE("MlpPolicy", make_env(), device="cpu")
    path = tmp_path / "checkpoint_0_steps.zip"
    state = read_parts(checkpoints_in(run_folder)[0])[2]
    path.write_bytes(checkpoint_bytes(model, state | {"callbacks": {"Own0": {"value": plain(value)}}}))
    back = read_parts(path)[2]["callbacks"]["Own0"]["value"]
    assert equal(back, value)
    assert type(back["scalar"]) is np.float32
    assert not equal(back, {**value, "float": 0.2})
    with pytest.raises(TypeError, match="object"):
        plain({"x": [object()]})


def copy_of(run_folder: Path, folder: Path) -> list[Path]:
    for path in checkpoints_in(run_folder):
        (folder / path.name).write_bytes(path.read_bytes())
    return checkpoints_in(folder)


def changed_manifest(path: Path, **values: Any) -> None:
    """Rewrite a checkpoint with another manifest."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["manifest.json"] = json.dumps({**json.loads(parts["manifest.json"]), **values}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_torn_anywhere(run_folder, tmp_path):
    """Cut after every byte of the first part's header and of the directory at the end, and at random places between."""
    path = copy_of(run_folder, tmp_path)[0]
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x05\x06")  # where the zip file's last record begins
    cuts = [*range(200), *range(directory - 200, len(whole)), *random.Random(0).sample(range(len(whole)), 60)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(
            CheckpointError, match=f"{path.name} is no checkpoint to resume from: it (is torn|has no manifest)"
        ):
            read_parts(path)


def test_damaged_anywhere(run_folder, tmp_path):
    """One flipped bit gives an error or, where the zip file does not use the byte, the same contents."""
    path = copy_of(run_folder, tmp_path)[0]
    whole = path.read_bytes()
    _, manifest, state = read_parts(path)
    rng, noticed = random.Random(0), 0
    for position in rng.sample(range(len(whole)), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            _, manifest_now, state_now = read_parts(path)
        except CheckpointError:
            noticed += 1
        else:
            assert manifest_now == manifest
            assert equal(state_now, state)
    assert noticed > 280


def test_the_newest_good_one_is_taken(run_folder, tmp_path):
    newest, second, _ = copy_of(run_folder, tmp_path)
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(
        UserWarning, match=f"{newest.name} is no checkpoint to resume from: it is torn.*resumes from .*{second.name}"
    ):
        model = REINFORCE.resume(tmp_path, make_env())
    assert model.num_timesteps == int(second.name.split("_")[1])
    # training renames the damaged one
    model.learn(1, reset_num_timesteps=False, callback=TrainingCheckpoint(tmp_path))
    assert newest.with_name(f"{newest.name}.old").exists()
    assert checkpoints_in(tmp_path)[0].name == f"checkpoint_{model.num_timesteps}_steps.zip"

    second.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{second.name} is no checkpoint"):
        REINFORCE.resume(second, make_env())


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(format=1), r"it has the format 1, this version reads 2"),
        (dict(sb3_reinforce="9.9"), r"is of another version: it was saved by sb3-reinforce 9\.9, this is"),
        (dict(algorithm="a.B"), r"is of another algorithm: it was saved by a\.B, not by sb3_reinforce\.reinforce\.REINFORCE"),
        (dict(sha256={}), "its parts are not those of its manifest"),
    ],
)
def test_another_version_or_algorithm(run_folder, tmp_path, values, words):
    paths = copy_of(run_folder, tmp_path)
    changed_manifest(paths[0], **values)
    with pytest.raises(CheckpointError, match=f"{paths[0].name}.*{words}"):
        REINFORCE.resume(paths[0], make_env())
    with pytest.warns(UserWarning, match=words):  # and resumes from the one before it
        REINFORCE.resume(tmp_path, make_env())


def test_a_run_of_one_rank_on_two(run_folder, monkeypatch):
    """Not resumed, from an older checkpoint either; where that is allowed, rank 1 has rank 0's settings."""
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    newest = checkpoints_in(run_folder)[0]
    with pytest.raises(
        CheckpointError, match=f"^{newest} is of a run on 1 rank, got 2: start as many as then, or resume with"
    ):
        REINFORCE.resume(run_folder, make_env())
    assert REINFORCE.resume(run_folder, make_env(), other_ranks=True).n_steps == 16


def test_each_rank_resumes_on_its_own_gpu(run_folder, tmp_path, monkeypatch):
    """The file names the GPU of rank 0."""
    path = copy_of(run_folder, tmp_path)[0]
    changed_manifest(path, device="cuda:0")
    asked: list[Any] = []
    monkeypatch.setattr(ranks, "start", lambda device: asked.append(device) or "cpu")
    REINFORCE.resume(path, make_env())
    monkeypatch.setattr(ranks, "launched", lambda: True)
    REINFORCE.resume(path, make_env())
    REINFORCE.resume(path, make_env(), device="cuda:1")
    assert [device for device in asked if device != "cpu"] == ["cuda:0", "cuda", "cuda:1"]


@pytest.mark.parametrize(
    "env, words",
    [
        (dict(actions="box"), r"observation_space was Box\(0.0, 1.0, \(3,\), float32\).*, got Box\(-inf, inf"),
        (dict(normalize=False), r"wrappers was \['VecNormalize'\], got \[\]"),
    ],
)
def test_another_environment(run_folder, env, words):
    with pytest.raises(
        CheckpointError, match=f"none of the checkpoints .* can be used: .* is of another environment: {words}"
    ):
        REINFORCE.resume(run_folder, make_env(**env))


def test_other_settings_of_vec_normalize(run_folder):
    env = make_env()
    env.clip_reward = 5.0
    with pytest.raises(CheckpointError, match=r"VecNormalize was .*'clip_reward': 10.0.*, got .*'clip_reward': 5.0"):
        REINFORCE.resume(run_folder, env)


def test_a_model_file_is_no_checkpoint(tmp_path):
    A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "checkpoint_1_steps.zip")
    with pytest.raises(CheckpointError, match=r"has no manifest\.json: torn, or a model file, which load\(\) reads"):
        REINFORCE.resume(tmp_path, "CartPole-v1")


@pytest.mark.parametrize("name", ["nothing", "."])
def test_nothing_there(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"path must be a folder with checkpoints.*which (does not exist|has none)"):
        REINFORCE.resume(tmp_path / name, make_env())


class Poison:
    ran = False

    def __reduce__(self):
        return (setattr, (Poison, "ran", True))


def test_nothing_is_unpickled_for_plain_arguments(run_folder, tmp_path, monkeypatch):
    """Pickles that were put into the file do not run, even with matching checksums."""
    path = copy_of(run_folder, tmp_path)[0]
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data, manifest = json.loads(parts["data"]), json.loads(parts["manifest.json"])
    pickled = [name for name, value in data.items() if isinstance(value, dict) and ":serialized:" in value]
    assert sorted(pickled) == ["action_space", "observation_space", "policy_class", "rollout_buffer_class"]
    for name in pickled:
        data[name][":serialized:"] = base64.b64encode(cloudpickle.dumps(Poison())).decode()
    parts["data"] = json.dumps(data).encode()
    manifest["sha256"]["data"] = hashlib.sha256(parts["data"]).hexdigest()
    parts["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    monkeypatch.setattr(cloudpickle, "loads", lambda *_: pytest.fail("unpickled"))
    REINFORCE.resume(path, make_env())
    assert not Poison.ran
