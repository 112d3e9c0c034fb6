"""The HTML report, and runs as text, from W&B's, TensorBoard's and CSV files, whole and damaged."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import CSVOutputFormat, TensorBoardOutputFormat

from sb3_reinforce.tracking.curves import CLOCK, curves_of
from sb3_reinforce.tracking.metrics import all_metrics
from sb3_reinforce.tracking.report import make_page, problems
from sb3_reinforce.tracking.runs import LoggedRun, NoRunsError, evaluations_of, find_runs, read_records
from sb3_reinforce.tracking.wandb_internals import end_service
from sb3_reinforce.zoo import cli
from tests.chromium import Browser
from tests.logged_runs import RETURN, run_of, series

EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>&\"'</textarea>{{data}}"


def write_csv(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    writer = CSVOutputFormat(str(folder / "progress.csv"))
    for row in rows:
        writer.write(row, dict.fromkeys(row, ()))
    writer.close()
    return folder


def write_wandb(folder: Path, rows: list[dict[str, Any]], **arguments: Any) -> Path:
    """The folder of an offline run with the given rows."""
    wandb = pytest.importorskip("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=True, console="off", disable_git=True)
    run = wandb.init(mode="offline", dir=folder, settings=settings, **arguments)
    for row in rows:
        run.log(row)
    run.finish()
    path = Path(run.dir).parent
    end_service(patience=30)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


# --- reading ---


def test_a_wandb_run_is_read_back(tmp_path: Path):
    wandb = pytest.importorskip("wandb")
    histogram = wandb.Histogram(np_histogram=([1, 2, 1], [0.0, 1.0, 2.0, 3.0]))
    rows = [
        {"global_step": 10, RETURN: 1.5, "h": histogram, "nan": float("nan")},
        {"global_step": 20, RETURN: 2.5},
        {"global_step": 20, RETURN: 3.5},  # logged again after a checkpoint: the last one counts
        {RETURN: 9.0},  # of no step
    ]
    path = write_wandb(tmp_path, rows, config={"gamma": 0.9}, name="mine", group="study")
    for below in (tmp_path, path, next(path.glob("*.wandb"))):
        (run,) = find_runs([below])
        assert (run.name, run.group, run.state, run.source) == ("mine", "study", "finished", "wandb")
        assert run.config == {"gamma": 0.9}
        assert [part.tolist() for part in run.metrics[RETURN]] == [[10, 20], [1.5, 3.5]]
        # of 4 values, evenly within bins: 10 % at 0.4 of the first, half in the middle, 90 % at 0.6 of the last
        np.testing.assert_allclose(run.metrics["h"][1], [[0.4, 1.5, 2.6]])
        assert run.problems == []


@pytest.mark.parametrize("keep", [0, 3, 7, 100, 0.5, 0.99])
def test_a_torn_run_file_is_read_as_far_as_it_goes(keep: float, tmp_path: Path):
    path = write_wandb(tmp_path, [{"global_step": step, RETURN: 1.0, "b": 2.0} for step in range(200)])
    file = next(path.glob("*.wandb"))
    whole = file.read_bytes()
    length = int(len(whole) * keep) if isinstance(keep, float) else keep
    file.write_bytes(whole[:length])
    if isinstance(keep, float) and read_records(file)[1] is None:  # cut between two records
        file.write_bytes(whole[: length - 1])
    (run,) = find_runs([tmp_path])
    assert run.state != "finished"
    assert any(str(file) in problem for problem in run.problems) or keep == 7
    if isinstance(keep, float):
        assert 50 < len(run.metrics[RETURN][0]) < 201
        assert problems([run])
    else:
        assert run.problems[-1] == f"{path}: no metric was logged"


def test_a_metric_that_is_now_a_number_and_now_a_histogram(tmp_path: Path):
    """An array of one number is logged as a number: the kind that comes more often is kept, in a panel the first run's."""
    wandb = pytest.importorskip("wandb")
    histogram = wandb.Histogram(np_histogram=([1, 2, 1], [0.0, 1.0, 2.0, 3.0]))
    one, two = {"global_step": 1, "x": 5.0}, {"global_step": 2, "x": histogram}
    write_wandb(tmp_path / "a", [one, two, {"global_step": 3, "x": 7.0}])
    write_wandb(tmp_path / "b", [one, two, {"global_step": 3, "x": histogram}])
    numbers, histograms = find_runs([tmp_path / "a", tmp_path / "b"])
    np.testing.assert_array_equal(numbers.metrics["x"][1], [5.0, 7.0])
    assert histograms.metrics["x"][1].shape == (2, 3)
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    assert cli.main(["inspect-run", str(tmp_path)]) == 0


