"""`semobridge-ext info`: every fact of build_info, aligned, with reasons."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.cli.commands import info
from semobridge_ext.runtime import backend
from semobridge_ext.runtime import info as runtime_info


def test_every_fact_is_printed_and_aligned(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    facts = sb.build_info()
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ") and line[2] != " "}
    assert set(facts) <= set(rows)
    width = max(map(len, rows)) + 4
    assert all(line[width - 2 : width] == "  " and line[width] != " " for line in rows.values())
    assert torch.__version__ in rows["torch"]
    assert facts["isa"] in rows["isa"] and str(facts["threads"]) in rows["threads"]
    assert "None" not in out and "[]" not in out


def test_json_is_build_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    got.pop("plots")
    assert got == json.loads(json.dumps(sb.build_info()))


@pytest.mark.parametrize("key", ["semobridge_ext", "compiler", "isa", "isa_available", "openmp", "open_clip"])
def test_what_is_absent_says_why(key):
    for nothing in (None, []):
        (line,) = [line for line in info.render({key: nothing}).splitlines() if line.startswith("  ")]
        assert line.split(maxsplit=1) == [key, info._ABSENT[key]]


def test_a_missing_native_core_says_why():
    assert "missing: no such file" in info.render({"native": "missing: no such file", "isa": None})


def test_two_openmp_runtimes_are_pointed_out():
    out = info.render({"openmp": ["/a/libgomp.so.1", "/b/libiomp5.so"]})
    assert "/a/libgomp.so.1" in out and "/b/libiomp5.so" in out and "more than one" in out


def test_facts_that_no_group_knows_are_kept():
    assert "sets" in info.render({"sets": "icons, flags"})


def test_missing_matplotlib_says_how(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert "pip install 'semobridge-ext[plots]'" in info.plots_state()


BUILT = {"cuda": "13.0.88", "cuda_request": "auto", "cuda_architectures": "80,86,90"}


@pytest.mark.parametrize(
    "config,has_kernels,capability,told",
    [
        ({"cuda": "", "cuda_request": "auto"}, False, None, "no nvcc when the package was installed"),
        ({"cuda": "", "cuda_request": "off"}, False, None, "switched off at installation"),
        (BUILT, False, None, "the module holds no CUDA kernels; reinstall"),
        (BUILT, True, None, "built with CUDA 13.0.88; no usable GPU or driver here"),
        (BUILT, True, (8, 0), "built with CUDA 13.0.88; Test GPU"),
        (BUILT, True, (8, 9), "; Test GPU"),  # runs what was built for 8.6
        (BUILT, True, (12, 0), "; Test GPU"),  # from the PTX of 9.0
        (BUILT, True, (7, 5), "not for Test GPU (sm_75); SEMOBRIDGE_CUDA_ARCHITECTURES=75 pip install"),
    ],
)
def test_the_state_of_cuda(config, has_kernels, capability, told, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "HAS_CUDA", has_kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert told in runtime_info._cuda_state(config)
