"""Digests of every public result, to show that a change of the source tree changed no bit.

    PYTHONPATH=TREE python bench/studies/recorded_results.py --threads 1 --out before.json
    python bench/studies/recorded_results.py --compare before.json after.json

The cases (recorded/) call public names only and draw from fixed seeds, so that the same program runs on
any tree. A tensor's digest is taken over dtype, shape and bytes, so that payloads of NaN and signs of
zero count; numbers and strings stand as they are. SEMOBRIDGE_ISA and SEMOBRIDGE_BACKEND are heeded.
Compare files of one machine, one number of threads and one instruction set.

Left out, because it is not the same in two runs: times, rates, versions, pictures and pages.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SAME_IN_BOTH = ("threads", "isa", "torch", "backend")


def digest(dtype: str, shape: Sequence[int], data: bytes) -> str:
    head = f"{dtype} {list(shape)}"
    return f"{head} {hashlib.sha256(head.encode() + data).hexdigest()[:24]}"


def leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(path, digest) of every tensor, array, number and string in a nested value."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        t = value.detach().contiguous()
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        yield name, digest(str(t.dtype), t.shape, data)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield name, digest(str(value.dtype), value.shape, value.tobytes())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(f"{name}/{key}", part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(f"{name}/{field.name}", getattr(value, field.name))
    elif isinstance(value, (list, tuple, np.ndarray)):
        if any(isinstance(part, (torch.Tensor, np.ndarray, Mapping, list, tuple)) for part in value):
            for i, part in enumerate(value):
                yield from leaves(f"{name}/{i}", part)
        else:
            text = repr([part.item() if isinstance(part, np.generic) else part for part in value])
            yield name, text if len(text) < 100 else digest("list", [len(value)], text.encode())
    else:  # repr of a float gives the float back
        yield name, repr(value.item() if isinstance(value, np.generic) else value)


def record(pattern: str, threads: int) -> tuple[dict[str, Any], list[str]]:
    """The file's content, and the cases that raised."""
    import torch

    torch.set_num_threads(threads)
    from recorded import commands, fewshot, inversion, maps, ops  # noqa: F401 - they register their cases
    from recorded.problems import CASES

    import semobridge_ext as sb

    found: dict[str, str] = {}
    failed: list[str] = []
    info = sb.build_info()
    settings = {key: str(info.get(key)) for key in SAME_IN_BOTH}
    print(f"{os.path.dirname(sb.__file__)}: {settings}", file=sys.stderr)
    for name, function in CASES.items():
        if not fnmatch.fnmatch(name, pattern):
            continue
        began = time.perf_counter(), time.process_time()
        try:
            found.update(leaves(name, function()))
        except Exception as error:
            traceback.print_exc()
            found[name] = f"raises {type(error).__name__}"
            failed.append(name)
        took = time.perf_counter() - began[0], time.process_time() - began[1]
        print(f"{took[0]:6.1f} s, {took[1]:6.1f} s of CPU  {name}", file=sys.stderr, flush=True)
    return {"settings": settings, "results": found}, failed


def compare(first: str, second: str) -> int:
    contents = []
    for path in (first, second):
        with open(path, encoding="utf-8") as file:
            contents.append(json.load(file))
    a, b = (content["results"] for content in contents)
    if contents[0]["settings"] != contents[1]["settings"]:
        print(f"not comparable: {contents[0]['settings']} and {contents[1]['settings']}")
        return 1
    lines = [f"only in {first}: {name}" for name in a if name not in b]
    lines += [f"only in {second}: {name}" for name in b if name not in a]
    both = [name for name in a if name in b]
    lines += [f"differs: {name}\n    {a[name]}\n    {b[name]}" for name in both if a[name] != b[name]]
    print("\n".join([*lines, f"{len(a)} and {len(b)} results, {len(lines)} differences"]))
    return 1 if lines else 0


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--out", metavar="FILE", help="write the digests here")
    parser.add_argument("--threads", type=int, default=1, choices=(1, 2))
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases by name, such as 'ops.*'")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="print what differs")
    args = parser.parse_args()
    if args.compare:
        return compare(*args.compare)
    if args.out is None:
        parser.error("--out or --compare must be given")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    content, failed = record(args.only, args.threads)
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=0)
    print(f"{len(content['results'])} results in {args.out}; cases that raised: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
