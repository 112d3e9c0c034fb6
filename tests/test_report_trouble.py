"""The report where one run has extreme values, or nothing but what Monitor and evaluations leave."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from sb3_reinforce.tracking.report import make_page
from sb3_reinforce.tracking.runs import find_runs
from sb3_reinforce.zoo import cli
from tests.test_run_report import RETURN, run_of, series, shown_panels, write_csv

DIGITS = "1" + "0" * 400  # more than a float can have


def write_records(folder: Path, config: dict[str, str], rows: list[dict[str, str]]) -> Path:
    """A ``.wandb`` file of one run, with JSON texts that W&B itself would not write."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record(), *(Record() for _ in rows)]
    records[0].run.run_id = folder.name
    for key, text in config.items():
        records[0].run.config.update.add(key=key, value_json=text)
    for record, row in zip(records[1:], rows, strict=True):
        for key, text in row.items():
            record.history.item.add(key=key, value_json=text)
    data = b":W&B\0\0\0"
    for record in records:
        body = record.SerializeToString()
        data += struct.pack("<IHB", 0, len(body), 1) + body
    folder.mkdir(parents=True)
    (folder / f"run-{folder.name}.wandb").write_bytes(data)
    return folder


def test_one_extreme_run_does_not_cost_the_report_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    deep = "[" * 5000 + "]" * 5000
    histogram = json.dumps({"_type": "histogram", "values": [1, 2], "packedBins": {"min": 0, "size": 1}})
    config = {"deep": deep, "deeper": "[" * 60 + "]" * 60, "seed": DIGITS, "half": '"\\ud800"', "gamma": "0.9"}
    rows = [
        {"global_step": "Infinity", RETURN: "1"},
        {"global_step": DIGITS, RETURN: "2"},
        {"global_step": "-1", RETURN: "3"},
        {"global_step": "10", RETURN: DIGITS, "a": f"-{DIGITS}", "b": "1e308", "deep": deep},
        {"global_step": "20", RETURN: "4", "b": "1e308", "h": histogram.replace("[1, 2]", f"[1, {DIGITS}]"), "i": histogram},
        {"global_step": "30", RETURN: histogram, "eval/mean_reward": histogram},
    ]
    write_records(tmp_path / "extreme", config, rows)
    write_records(tmp_path / "alike", {**config, "seed": "1"}, rows)  # in one curve with the first
    write_csv(tmp_path / "good", [{"time/total_timesteps": 5, RETURN: 1.0}])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/progress.csv").write_text(f"global_step,{RETURN}\ninf,1\n{DIGITS},2\n7,{DIGITS}\n8,3\n")

    found = {run.name: run for run in find_runs([tmp_path])}
    extreme = found["extreme"]
    assert extreme.config == {"deep": None, "deeper": None, "seed": int(DIGITS), "half": "\ud800", "gamma": 0.9}
    assert [part.tolist() for part in extreme.metrics[RETURN]] == [[10, 20], [np.inf, 4]]
    assert extreme.metrics["a"][1].tolist() == [-np.inf]
    assert "h" not in extreme.metrics
    # one value within 0..1, two within 1..2, evenly: a tenth is below 0.3, half below 1.25, nine tenths below 1.85
    np.testing.assert_allclose(extreme.metrics["i"][1], [[0.3, 1.25, 1.85]])
    assert [part.tolist() for part in found["good"].metrics[RETURN]] == [[5], [1]]
    assert found["bad"].metrics[RETURN][0].tolist()[-1] == 8

    for form in ([], ["--text"], ["--json"]):
        capsys.readouterr()
        assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "r.html"), *form]) == 0
    last = [json.loads(line, parse_constant=pytest.fail)["last"] for line in capsys.readouterr().out.splitlines()]
    assert [each["a"]["value"] for each in last if "a" in each] == [None, None]
    assert {RETURN, "b", "i"} <= set(shown_panels((tmp_path / "r.html").read_text()))


