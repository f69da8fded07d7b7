"""What this installation can do, and why something is absent."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from semobridge_ext._version import __version__
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.explain import choices


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def openmp_libraries() -> list[str]:
    """The OpenMP runtimes mapped into this process (Linux); more than one would double the threads."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if line.rstrip().endswith(tuple("0123456789so"))}
    except OSError:
        return []
    return sorted(p for p in paths if "libgomp" in p or "libiomp" in p or "libomp" in p)


def _cuda_state(config: dict[str, str]) -> str:
    built = config.get("cuda")
    if not built and config.get("cuda_request") == "off":
        return "kernels not built: switched off at installation (SEMOBRIDGE_CUDA=on asks for them)"
    if not built:
        return "kernels not built: no nvcc when the package was installed (SEMOBRIDGE_CUDA=on asks for it)"
    if not _backend.HAS_CUDA:
        return f"configured for CUDA {built}, but the module holds no CUDA kernels; reinstall"
    if not torch.cuda.is_available():
        return f"kernels built with CUDA {built}; no usable GPU or driver here"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if not _runs_on(config.get("cuda_architectures", ""), major, minor):
        return (
            f"kernels built with CUDA {built}, but not for {name} (sm_{major}{minor}); "
            f"SEMOBRIDGE_CUDA_ARCHITECTURES={major}{minor} pip install --force-reinstall ."
        )
    return f"kernels built with CUDA {built}; {name}"


def _runs_on(architectures: str, major: int, minor: int) -> bool:
    """Code runs on the same major version from its minor one on; the newest one's PTX on all that follow."""
    built = [divmod(int(a), 10) for a in architectures.split(",") if a.isdigit()]
    return any(m == major and n <= minor for m, n in built) or (bool(built) and max(built) <= (major, minor))


def _triton_state() -> str:
    version = _version("triton")
    if version is None:
        return "not installed (pip install triton)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return f"{version}; its interpreter runs the kernels on CPU tensors; on request: backend('triton')"
    if not torch.cuda.is_available():
        return f"{version}; no usable GPU or driver here"
    return version


def build_info() -> dict[str, Any]:
    """Versions, instruction set, threads, OpenMP, state of the GPU, and `auto`'s choices, as a plain dict.

    Returns:
        Names to strings, lists, a dict or None; what is absent carries the reason as its value. ``choices``
        names what ``auto`` takes for each operator and loop with GPU kernels, and why: the rule of an
        architecture, measured by `semobridge-ext calibrate`, not built, a failed self-check, the CPU.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.build_info()["isa"] in sb.build_info()["isa_available"]
        True
    """
    native = _backend._C
    config: dict[str, str] = native.build_config() if native is not None else {}
    info: dict[str, Any] = {
        "semobridge_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": _version("open_clip_torch"),
        "numpy": _version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "native": "built" if native is not None else f"missing: {_backend.NATIVE_ERROR}",
        "compiler": config.get("compiler"),
        "isa": native.active_isa() if native is not None else None,
        "isa_available": [name for name, (_, runs) in (native.isa_table().items() if native else ()) if runs],
        "threads": torch.get_num_threads(),
        "openmp": openmp_libraries(),
        "cuda": _cuda_state(config),
        "cuda_architectures": config.get("cuda_architectures") or None,
        "triton": _triton_state(),
        "backend": _backend.requested(),
        "choices": choices(),
    }
    return info
