"""Log files of resumed runs."""

import json

import pytest

from sb3_reinforce.running.logs import appending_logger


def test_rows_are_appended_and_a_torn_one_removed(tmp_path):
    logger = appending_logger(tmp_path, ["csv", "json", "log"])
    for step, values in enumerate([{"a": 1}, {"a": 2, "b": 3}]):
        for key, value in values.items():
            logger.record(key, value)
        logger.dump(step)
    logger.close()
    for name in ("progress.csv", "progress.json"):
        with (tmp_path / name).open("a") as file:
            file.write("4,")  # a crash in the middle of a row
    logger = appending_logger(tmp_path, ["csv", "json", "log"])
    logger.record("c", 5)
    logger.dump(2)
    logger.close()
    assert (tmp_path / "progress.csv").read_text() == "a,b,c\n1,,\n2,3,\n,,5\n"
    assert [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()] == [
        {"a": 1},
        {"a": 2, "b": 3},
        {"c": 5},
    ]
    assert (tmp_path / "log.txt").read_text().count("| a") == 2


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="Unknown format specified: xml"):
        appending_logger(tmp_path, ["xml"])
