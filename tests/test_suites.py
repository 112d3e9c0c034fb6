"""What tables and pictures make of rows: made-up CSV files against values worked out by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The scripts import each other by name, as they lie in one folder."""
    for needed in ("rl_zoo3", "matplotlib", "rliable"):
        pytest.importorskip(needed)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A suite of three tasks, one of them a variant, without rows."""
    import suite

    monkeypatch.setattr(suite, "N_RESAMPLES", 20)
    return suite.Suite(
        name="made_up",
        steps={"CartPole-v1": 1000, "Acrobot-v1": 1000, "CartPole-v1 (other reward)": 1000},
        n_eval_episodes=1,
        n_final_episodes=1,
        published={"Other": {"CartPole-v1": 25.0, "Acrobot-v1": -90.0}},
        compares="final",
        variants={"CartPole-v1 (other reward)": {"sutton_barto_reward": True}},
        results=tmp_path,
        pictures=tmp_path,
    )


def add(tasks, task, agent, finals, first_seed=0, seconds=1.0, settings=None, curves=()):
    """Rows of runs with these final scores, one seed each, and (step, mean) of each seed's evaluations."""
    import suite

    text = settings or suite.described(suite.AGENTS[agent].settings(tasks, task))
    for seed, final in enumerate(finals, first_seed):
        key = {"env": task, "agent": agent, "seed": seed}
        row = {**key, "final": final, "final_std": 0, "steps": 1000 + seed, "seconds": seconds, "settings": text}
        suite.save_rows(tasks.path("curves.csv"), *[{**key, "step": step, "mean": mean} for step, mean in curves])
        suite.save_rows(tasks.path("runs.csv"), row)


def test_rows_of_other_settings_are_left_out(tasks):
    import suite

    add(tasks, "CartPole-v1", "REINFORCE", [1.0, 2.0], settings="n_envs=99")
    add(tasks, "CartPole-v1", "REINFORCE", [10.0, 20.0, 60.0], first_seed=9)
    add(tasks, "CartPole-v1", "PPO", [5.0, 7.0])
    runs = suite.measured(tasks)
    assert runs["CartPole-v1", "REINFORCE"].seeds == [9, 10, 11]
    assert runs["CartPole-v1", "REINFORCE"].final.tolist() == [10.0, 20.0, 60.0]
    assert runs["CartPole-v1", "PPO"].seeds == [0, 1]
    assert suite.left_out(tasks) == "left out, as measured with other settings: CartPole-v1, REINFORCE, seeds 0-1"
    with pytest.raises(ValueError, match=r"seeds must be new .* seed 1: .* choose others by --first-seed"):
        suite.check_settings(tasks, [("CartPole-v1", "REINFORCE", 1)])
    suite.check_settings(tasks, [("CartPole-v1", "REINFORCE", 2), ("Acrobot-v1", "REINFORCE", 1)])


def test_first_seeds(tasks):
    """That of the rows of now, else above those of other settings, else 0."""
    import suite

    add(tasks, "CartPole-v1", "REINFORCE", [1.0, 2.0], settings="n_envs=99")
    add(tasks, "CartPole-v1", "REINFORCE", [10.0, 20.0], first_seed=9)
    add(tasks, "CartPole-v1", "PPO", [5.0], first_seed=2)
    add(tasks, "Acrobot-v1", "REINFORCE", [1.0, 2.0], first_seed=3, settings="n_envs=99")
    assert list(suite.first_seeds(tasks, list(tasks.steps), ["REINFORCE", "PPO"]).values()) == [9, 2, 5, 0, 0, 0]


