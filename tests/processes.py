"""Start processes that train together, one per rank."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES = HERE / "distributed_cases.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def variables(**more: str) -> dict[str, str]:
    """:return: environment variables of a process that imports this checkout"""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def results_of_ranks(n_ranks: int, case: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """
    Run a case of ``distributed_cases.py`` under torchrun.

    :return: what each rank found, and what was printed
    """
    done = subprocess.run(
        [*TORCHRUN[:-1], str(n_ranks), str(CASES), case, str(folder)],
        env=variables(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{case}-{rank}.pkl").read_bytes()) for rank in range(n_ranks)], done.stdout
