"""What is unpickled of a file that nobody has vouched for: what ordinary models hold, and nothing that runs code."""

import base64
import hashlib
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.baselines import MovingAverageBaseline
from sb3_reinforce.running.trust import UntrustedError, unpickle
from tests.runs import make_env


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def used(space: spaces.Space) -> spaces.Space:
    """With a random generator, as training leaves it."""
    space.seed(3)
    space.sample()
    return space


ORDINARY = [
    used(spaces.Box(-2, np.array([2, np.inf], np.float32))),
    used(spaces.Dict({"a": spaces.Discrete(3, start=1), "b": spaces.Tuple([spaces.MultiBinary(2), spaces.Text(3)])})),
    used(spaces.MultiDiscrete([2, 3])),
    {"activation_fn": th.nn.Tanh, "optimizer_class": th.optim.AdamW, "features_extractor_class": NatureCNN, "net_arch": [8]},
    ActorCriticPolicy,
    deque([{"r": 1.5, "l": 3, "t": np.float64(2)}], maxlen=100),
    OrderedDict(a=(1, None, True, -(2**70)), b={1, 2}, c=frozenset([3])),
    [np.arange(6).reshape(2, 3)[:, ::2], np.asfortranarray(np.eye(2)), np.array(["a", "bc"]), np.zeros(0), np.array(2.0), "x"],
]