def test_learning_leaves_out_rows_of_other_settings(tmp_path, monkeypatch, capsys):
    import learning

    monkeypatch.setattr(learning, "RESULTS", tmp_path / "learning.csv")
    row = {"env": "CartPole-v1", "std": 0, "best_mean": 500, "steps": 99_000, "seconds": 9, "goal": 475}
    now = learning.described(learning.settings_of_now("CartPole-v1"))
    for seed, mean, settings in ((0, 11, "n_envs=99"), (1, 480, now), (2, 470, now)):
        learning.save_rows(learning.RESULTS, {**row, "seed": seed, "mean": mean, "settings": settings})
    learning.save_rows(learning.RESULTS, {**row, "env": "Acrobot-v1", "seed": 0, "mean": -99, "settings": "n_envs=99"})
    line = "| CartPole-v1 | 1-2 | at most 99,000 | 475.0 | 5.0 | 470.0 | 1 of 2 at 475 | 9 | 500.0 | 500.0 | 2 of 2 at 475 |"
    assert learning.table().splitlines()[2:] == [line]

    monkeypatch.setattr(sys, "argv", ["learning.py", "--env", "CartPole-v1", "--seeds", "2"])
    learning.main()  # both are there: by default it begins with seed 1
    assert capsys.readouterr().out.splitlines()[2:] == [line]
    assert learning.first_new_seed([], learning.learning_rows()[1]) == 1  # above seed 0 of Acrobot-v1 and CartPole-v1
    monkeypatch.setattr(sys, "argv", ["learning.py", "--env", "CartPole-v1", "--first-seed", "0", "--seeds", "2"])
    with pytest.raises(SystemExit):
        learning.main()
    error = capsys.readouterr().err
    assert "CartPole-v1, seed 0: " in error
    assert "n_envs=99; choose others by --first-seed" in error


def test_curves_begin_anew_where_a_run_was_stopped(tasks):
    import suite

    key = {"env": "CartPole-v1", "agent": "REINFORCE", "seed": 0}
    suite.save_rows(tasks.path("curves.csv"), {**key, "step": 100, "mean": 1.0}, {**key, "step": 200, "mean": 2.0})
    add(tasks, "CartPole-v1", "REINFORCE", [9.0], curves=[(99, 5.0), (198, 7.0), (297, 6.0)])
    add(tasks, "CartPole-v1", "REINFORCE", [9.0], first_seed=1, curves=[(99, 3.0), (198, 9.0)])
    runs = suite.measured(tasks)["CartPole-v1", "REINFORCE"]
    assert runs.steps.tolist() == [99, 198]  # those of all seeds
    assert runs.curves.tolist() == [[5.0, 7.0], [3.0, 9.0]]
    assert runs.maximum.tolist() == [7.0, 9.0]  # where the mean is highest: 8 against 4


def test_curves_are_drawn_to_the_last_model(tasks):
    import suite

    add(tasks, "CartPole-v1", "REINFORCE", [9.0, 8.0], curves=[(500, 5.0)])
    add(tasks, "CartPole-v1", "PPO", [9.0], curves=[(500, 5.0), (1000, 6.0)])
    add(tasks, "Acrobot-v1", "PPO", [7.0])
    runs = suite.measured(tasks)
    for key, steps, curves in (
        (("CartPole-v1", "REINFORCE"), [500, 1001], [[5.0, 9.0], [5.0, 8.0]]),  # seed 1 has 1001 steps
        (("CartPole-v1", "PPO"), [500, 1000], [[5.0, 6.0]]),
        (("Acrobot-v1", "PPO"), [1000], [[7.0]]),
    ):
        drawn = runs[key].to_the_end()
        assert (drawn[0].tolist(), drawn[1].tolist()) == (steps, curves)