def test_numbers_in_one_run_and_histograms_in_another():
    """The table of runs shows the last number, or the last histogram's median; of evaluations the highest."""
    steps = np.array([1.0, 2.0])
    histograms = (steps, np.array([[1.0, 2.0, 3.0], [4.0, 5.125, 6.0]]))
    numbers = run_of(0, {RETURN: series((1, 7), (2, 8.125)), "eval/mean_reward": series((1, 9.5), (2, np.nan))}, baseline="a")
    others = run_of(1, {RETURN: histograms, "eval/mean_reward": histograms}, baseline="b")
    for runs in ([numbers, others], [others, numbers]):
        page = make_page(runs, "t")
        for value in ("8.125", "5.125", "9.5"):
            assert f'">{value}</td>' in page


def test_a_run_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever is raised while one run is read."""
    write_records(tmp_path / "a", {}, [{"global_step": "1", RETURN: "1"}])
    write_csv(tmp_path / "b", [{"time/total_timesteps": 5, RETURN: 1.0}])

    def fails(*_: object) -> None:
        raise ArithmeticError("what nobody has thought of")

    monkeypatch.setattr("sb3_reinforce.tracking.runs._add_record", fails)
    first, second = find_runs([tmp_path])
    assert "cannot be read (ArithmeticError: what nobody has thought of)" in first.problems[0]
    assert second.metrics[RETURN][1].tolist() == [1]


def write_untracked(folder: Path) -> None:
    """What a training of two environments leaves that was not tracked: see test_episodes_are_ordered_over_environments."""
    folder.mkdir(parents=True)
    (folder / "0.monitor.csv").write_text('#{"t_start": 100.0, "env_id": "x"}\nr,l,t\n1.0,5,2.0\n3.0,3,4.0\n')
    (folder / "1.monitor.csv").write_text('#{"t_start": 101.0, "env_id": "x"}\nr,l,t\n2.0,2,1.5\n')
    np.savez(folder / "evaluations.npz", timesteps=[4, 8], results=[[1, 3], [5, 6]], ep_lengths=[[7, 8], [9, 9]])


def test_untracked_runs(tmp_path: Path):
    uuid = "3f0c1a52-8f6c-4d0e-9a53-0d4f0a3b1c2d"
    for name in ("CartPole-v1_1", f"CartPole-v1_2_{uuid}", "CartPole-v1_3"):
        write_untracked(tmp_path / "logs/reinforce" / name)
    write_untracked(tmp_path / "logs/benchmark/reinforce-CartPole-v1")  # what `benchmark` has played is no training
    (tmp_path / "logs/benchmark/benchmark.md").touch()
    torn = tmp_path / "logs/reinforce/CartPole-v1_3"
    (torn / "0.monitor.csv").write_text("")
    (torn / "evaluations.npz").write_bytes(b"PK")

    first, second, third = find_runs([tmp_path / "logs"])
    assert (first.name, first.source, first.group) == ("reinforce/CartPole-v1_1", "monitor", "reinforce/CartPole-v1")
    assert second.group == first.group
    assert {key: [part.tolist() for part in pair] for key, pair in first.metrics.items()} == {
        "episode/return": [[5, 7, 10], [1, 2, 3]],
        "episode/length": [[5, 7, 10], [5, 2, 3]],
        "time/time_elapsed": [[5, 7, 10], [2, 2.5, 4]],
        "eval/mean_reward": [[4, 8], [2, 5.5]],
        "eval/mean_ep_length": [[4, 8], [7.5, 9]],
    }
    assert [problem.split(": cannot be read")[0] for problem in third.problems] == [str(torn), str(torn / "evaluations.npz")]


def test_a_tracked_run_is_shown_once(tmp_path: Path):
    write_untracked(tmp_path / "logs/reinforce/CartPole-v1_1")
    write_untracked(tmp_path / "logs/reinforce/CartPole-v1_2")
    run = {"run_folder": '"logs/reinforce/CartPole-v1_1"'}
    write_records(tmp_path / "wandb/x", run, [{"global_step": "1", RETURN: "1"}])
    found = find_runs([tmp_path / "wandb", tmp_path / "logs"])
    assert [(run.source, run.name) for run in found] == [("wandb", "x"), ("monitor", "reinforce/CartPole-v1_2")]
