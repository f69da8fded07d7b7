"""`python run_cases.py MODULE ORDER [case ...]`: runs the cases, prints the worst errors as JSON.

ORDER is the order in which the emulation lets threads and blocks run: ascending, descending or
shuffled. An unsynchronised access is right in some orders only.

CUDA_EMULATION_WATCH=races or traffic, over a module whose kernels are watched (see watched.py): the first
access that nothing orders after an earlier one ends the run, or what the warps' requests move is printed too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.cuda_emulation.all_cases import CASES
from tests.cuda_emulation.cases import WORST
from tests.support import comparer

ORDERS = ("ascending", "descending", "shuffled")


def load(path: str):
    # pybind11 hands out the module that it has by that name: each file needs one of its own.
    spec = importlib.util.spec_from_file_location(f"{Path(path).parent.name}.cuda_emulated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path: str, order: str, *names: str) -> None:
    module = load(path)
    module.watch(os.environ.get("CUDA_EMULATION_WATCH", ""))
    for name in names or CASES:
        module.set_order(ORDERS.index(order), 17)
        CASES[name](module, np.random.default_rng(17))
    launches, barriers, exchanges = module.counts()
    families = [(family, dtype, worst) for (family, dtype), worst in comparer.WORST.items()]
    counts = {"launches": launches, "barriers": barriers, "exchanges": exchanges}
    print(json.dumps({"worst": WORST, "families": families, **counts, "traffic": module.traffic()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
