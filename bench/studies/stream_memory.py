"""What the streaming ops add to a process at their peak: the first call, each in a process of its own.

`python bench/studies/stream_memory.py` prints a Markdown table. Inputs and outputs that exist before the call
are not counted; pages of a memory-mapped file that the call reads are.

`python bench/studies/stream_memory.py grow` follows `extract`, `retrieve` and `report` over time
(stream_growth.py beside this file): `--inputs 100000 1000000`, `--rows 1000000`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "support_logits 1024x128000, float32 keys": "ours 1024 128000 float32",
    "the same, one-hot program": "eager 1024 128000 float32",
    "support_logits 1024x1281167, float16 keys in memory": "ours 1024 1281167 float16",
    "the same, SupportSet mapped from a file": "mapped 1024 1281167 float16",
    "topk 1000x200000, k=10": "topk 1000 200000 float32",
    "the same, mm + torch.topk": "topk_eager 1000 200000 float32",
    "retrieval_metrics 11788, 200 classes": "metrics 11788 200 float32",
    "retrieval_metrics 60502, 11316 classes": "metrics 60502 11316 float32",
}


def of_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"stream_memory: /proc/self/status must have {field}; this needs Linux")


def measure(kind: str, n: int, s: int, dtype: str) -> str:
    import torch

    import semobridge_ext as sb

    def rows(count: int) -> torch.Tensor:
        x = torch.empty(count, 512, dtype=getattr(torch, dtype))
        for part in torch.arange(count).split(1 << 14):
            x[part] = torch.nn.functional.normalize(torch.randn(len(part), 512), dim=1).to(x.dtype)
        return x

    queries, keys = rows(n).float(), rows(1 if kind == "metrics" else s)
    labels = torch.arange(len(keys)) % 1000
    classes = torch.randint(0, s, (n,)) if kind == "metrics" else labels
    support = None
    if kind == "mapped":
        with tempfile.TemporaryDirectory() as folder:  # the mapping outlives the name
            sb.SupportSet(keys, labels, 1000).save(Path(folder) / "support")
            support = sb.SupportSet.load(Path(folder) / "support")
        del keys
    before = of_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts here
    if kind == "ours":
        sb.support_logits(queries, keys, labels, 1000, beta=5.5)
    elif kind == "eager":
        sb.reference.support_logits(queries, keys, labels, 1000, beta=5.5)
    elif support is not None:
        support.logits(queries, beta=5.5)
    elif kind == "topk":
        sb.topk(queries, keys, 10)
    elif kind == "topk_eager":
        torch.topk(queries @ keys.T, 10)
    else:
        sb.retrieval_metrics(queries, queries, classes, classes, same_set=True)
    peak = of_status("VmHWM")
    return f"{(peak - before) / 2**20:.0f} | {peak / 2**20:.0f}"


def main() -> None:
    if sys.argv[1:2] == ["grow"]:
        import stream_growth  # beside this script

        stream_growth.main(sys.argv[2:])
        return
    if len(sys.argv) == 5:
        print(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
        return
    print("| call | MiB added | MiB of the whole process |\n|---|---:|---:|")
    for name, arguments in CASES.items():
        done = subprocess.run(
            [sys.executable, __file__, *arguments.split()], capture_output=True, text=True, check=True
        )
        print(f"| {name} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
