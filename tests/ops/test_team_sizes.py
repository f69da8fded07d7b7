"""A small call of a native kernel wakes no more threads than its work is worth, however many there may be.

The threads of a process only become more, so the calls run in one fresh process, small ones first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import environment, run

THREADS = 16
# name -> threads that may be there after it, the caller's own included
MOST = {
    "project_normalize": 1, "prune_candidates": 1, "symmetric_kl": 2, "symmetric_kl_bwd": 2, "adamw": 2,
    "matrix_product": 2, "tree_attention": 2, "row_loss": 2, "quantize_rows": 4,
}  # fmt: skip
CHILD = """
import json, os, torch
torch.set_num_threads(1)
from semobridge_ext import ops
from semobridge_ext._engines.bridge_training.cpu import CpuTrainingPieces
from semobridge_ext._engines.bridge_training.spec import Batch
from semobridge_ext._ops.blend_logits.spec import Similarities
from semobridge_ext._ops.count_correct.cpu import prune_candidates
from semobridge_ext._ops.quantize_rows.cpu import quantize_rows
from semobridge_ext._ops.symmetric_kl.op import _native, _native_bwd
from semobridge_ext._ops.tree_attention.cpu import tree_attention
from semobridge_ext._ops.tree_attention.spec import Paths
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import view

narrow, wide = ops.Projection(torch.eye(32)), ops.Projection(torch.eye(512))
x, many, cosines = torch.randn(29, 32), torch.randn(4096, 512), Similarities(*torch.rand(3, 3, 5))
labels, exponents, rows = torch.zeros(3, dtype=torch.int64), torch.zeros(5).double(), torch.randn(2048, 32)
a, b, grad, stats = torch.randn(40, 1000), torch.randn(40, 1000), torch.ones(40), torch.zeros(40, 6)
values = torch.ones(4, 70_000)
left, product = torch.ones(128, 128), torch.empty(128, 128)
keys, paths = torch.randn(65, 8), Paths(
    *(torch.zeros(size, dtype=torch.int32) for size in ((1, 1), (65,))), torch.ones(65, dtype=torch.int32)
)
offsets = torch.arange(0, 73, 8)
batch = _C.ClassBatch(0, offsets.data_ptr(), 8)
logits, ones, lost = torch.zeros(72, 1000), torch.ones(72), torch.empty(72)
calls = {
    "project_normalize": lambda: narrow(x),
    "prune_candidates": lambda: prune_candidates(cosines, labels, exponents),
    "symmetric_kl": lambda: _native(a, b, 1.0),
    "symmetric_kl_bwd": lambda: _native_bwd(grad, a, b, stats, 1.0, True, True),
    "adamw": lambda: _C.adamw(
        0, 70_000, *(v.data_ptr() for v in values), 1e-3, 0.0, 0.9, 0.999, 1e-8, 1, thread_count()
    ),
    "matrix_product": lambda: _C.matrix_product(
        view(left), False, view(left), False, view(product), False, thread_count()
    ),
    "tree_attention": lambda: tree_attention(keys, keys, keys, paths, 1),
    "row_loss": lambda: batch.row_loss(
        0, 9, view(logits), 1.0, ones.data_ptr(), 0, lost.data_ptr(), 0, 0, thread_count()
    ),
    "quantize_rows": lambda: quantize_rows(rows),
    "many rows": lambda: wide(many),
}
torch.set_num_threads(%d)
before, found = len(os.listdir("/proc/self/task")), {}
for name, call in calls.items():
    call()
    found[name] = len(os.listdir("/proc/self/task")) - before + 1
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_small_calls_wake_few_threads():
    done = run(sys.executable, "-c", CHILD % THREADS, env=environment(OMP_DYNAMIC="false"), cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("many rows") == THREADS, "the threads that were asked for were not to be had"
    assert set(found) == set(MOST)
    assert {name: count for name, count in found.items() if count > MOST[name]} == {}, found