def test_table(tasks):
    import suite

    add(tasks, "CartPole-v1", "REINFORCE", [10.0, 40.0, 30.0], seconds=12.0, curves=[(500, 1.0)])
    add(tasks, "CartPole-v1 (other reward)", "REINFORCE", [4.0], curves=[(500, 3.0)])
    add(tasks, "Acrobot-v1", "REINFORCE", [-100.0], curves=[(500, -200.0)])
    head, _, *lines = suite.table(tasks).splitlines()
    assert "| lowest seed |" in head
    # mean 80 / 3, std sqrt(((50/3)^2 + (40/3)^2 + (10/3)^2) / 3) = 12.47; the interquartile mean of three is their mean
    assert lines[0].startswith("| CartPole-v1 | REINFORCE | 0-2 | 1,002 | 1.0 +- 0.0 | 26.7 +- 12.5 | 10.0 | 26.7 (")
    assert lines[0].endswith("| 12 | 25.0 |")
    assert lines[2] == "| CartPole-v1 (other reward) | REINFORCE | 0 | 1,000 | 3.0 | 4.0 | 4.0 |  | 1 | 25.0 |"
    # 26.7 against 25 and -100 against -90; the variant does not count
    assert suite.comparison(tasks) == "REINFORCE against Other: at or above on 1 of 2 tasks; below: Acrobot-v1"
    assert suite.ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_a_variant_is_made_with_its_arguments(tasks):
    import learning
    import suite

    settings = suite.AGENTS["REINFORCE"].settings(tasks, "CartPole-v1 (other reward)")
    assert settings.pop("env_kwargs") == {"sutton_barto_reward": True}
    assert settings == suite.AGENTS["REINFORCE"].settings(tasks, "CartPole-v1")
    for env in learning.make_envs("CartPole-v1", 1, 1, None, 0.99, 0, {"sutton_barto_reward": True}):
        assert env.get_attr("_sutton_barto_reward") == [True]


@pytest.fixture
def two_tasks(tasks):
    """Four seeds of REINFORCE, two or three of PPO; a random policy scores 10 and -500."""
    import suite

    suite.save_rows(tasks.path("random.csv"), {"env": "CartPole-v1", "mean": 10}, {"env": "Acrobot-v1", "mean": -500})
    add(tasks, "CartPole-v1", "REINFORCE", [30.0, 15.0, 20.0, 10.0], seconds=10.0)
    add(tasks, "Acrobot-v1", "REINFORCE", [-100.0, -100.0, -300.0, -500.0], seconds=30.0)
    add(tasks, "CartPole-v1", "PPO", [10.0, 30.0, 20.0])
    add(tasks, "Acrobot-v1", "PPO", [-400.0, -200.0])
    add(tasks, "CartPole-v1", "A2C", [12.0])
    add(tasks, "CartPole-v1 (other reward)", "REINFORCE", [1.0])
    return tasks


def test_normalised_scores(two_tasks):
    """PPO's mean is 20 and -300: one step of 10 above 10, one of 200 above -500."""
    import profiles
    import suite

    scores = profiles.normalised(two_tasks, suite.measured(two_tasks))
    assert scores["CartPole-v1", "REINFORCE"].tolist() == [2.0, 0.5, 1.0, 0.0]
    assert scores["Acrobot-v1", "REINFORCE"].tolist() == [2.0, 2.0, 1.0, 0.0]
    assert scores["CartPole-v1", "A2C"].tolist() == pytest.approx([0.2])
    assert len(scores) == 5  # none of the variant
    # PPO's third seed of CartPole-v1 has none beside it
    assert profiles.matrix(scores, "PPO", ["CartPole-v1", "Acrobot-v1"]).tolist() == [[0.0, 0.5], [2.0, 1.5]]


def test_improvement():
    """Of the pairs (3, 2), (3, 1), (1, 2), (1, 1) two are wins and one is a draw; of task 2 all six are wins."""
    import profiles
    from rliable import metrics

    x, y = np.array([[3.0, 9.0], [1.0, 8.0]]), np.array([[2.0, 1.0], [1.0, 2.0]])
    assert profiles.improvement(x[:, :1], y[:, :1]).tolist() == [2.5 / 4]
    assert profiles.improvement(x, y).tolist() == [(2.5 / 4 + 1) / 2]
    more = np.array([[2.0, 1.0], [1.0, 2.0], [0.0, 9.5]])
    assert profiles.improvement(x, more)[0] == pytest.approx(metrics.probability_of_improvement(x, more))


