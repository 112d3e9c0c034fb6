"""``sb3-reinforce compare-estimators``: which estimator has the least gradient variance for this distribution and cost?"""

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path

from sb3_reinforce.estimators import comparison
from sb3_reinforce.zoo.usage import refuse

VERB = "compare-estimators"


def compare_estimators(arguments: Sequence[str]) -> int:
    """:return: the exit code: 0, or 2 for a command line or a file that cannot be run"""
    parser = argparse.ArgumentParser(
        prog=f"sb3-reinforce {VERB}",
        description=__doc__,
        epilog=f"example: sb3-reinforce {VERB} problem.py --evaluations 8",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE.py", help="a Python file with `distribution` and `cost`, which is run"
    )
    parser.add_argument("--evaluations", type=int, default=16, metavar="N", help="of the cost, per gradient (default: 16)")
    parser.add_argument("--repeats", type=int, default=300, metavar="N", help="gradients of each estimator (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--png", type=Path, metavar="FILE", help="picture to write (default: none)")
    options = parser.parse_args(arguments)
    try:
        if not options.file.is_file():
            raise FileNotFoundError(f"{options.file}: there is no such file")
        names = runpy.run_path(str(options.file))
        missing = [name for name in ("distribution", "cost") if name not in names]
        if missing:
            raise ValueError(f"{options.file} must define `distribution` and `cost`, got no {' and no '.join(missing)}")
        found = comparison.compare_estimators(
            names["distribution"], names["cost"], options.evaluations, n_repeats=options.repeats, seed=options.seed
        )
        print(found)
        if options.png is not None:
            found.plot(options.png)
            print(f"Picture: {options.png}")
    except (ValueError, OSError, ImportError) as error:
        return refuse(error, VERB)
    return 0