def test_runs_of_one_second_are_in_the_order_of_their_starts(tmp_path: Path):
    """The rest of their folders' names is a random id."""
    for run_id in ("b", "a"):
        path = write_wandb(tmp_path, [{"global_step": 1, RETURN: 1.0}], id=run_id)
        path.rename(path.with_name(f"offline-run-20200101_000000-{run_id}"))
    assert [run.path.name[-1] for run in find_runs([tmp_path])] == ["b", "a"]


def test_parts_of_a_run_are_in_the_order_of_their_times(tmp_path: Path):
    """Begun online and resumed offline: `offline-run-` would come before `run-`."""
    first = write_wandb(tmp_path, [{"global_step": 1, RETURN: 1.0}], id="one")
    first = first.rename(first.with_name("run-20200101_000000-one"))
    second = write_wandb(tmp_path, [{"global_step": 1, RETURN: 2.0}], id="one")
    (run,) = find_runs([tmp_path])
    assert run.path == second
    np.testing.assert_array_equal(run.metrics[RETURN][1], [2.0])


def test_a_damaged_run_file(tmp_path: Path):
    path = write_wandb(tmp_path, [{"global_step": step, RETURN: 1.0} for step in range(500)])
    file = next(path.glob("*.wandb"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    file.write_bytes(data)
    (run,) = find_runs([tmp_path])
    assert re.search(r"damaged at byte \d+, read \d+ records before it", run.problems[0])
    assert 50 < len(run.metrics[RETURN][0]) < 500


def test_tensorboard_and_csv(tmp_path: Path):
    pytest.importorskip("tensorboard")
    for number in (1, 2):
        writer = TensorBoardOutputFormat(str(tmp_path / "tb" / f"REINFORCE_{number}"))
        for step in (100, 200):
            writer.write({RETURN: float(step * number)}, {RETURN: ()}, step)
        writer.close()
    write_csv(tmp_path / "csv" / "a_1", [{"time/total_timesteps": 5, RETURN: 1.0}, {"time/total_timesteps": 9, "b": 2.0}])
    runs = find_runs([tmp_path / "tb", tmp_path / "csv"])
    assert [(run.name, run.source, run.group) for run in runs] == [
        ("REINFORCE_1", "tensorboard", "REINFORCE"),
        ("REINFORCE_2", "tensorboard", "REINFORCE"),
        ("a_1", "csv", "a"),
    ]
    assert [part.tolist() for part in runs[1].metrics[RETURN]] == [[100, 200], [200.0, 400.0]]
    assert [part.tolist() for part in runs[2].metrics[RETURN]] == [[5], [1.0]]
    assert [part.tolist() for part in runs[2].metrics["b"]] == [[9], [2.0]]
    assert [(label, len(members)) for label, members in curves_of(runs).items()] == [("REINFORCE", 2), ("a", 1)]


def test_evaluations_of_a_run(tmp_path: Path):
    assert evaluations_of(tmp_path) is None
    evaluations = {"timesteps": [10, 20], "results": [[1.0, 3.0], [4.0, 6.0]], "ep_lengths": [[7, 9], [9, 9]]}
    np.savez(tmp_path / "evaluations.npz", **evaluations)
    np.testing.assert_array_equal(evaluations_of(tmp_path), [[10, 20], [2.0, 5.0], [8.0, 9.0]])


def test_torn_logs_of_other_kinds(tmp_path: Path):
    (tmp_path / "progress.csv").write_bytes(b"")
    (run,) = find_runs([tmp_path])
    assert "progress.csv: cannot be read (EmptyDataError" in run.problems[0]
    (tmp_path / "progress.csv").write_text("time/total_timesteps,a\n1,2\n3,4,5,6\n7,ei\n8,9")
    (run,) = find_runs([tmp_path])
    assert [part.tolist() for part in run.metrics["a"]] == [[1, 8], [2.0, 9.0]]
    (tmp_path / "progress.csv").write_text("a,b\n1,2\n")
    assert "no metric with a column global_step or time/total_timesteps" in find_runs([tmp_path])[0].problems[0]

    pytest.importorskip("tensorboard")
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "events.out.tfevents.1.x").write_bytes(b"no event file" * 10)
    (run,) = find_runs([tmp_path / "tb"])
    assert run.problems


@pytest.mark.parametrize("verb", ["report", "inspect-run"])
def test_folders_without_runs_are_one_line(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main([verb, "."]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sb3-reinforce: error: no run below .: looked for *.wandb")
    assert error.count("\n") == 1
    assert cli.main([verb, "nowhere"]) == 1
    assert capsys.readouterr().err == "sb3-reinforce: error: no such file or folder: nowhere\n"
    assert cli.main([verb]) == 1
    assert capsys.readouterr().err.startswith("sb3-reinforce: error: there is no folder logs or wandb here")
    with pytest.raises(NoRunsError):
        find_runs([tmp_path])


def test_no_common_metric_is_one_line():
    runs = [run_of(0, {"a": series((0, 0))}), run_of(1, {"b": series((0, 0))})]
    assert problems(runs) == ["no metric is common to all 2 runs: each panel shows those that have its metric"]
    page = make_page(runs, "t")
    assert "no metric is common to all 2 runs" in page
    assert shown_panels(page) == ["a", "b"]  # unknown ones have a section of their own


# --- the page ---


class Page(HTMLParser):
    """Tags, and texts by tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found.group(1))


def shown_panels(page: str) -> list[str]:
    data = page_data(page)
    return [panel["key"] for part in [{"panels": data["hero"]}, *data["sections"]] for panel in part["panels"]]


def test_what_matters_comes_first_and_constants_are_folded_away():
    flat, up = series((0, 3e-3), (10, 3e-3)), series((0, 1), (10, 5), (20, 4))
    metrics = {"train/learning_rate": flat, "eval/mean_reward": up, "gradient/variance": up, RETURN: up, "train/std": up}
    data = page_data(make_page([run_of(0, metrics)], "t"))
    assert [panel["key"] for panel in data["hero"]] == [RETURN, "gradient/variance"]
    (evaluations,) = data["hero"][0]["evaluations"]
    assert (evaluations["mean"], evaluations["best"]) == ([1, 5, 4], [10, 5])
    (policy,) = data["sections"]
    assert [panel["key"] for panel in policy["panels"]] == ["train/std"]
    assert policy["constant"] == [["Learning rate", "train/learning_rate", 0.003]]
    # of one step it cannot be told
    assert "train/learning_rate" in shown_panels(make_page([run_of(0, {"train/learning_rate": series((0, 1))})], "t"))


def evil_runs() -> list[LoggedRun]:
    runs = [run_of(seed, {RETURN: series((0, seed), (10, 5)), EVIL: series((0, 1))}, env_id=EVIL) for seed in range(2)]
    for run in runs:
        run.name, run.state, run.group = EVIL, EVIL, EVIL
        run.config[EVIL] = EVIL
        run.summary[EVIL] = EVIL
        run.problems.append(EVIL)
    return runs


def test_markup_in_names_and_settings_is_text():
    page = make_page(evil_runs(), EVIL)
    parsed = Page(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert "img" not in [tag for tag, _ in parsed.tags]
    assert not [attributes for _, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]
    assert [text for text in parsed.texts if EVIL in text]
    assert page_data(page)["curves"] == [f"REINFORCE {EVIL}"]


def test_the_page_names_no_address():
    page = make_page([run_of(0, {RETURN: series((0, 0), (1, 1))})], "t")
    assert not re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "default-src 'none'" in page
    assert len(page) < 200_000


def test_the_report_of_csv_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_csv(tmp_path / "logs" / "a_1", [{"time/total_timesteps": 5, RETURN: 1.0, "time/fps": 2.0}])
    out = tmp_path / "new" / "r.html"
    assert cli.main(["report", str(tmp_path / "logs"), "--out", str(out), "--title", "Mine"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1 run, ")
    page = out.read_text()
    assert "<title>Mine</title>" in page
    assert shown_panels(page) == [RETURN, "time/fps", "time/total_timesteps"]
    assert cli.main(["report", str(tmp_path / "logs"), "--out", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report", "--text"], ["inspect-run"]])
def test_a_run_as_text_and_as_json(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rows = [{"global_step": 10, RETURN: 1.5}, {"global_step": 20, RETURN: 2.25}]
    write_wandb(tmp_path, rows, config={"gamma": 0.9, "bad": "\x1b[31mred"}, name="mine")
    assert cli.main([*command, str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mine (wandb, finished)" in printed
    assert re.search(r"gamma +0.9\n", printed)
    assert re.search(r"rollout/ep_return_mean +2.25  at step 20\n", printed)
    assert "\x1b" not in printed
    assert cli.main([command[0], "--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["gamma"] == 0.9
    assert found["last"][RETURN] == {"step": 20.0, "value": 2.25}
    assert not Path("logs").exists()


def test_without_arguments_the_report_is_of_all_runs_here(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_wandb(Path("wandb"), [{"global_step": 10, RETURN: 1.5}], name="mine")
    assert cli.main(["report"]) == 0
    assert capsys.readouterr().out.startswith("logs/report.html: 1 run, ")


# --- in a browser ---


@pytest.mark.slow
def test_the_report_in_chromium(tmp_path: Path):
    """Every panel has a drawing in its colour, nothing is said on the console, no request leaves the file."""
    keys = [key for key, metric in all_metrics().items() if metric.kind != "video"]
    rng = np.random.default_rng(0)
    steps = np.arange(0, 5000, 100.0)
    runs = []
    for offset, baseline in enumerate(("value", "none")):
        for seed in range(3):
            metrics: dict[str, Any] = {key: (steps, 10 + 10 * offset + rng.normal(size=50)) for key in keys}
            metrics[CLOCK] = (steps, steps / (100 + 100 * offset))
            runs.append(run_of(seed, metrics, baseline=baseline))
    page = tmp_path / "report.html"
    page.write_text(make_page(runs, "Mine"))
    evil = tmp_path / "evil.html"
    evil.write_text(make_page(evil_runs(), EVIL))
    with Browser(tmp_path / "profile") as browser:
        browser.resize(1280, 900)
        for opened in (page, evil):
            browser.events.clear()
            browser.open(opened.as_uri())
            requested = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
            assert requested == [opened.as_uri()]
            complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            assert not [event for event in browser.events if event["method"] in complaints]
        assert browser.evaluate("document.title") == EVIL
        assert browser.evaluate("document.querySelectorAll('img').length") == 0

        browser.open(page.as_uri())
        titles = browser.evaluate("[...document.querySelectorAll('.panel code')].map(e => e.textContent)")
        first = [RETURN, "gradient/variance"]
        assert titles == [*first, *(key for key in keys if key not in (*first, "eval/mean_reward"))]
        # of each panel: how many pixels have the first, and how many the second curve's colour
        drawn = browser.evaluate("""[...document.querySelectorAll('.panel canvas')].map(canvas => {
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            const count = [0, 0];
            for (let i = 0; i < pixels.length; i += 4)
                [[0x00, 0x72, 0xb2], [0xd5, 0x5e, 0x00]].forEach((c, n) => {
                    count[n] += pixels[i + 3] == 255 && c.every((v, k) => Math.abs(pixels[i + k] - v) < 8);
                });
            return [canvas.width, ...count];
        })""")
        assert len(drawn) == len(titles)
        for width, first, second in drawn:
            assert width > 250
            assert first > 100
            assert second > 100
        # a curve can be hidden, and shown again
        count = "[...document.querySelectorAll('#controls button')].map(b => b.getAttribute('aria-pressed')).join()"
        browser.evaluate("document.querySelector('#controls button').click()")
        assert browser.evaluate(count) == "false,true"
        browser.evaluate("document.querySelector('#controls button').click()")
        assert browser.evaluate(count) == "true,true"
        # a search leaves what fits it
        searched = """text => { const [runs, metrics] = document.querySelectorAll('input[type=search]');
            runs.value = text[0]; runs.oninput(); metrics.value = text[1]; metrics.oninput();
            const shown = [...document.querySelectorAll('#runs tbody tr, #controls button, .panel')].filter(e => !e.hidden);
            return shown.length; }"""
        assert browser.evaluate(f"({searched})(['value', 'approx_kl'])") == 3 + 1 + 1
        assert browser.evaluate(f"({searched})(['', ''])") == 6 + 2 + len(titles)
        # seconds and a log axis: x as far as the clock goes, no panel is empty
        browser.evaluate("""(() => {
            const x = document.querySelector('select'), log = document.querySelector('input[type=checkbox]');
            x.value = 'seconds'; x.onchange(); log.checked = true; log.onchange(); })()""")
        assert browser.evaluate("plots.every(({ plot }) => plot.data[0].length > 10 && plot.scales.y.min > 0)")
        # the arrow keys move the cursor of the panel that has the focus
        read = "document.querySelector('.panel .value').textContent"
        browser.evaluate("document.querySelector('.panel').onkeydown(new KeyboardEvent('keydown', { key: 'ArrowRight' }))")
        assert " at " in browser.evaluate(read)
        # and nothing sticks out to the side, on a phone neither
        for width in (1280, 400):
            browser.resize(width, 900)
            deadline = time.monotonic() + 30  # the plots follow when the browser comes to it
            while browser.evaluate("document.documentElement.scrollWidth") > width and time.monotonic() < deadline:
                time.sleep(0.1)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert len(browser.screenshot()) > 20_000


def test_without_chromium_the_test_fails_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from tests import chromium

    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(chromium, "CHECKOUT", tmp_path)
    with pytest.raises(AssertionError, match=r"no Chromium: run \.ci/chromium"):
        chromium.find_chromium()
