"""Drives CMake (CMakeLists.txt is the build description) for the one native module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds semobridge_ext._C with Ninja; torch is not needed and not looked at."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compiler = os.environ.get("CXX", "c++").split()[0]
        if shutil.which(compiler) is None:
            raise SetupError(
                f"semobridge-ext: a C++20 compiler is needed and '{compiler}' was not found; install "
                "g++ 11 or newer (Debian and Ubuntu: apt-get install g++) or set CXX"
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # An isolated build leaves a cache that points into an environment which is gone by the next one.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DPYBIND11_FINDPYTHON=ON",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSEMOBRIDGE_CUDA={os.environ.get('SEMOBRIDGE_CUDA', 'auto')}",
        ]  # fmt: skip
        for name in ("SEMOBRIDGE_CUDA_ARCHITECTURES", "SEMOBRIDGE_GLIBC"):
            if value := os.environ.get(name):
                configure.append(f"-D{name}={value}")
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except FileNotFoundError as error:
            raise SetupError("semobridge-ext: cmake was not found; pip install cmake ninja") from error
        except subprocess.CalledProcessError as error:
            raise SetupError(
                "semobridge-ext: the native core did not build; the reason stands above "
                f"(step: {' '.join(error.cmd[:2])})"
            ) from None


class BuildPyWithStub(build_py):
    """Ships python/_C.pyi beside the module that it describes."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(
                str(ROOT / "python" / "_C.pyi"),
                str(Path(self.build_lib) / "semobridge_ext" / "_C.pyi"),
            )


setup(
    ext_modules=[Extension("semobridge_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPyWithStub},
)
