"""A real cluster of three nodes: the files and results of one process, also where a node dies half-way."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.ray import search
from semobridge_ext.ray.pool import Pool
from tests.support.assertions import assert_same_bits
from tests.support.images import command, write

pytestmark = pytest.mark.slow
RAY = ["--engine", "ray", "--actors"]


class Slow:
    """A worker whose jobs take long enough for its node to die in one."""

    def __init__(self, make: Any, **arguments: Any) -> None:
        self._worker = make(**arguments)

    def __call__(self, job: Any) -> Any:
        time.sleep(0.25)
        return self._worker(job)


class Losses:
    """Kills the node of the first actor that has finished a job while it has another one."""

    def __init__(self, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes, self.killed, self.lost = nodes, False, 0
        finished, lost = Pool._finished, Pool._lost

        def watched(pool: Pool, ref: Any, done: dict) -> None:
            actor = pool._running[ref][0]
            finished(pool, ref, done)
            if not self.killed and pool._free.get(actor):
                self.killed = True
                nodes.kill(pool._nodes[actor])

        def counted(pool: Pool, *arguments: Any) -> None:
            self.lost += 1
            lost(pool, *arguments)

        begin = Pool.__init__

        def slowly(pool: Pool, function: str, ray: Any, make: Any, *more: Any) -> None:
            begin(pool, function, ray, partial(Slow, make), *more)

        monkeypatch.setattr(Pool, "__init__", slowly)
        monkeypatch.setattr(Pool, "_finished", watched)
        monkeypatch.setattr(Pool, "_lost", counted)

    def check(self) -> None:
        """One node went, with a job at least; the next command has two or three."""
        assert self.killed and self.lost
        self.killed, self.lost = False, 0
        if len(self.nodes.cluster.worker_nodes) < 2:
            self.nodes.fill_up()


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the summary, which says how long it took."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "summary.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_commands_write_the_files_of_one_process(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    torch.set_num_threads(1)  # as an actor has
    images = tmp_path / "images"
    paths = write(images, 6, 6)
    paths[7].write_bytes(paths[7].read_bytes()[:90])
    losses = Losses(nodes, monkeypatch)

    def both(*words: object, actors: int = 1, ending: str = "") -> tuple[Path, Path]:
        """The same command here and on the cluster, where a node dies; {} is what they write."""
        outs = tmp_path / f"{words[0]}-here{ending}", tmp_path / f"{words[0]}-there{ending}"
        for out, more in zip(outs, ([], [*RAY, actors]), strict=True):
            assert command(*(out if word == "{}" else word for word in words), *more) == 0, capfd.readouterr()
        losses.check()
        return outs

    words = ["--quiet", "--workers", 0, "--batch-size", 6, "--shard-size", 6]
    here, there = both("extract", images, "{}", *words, actors=2)
    assert contents(here) == contents(there) and len(contents(here)) == 6 * 2 + 4
    assert command("extract", images, there, *words, *RAY, 1) == 0  # nothing to do
    assert "finished already, 35 features" in capfd.readouterr().out

    bridged, there = both("map", here, "{}", "--mapping", "bridge", "--quiet")
    assert contents(bridged) == contents(there)

    found = both("search", bridged, "--text", "a star", "--image", paths[0], "-k", 9, "--json", "{}")
    assert found[0].read_bytes() == found[1].read_bytes()
    assert len(json.loads(found[0].read_bytes())[0]["hits"]) == 9

    rows = np.concatenate([np.load(p) for p in sorted((here / "img_emb").iterdir())])
    np.save(tmp_path / "features.npy", rows)
    words = ["--steps", 4, "--batch-size", 6, "--quiet"]
    made = both("invert", tmp_path / "features.npy", "{}", *words, ending=".safetensors")
    assert made[0].read_bytes() == made[1].read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_a_run_of_one_process_goes_on_here(tmp_path: Path, nodes: Any, capfd: pytest.CaptureFixture) -> None:
    """And what a cluster cannot do is refused before it."""
    torch.set_num_threads(1)
    write(tmp_path / "images", 2, 3)
    out = tmp_path / "out"
    words = ["extract", tmp_path / "images", out, "--quiet", "--shard-size", 2, "--batch-size", 2]
    assert command(*words, "--workers", 0) == 0
    expected = contents(out)
    (out / "summary.json").unlink()
    (out / "metadata" / "metadata_2.parquet").unlink()
    assert command(*words, *RAY, 1) == 0 and contents(out).keys() == expected.keys()
    assert "4 inputs are done, going on" in capfd.readouterr().err
    assert all(contents(out)[n] == expected[n] for n in expected if n != "shards.jsonl")
    assert command("map", out, tmp_path / "m", "--mapping", "bridge", "--address", "auto") == 2
    assert "--address must stand beside --engine ray, got auto alone" in capfd.readouterr().err
    assert command("extract", tmp_path / "images", tmp_path / "gpu", "--device", "cuda", *RAY, 1) == 2
    assert "the cluster must have a GPU, got 0 of them" in capfd.readouterr().err


def png(drawing: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    return file.getvalue()


class Chain:
    """Several callables in one actor, each from its own arguments."""

    def __init__(self, stages: list[tuple[type, dict[str, Any]]]) -> None:
        self._stages = [stage(**given) for stage, given in stages]

    def __call__(self, batch: Any) -> Any:
        for stage in self._stages:
            batch = stage(batch)
        return batch


def test_callables_of_ray_data_are_those_of_one_process(tmp_path: Path, nodes: Any) -> None:
    import ray

    torch.set_num_threads(1)
    each, blocks = 4, 6
    data = sb.load_picto("icons")
    rows = [{"id": i, "image": png(d.numpy())} for i, d in enumerate(data.images[: each * blocks])]
    model, _, _ = sb.load_picto_clip()
    bridge = sb.Bridge.from_clip(model)
    bridge.save(tmp_path / "bridge.safetensors")
    shots = torch.randn(9, 192)
    sb.NearestClassMean().fit(shots, [0, 1, 2] * 3).save(tmp_path / "clf.safetensors")

    chain = [
        (sb.ray.Map, sb.ray.Map.arguments(mapping=tmp_path / "bridge.safetensors", output="bridged")),
        (sb.ray.Invert, sb.ray.Invert.arguments(steps=3, rows=len(rows))),
        (sb.ray.Classify, sb.ray.Classify.arguments(estimator=tmp_path / "clf.safetensors")),
    ]
    stages = [sb.ray.Encode(), Chain(chain)]
    want: dict[str, list[np.ndarray]] = {}
    for begin in range(0, len(rows), each):
        part = rows[begin : begin + each]
        batch: dict[str, np.ndarray] = {name: np.asarray([r[name] for r in part], object) for name in part[0]}
        for stage in stages:
            batch = stage(batch)
        for row in range(each):
            for name in ("features", "bridged", "tokens", "inverted", "predicted", "error"):
                want.setdefault(name, []).append(batch[name][row])

    pools = {"batch_size": each, "num_cpus": 0.5, "compute": ray.data.ActorPoolStrategy(size=1)}
    found = (
        ray.data.from_items(rows, override_num_blocks=blocks)
        .map_batches(sb.ray.Encode, fn_constructor_kwargs=sb.ray.Encode.arguments(), **pools)
        .map_batches(Chain, fn_constructor_kwargs={"stages": chain}, **pools)
    )
    seen: dict[int, dict[str, Any]] = {}
    for batch in found.iter_batches(batch_size=None):
        if not seen:
            nodes.kill_any()
        for row, number in enumerate(batch["id"].tolist()):
            seen[number] = {name: batch[name][row] for name in want}
    assert sorted(seen) == list(range(len(rows)))
    for name, values in want.items():
        for number, value in enumerate(values):
            got = seen[number][name]
            if isinstance(value, np.ndarray):
                assert_same_bits(torch.from_numpy(np.array(got)), torch.from_numpy(np.array(value)))
            else:
                assert got == value, name


def test_search_over_nodes_is_topk_over_the_whole(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    # Few integers: many equal scores, within blocks and across them; a NaN row, an infinite one.
    gallery = np.random.default_rng(0).integers(-2, 3, (60, 6)).astype(np.float32)
    gallery[7], gallery[41, 0] = np.nan, -np.inf
    queries = torch.randint(-2, 3, (9, 6)).float()
    dataset = ray.data.from_numpy(np.array_split(gallery, [7, 8, 31, 45]))
    killed, lists = [], search._lists

    def killing(mapped: Any) -> Iterator[Any]:
        for found in lists(mapped):
            if not killed:
                killed.append(True)
                nodes.kill_any()
            yield found

    monkeypatch.setattr(search, "_lists", killing)
    exclude = torch.tensor([0, 7, -1, 59, 3, 41, 8, 30, 31])
    for k, given in ((20, None), (59, exclude)):
        found = sb.ray.topk(queries, dataset, k, exclude=given, column="data")
        want = sb.topk(queries, torch.from_numpy(gallery), k, exclude=given)
        assert torch.equal(found.indices, want.indices)
        assert torch.equal(found.scores.view(torch.int32), want.scores.view(torch.int32))
    assert killed and len(set(found.scores[0].tolist())) < 40
    assert not dataset.context.execution_options.preserve_order
    wide = sb.ray.topk(queries.double().numpy(), dataset, 3, column="data")
    assert isinstance(wide.scores, np.ndarray) and wide.scores.dtype == np.float64
    with pytest.raises(ValueError, match=r"k must lie in 0..59, got int 60; the gallery has 60 rows, one of"):
        sb.ray.topk(queries, dataset, 60, exclude=exclude, column="data")