@pytest.mark.parametrize("value", ORDINARY, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("protocol", [4, 5])
def test_ordinary_objects_are_what_pickle_makes_of_them(value: Any, protocol: int):
    data = pickle.dumps(value, protocol)
    ours, theirs = unpickle(data), pickle.loads(data)
    assert type(ours) is type(theirs)
    np.testing.assert_equal(ours, theirs)
    if isinstance(value, spaces.Space):
        np.testing.assert_equal(ours.sample(), theirs.sample())


def test_objects_with_state():
    env = VecNormalize(make_env().venv)
    env.reset()
    ours, theirs = unpickle(pickle.dumps(env)), pickle.loads(pickle.dumps(env))
    assert vars(ours).keys() == vars(theirs).keys()
    assert ours.obs_rms.mean.tolist() == theirs.obs_rms.mean.tolist()
    assert unpickle(pickle.dumps(LinearSchedule(1.0, 0.0, 0.5)))(0.75) == 0.5  # half of the way down
    assert vars(unpickle(pickle.dumps(MovingAverageBaseline()))) == vars(MovingAverageBaseline())


def called(name: str, *arguments: Any) -> bytes:
    """A pickle that calls a function by its full name."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + pickle.dumps(arguments, 4)[:-1] + b"R."


DTYPE = pickle.dumps(np.dtype("f4"), 2)
FORGED = {
    "a call": (called("os.mkdir", "x"), "names os.mkdir"),
    "an evaluation": (called("builtins.eval", "1"), "names builtins.eval"),
    "a name alone": (b"cos\nsystem\n.", "names os.system"),
    "an attribute of a listed class": (
        b"\x8c\x24stable_baselines3.common.policies\x8c\x1aActorCriticPolicy.__init__\x93.".replace(b"\x8c\x24", b"\x8c\x21"),
        "names stable_baselines3.common.policies.ActorCriticPolicy.__init__",
    ),
    "a listed class, called": (called("stable_baselines3.common.policies.ActorCriticPolicy"), "holds ABCMeta|holds type"),
    "an instance's constructor": (called("gymnasium.spaces.box.Box", 0, 1), "holds ABCMeta|holds type"),
    "arguments of __new__": (b"cgymnasium.spaces.box\nBox\nK\x01\x85\x81.", "makes an object of"),
    "state of a class": (b"cgymnasium.spaces.box\nBox\n}b.", "sets the state of"),
    "slots of an instance": (b"cgymnasium.spaces.box\nBox\n)\x81N}\x86b.", "holds tuple where dict belongs"),
    "items of an instance": (b"cgymnasium.spaces.box\nBox\n)\x81(K\x01e.", "holds Box where list belongs"),
    "an array of objects": (called("numpy.dtype", "O8"), "holds an array of 'O8'"),
    "a structured array": (called("numpy.dtype", "V8"), "holds an array of 'V8'"),
    "a forged type": (
        DTYPE.replace(DTYPE[DTYPE.rindex(b"(") :], pickle.dumps((3, "|", None, ("x",), {}, 8, 1, 63), 2)[2:-1] + b"b."),
        "holds an array of the type",
    ),
    "a short array": (
        pickle.dumps(np.arange(4, dtype=np.uint8)[::2], 4).replace(b"K\x02\x85", b"K\x7f\x85"),
        "holds an array of the shape",
    ),
    "a filled array": (
        pickle.dumps(np.arange(4, dtype=np.uint8)[::2], 4)[:-1] + pickle.dumps((1, (1,), None, False, b"x"), 4)[:-1] + b"b.",
        "sets the state of ndarray",
    ),
    "huge, of nothing": (
        called("numpy._core.multiarray._reconstruct")[:-1]
        + b"(K\x01J\xff\xff\xff\x7f\x85"
        + called("numpy.dtype", "U0")[:-1]
        + b"\x89C\x00tb.",
        "holds an array of the shape",
    ),
    "another generator": (pickle.dumps(np.random.Generator(np.random.MT19937(0))), "names numpy.random._mt19937.MT19937"),
    "opcode INST": (b"(ios\nsystem\n.", "uses pickle's INST"),
    "opcode OBJ": (b"(cgymnasium.spaces.box\nBox\no.", "uses pickle's OBJ"),
    "opcode NEWOBJ_EX": (b"cgymnasium.spaces.box\nBox\n)}\x92.", "uses pickle's NEWOBJ_EX"),
    "opcode EXT1": (b"\x82\x01.", "uses pickle's EXT1"),
    "opcode PERSID": (b"Px\n.", "uses pickle's PERSID"),
    "a function": (cloudpickle.dumps(lambda progress: progress), "names cloudpickle"),
    "an empty file": (b"", "is no"),
    "no pickle": (b"what is this?", "is no"),
}


@pytest.mark.parametrize("data, words", FORGED.values(), ids=FORGED)
def test_forged_pickles(data: bytes, words: str):
    with pytest.raises(UntrustedError, match=words):
        unpickle(data)


def test_damaged_pickles_give_the_named_error():
    whole = cloudpickle.dumps(ORDINARY[:3])
    rng = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.2 else whole)
        for _ in range(rng.randint(1, 3) if damaged else 0):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            unpickle(bytes(damaged))
        except UntrustedError:
            pass


# --- load and resume ---


def planted(path: Path, **entries: Any) -> Path:
    """Put pickled objects, or plain values, into a model file's attributes."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(parts["data"])
    for key, value in entries.items():
        plain = isinstance(value, (str, list, int))
        data[key] = value if plain else {":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode()}
    parts["data"] = json.dumps(data).encode()
    if "manifest.json" in parts:  # of a checkpoint, whose checksums are right again
        manifest = json.loads(parts["manifest.json"])
        manifest["sha256"]["data"] = hashlib.sha256(parts["data"]).hexdigest()
        parts["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return path


@pytest.mark.parametrize("key", ["policy_class", "learning_rate", "a_name_of_its_own"])
def test_load_runs_no_code(tmp_path: Path, key: str):
    REINFORCE("MlpPolicy", make_env(), device="cpu").save(tmp_path / "model")
    planted(tmp_path / "model.zip", **{key: Runs(tmp_path / "ran")})
    words = rf"model must hold nothing that runs code when it is read: its entry {key} names posix\.mkdir: .*trust=True"
    with pytest.raises(UntrustedError, match=words):
        REINFORCE.load(tmp_path / "model")
    REINFORCE.load(tmp_path / "model", custom_objects={key: ActorCriticPolicy if key == "policy_class" else 0.1})
    assert not (tmp_path / "ran").exists()


def test_load_makes_no_environment_that_the_file_names(tmp_path: Path):
    """``gym.make("module:Id")`` imports the module."""
    REINFORCE("MlpPolicy", make_env(), device="cpu").save(tmp_path / "model")
    planted(tmp_path / "model.zip", env="antigravity:CartPole-v1")
    with pytest.raises(UntrustedError, match="its entry env is 'antigravity:CartPole-v1'"):
        REINFORCE.load(tmp_path / "model")


def test_trusted_objects_are_loaded(tmp_path: Path):
    REINFORCE("MlpPolicy", make_env(), learning_rate=lambda progress: 0.5 * progress, device="cpu").save(tmp_path / "model")
    with pytest.raises(UntrustedError, match=r"learning_rate names cloudpickle.*trust=True, on the command line --trust"):
        REINFORCE.load(tmp_path / "model")
    assert REINFORCE.load(tmp_path / "model", trust=True).lr_schedule(0.5) == 0.25


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b"[" * 100_000, b'{"x": {":serialized:": 3}}'], ids=["list", "torn", "deep", "number"]
)
def test_a_model_file_without_attributes(tmp_path: Path, content: bytes):
    REINFORCE("MlpPolicy", make_env(), device="cpu").save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name, part in (parts | {"data": content}).items():
            archive.writestr(name, part)
    with pytest.raises(ValueError, match=r"model must be a model file made by save|model must hold nothing"):
        REINFORCE.load(tmp_path / "model")


def test_resume_needs_trust_for_objects_of_ones_own(tmp_path: Path):
    rate = {"value_learning_rate": lambda progress: 0.01 * progress}
    REINFORCE("MlpPolicy", make_env(), n_steps=16, device="cpu", **rate).learn(60, TrainingCheckpoint(tmp_path))
    with pytest.raises(UntrustedError, match=r"_steps\.zip: .*value_learning_rate names cloudpickle"):
        REINFORCE.resume(tmp_path, make_env())
    assert REINFORCE.resume(tmp_path, make_env(), trust=True).num_timesteps >= 60