def test_profile_table_and_picture(two_tasks):
    import profiles

    lines = profiles.table(two_tasks).splitlines()
    ours, a2c, ppo = lines[2:5]
    # of 2, 0.5, 1, 0, 2, 2, 1, 0 the middle four are 0.5, 1, 1, 2; PPO's are 0, 2, 0.5, 1.5, of which the middle two
    assert ours.startswith("| REINFORCE | 2 | 4 | 1.12 (")
    assert "| 1.00 |" in ours
    assert ours.endswith("| 20 |")  # seconds: 10 and 30
    assert a2c.startswith("| A2C | 1 | 1 | 0.20 |")  # one seed has no interval
    assert ppo.startswith("| PPO | 2 | 2 | 1.00 (")
    # CartPole-v1: 30 wins 2.5 of 3, 15 wins 1, 20 wins 1.5, 10 wins 0.5; Acrobot-v1: 2 + 2 + 1 + 0 of 8
    assert lines[-2:] == ["| CartPole-v1 | 0.46 | 0.75 |", "| Acrobot-v1 | 0.62 |  |"]
    assert profiles.draw(two_tasks).stat().st_size > 10_000


def test_without_ppo_there_is_no_profile(tasks):
    import profiles

    add(tasks, "CartPole-v1", "REINFORCE", [30.0])
    assert profiles.table(tasks) == ""
    assert profiles.draw(tasks) is None


def test_command(tasks, capsys):
    import suite

    with pytest.raises(SystemExit, match="2"):
        suite.main(tasks, None, ["--collect"])
    assert "nothing has been measured" in capsys.readouterr().err
    add(tasks, "CartPole-v1", "REINFORCE", [30.0], first_seed=3, curves=[(500, 3.0), (1000, 30.0)])
    suite.main(tasks, None, ["--collect"])
    assert "| CartPole-v1 | REINFORCE | 3 | 1,003 | 30.0 | 30.0 | 30.0 |" in capsys.readouterr().out
    assert (tasks.pictures / "made_up.png").stat().st_size > 10_000


@pytest.mark.parametrize("agent", ["REINFORCE", "PPO"])
def test_a_first_seed_holds_for_every_agent(tasks, monkeypatch, agent):
    import suite

    started = []
    monkeypatch.setattr(suite, "in_parallel", lambda run, jobs, n_jobs: started.extend(jobs) or [])
    add(tasks, "CartPole-v1", agent, [30.0], first_seed=3, curves=[(500, 3.0), (1000, 30.0)])
    command = ["--env", "CartPole-v1", "--agents", agent, "--seeds", "2"]
    suite.main(tasks, None, command)
    suite.main(tasks, None, [*command, "--first-seed", "0"])
    suite.main(tasks, None, [*command, "--first-seed", "3"])
    assert [seed for *_, seed in started] == [4, 0, 1, 4]


def test_zero_variance_is_drawn_as_zero():
    import style
    import variance

    def row(baseline, number):
        return dict(env="E", stage="end", baseline=baseline, variance=number, relative=number, low=number, high=number)

    axes = style.new_figure(2).subplots()
    variance.draw_comparison(
        axes, "E", [row("none", "2.0"), row("per_step", "1e-23"), row("value", "1.0")], ["per_step", "value"], ["end"]
    )
    points = [(line.get_xdata(), label) for line in axes.lines if (label := line.get_marker()) == "D"]
    assert [float(x[0]) for x, _ in points if len(x)] == [variance.ZERO, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.01", "1", "100"]
    assert axes.get_xticks()[0] == variance.ZERO


def test_short_numbers():
    import style

    numbers = [style.short_number(number) for number in (0, 500, 9400, 250_000, 1_000_000, 2_500_000, -500)]
    assert numbers == ["0", "500", "9.4k", "250k", "1M", "2.5M", "-500"]
