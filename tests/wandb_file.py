"""A small model, and what is in the file of its W&B run, by a reader that is independent of the code under test."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.lib import wbauth

from sb3_reinforce import REINFORCE
from sb3_reinforce.tracking.wandb_internals import end_service


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory for each test, and no account. Without the teardown W&B remembers both while the process lives."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    end_service(patience=30)  # W&B's own teardown() waits without bound
    wandb.teardown()
    wbauth.unauthenticate_session(update_settings=False)


def small_model(**kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, device="cpu", **kwargs)


def run_dirs() -> list[Path]:
    """The folders of the offline runs in the working directory."""
    return sorted(Path("wandb").glob("offline-run-*"))


def records(run_dir: Path) -> list[Record]:
    """Everything in the file of a finished run. ``finish`` may return shortly before the file's end is on disk."""
    deadline = time.monotonic() + 20
    while True:
        found = parsed(run_dir)
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def parsed(run_dir: Path) -> list[Record]:
    """
    The records in the ``.wandb`` file of a run.

    It is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB (the header is part of the first) holding chunks of
    checksum, length and type; type 1 is a whole record, 2, 3 and 4 are a record's first, middle and last part.
    """
    (path,) = run_dir.glob("*.wandb")
    data = path.read_bytes()
    found: list[Record] = []
    parts, position = b"", 7
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # too little room for a chunk's head: the block's end is padding
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7
        if position + length > len(data):  # the rest is not on disk yet
            break
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The rows that were logged; nested keys joined by dots."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(run_dir)
        if record.WhichOneof("record_type") == "history"
    ]


def config(run_dir: Path) -> dict[str, Any]:
    """The settings as they stood at the end."""
    settings: dict[str, Any] = {}
    for record in records(run_dir):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            update = record.run.config if kind == "run" else record.config
            settings |= {item.key: json.loads(item.value_json) for item in update.update if item.key}
    return settings


def exit_codes(run_dir: Path) -> list[int]:
    return [record.exit.exit_code for record in records(run_dir) if record.WhichOneof("record_type") == "exit"]


def updates(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of updates alone, those of single episodes and evaluations left out."""
    return [row for row in history(run_dir) if "time/fps" in row]


def summary(run_dir: Path) -> dict[str, Any]:
    """The summary as it stood at the end; nested keys joined by dots."""
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in records(run_dir)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }


def artifacts(run_dir: Path) -> list[Any]:
    """The artifacts that the run has logged, in order, as protobuf messages: name, type, aliases, manifest, metadata."""
    found = []
    for record in records(run_dir):
        kind = record.WhichOneof("record_type")
        if kind == "artifact":
            found.append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.append(record.request.log_artifact.artifact)
    return found
