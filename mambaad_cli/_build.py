"""How setuptools builds the kernels (model/kernels/cpu.c) and tags the wheel that carries them.

The kernels know nothing of Python: ctypes loads them. So a compiler is called directly, without Python's own flags and
headers, and one wheel for a platform serves every Python 3. Where no compiler works, the kernels are left out, and the
wheel is one for any platform.

CC names the compiler, as usual; with `python -m ziglang cc -target …` and bdist_wheel's --plat-name, any machine builds
for all platforms: .ci/wheels does.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fno-strict-aliasing",  # cpu_nearest.h writes pairs of int16, and reads each pair as one int32
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wno-psabi",
)


class BuildKernels(build_ext):
    """build_ext for a library that ctypes loads: `_cpu.so`, `_cpu.dll` or `_cpu.dylib`."""

    def get_ext_filename(self, fullname: str) -> str:
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        return str(Path(*fullname.split("."))) + suffix(getattr(wheel, "plat_name", None) or self.plat_name)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        built = Path(self.build_temp, target.name).absolute()  # some compilers write more files beside the library
        built.parent.mkdir(parents=True, exist_ok=True)
        faults = []
        for compiler in compilers():
            fault = compile_library(compiler, [str(source) for source in ext.sources], built)
            if not fault:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(built, target)
                return
            faults.append(fault)
        raise CompileError("\n".join(faults) or "no C compiler: install gcc or clang (on Windows clang), or set CC")


class TagWheel(bdist_wheel):
    """bdist_wheel for a package whose library any Python 3 of the platform loads, or that was built without it."""

    def get_tag(self) -> tuple[str, str, str]:
        build = self.get_finalized_command("build_ext")
        assert isinstance(build, BuildKernels)
        if not all(Path(build.get_ext_fullpath(ext.name)).exists() for ext in self.distribution.ext_modules or []):
            self.root_is_pure = True
            return "py3", "none", "any"
        return "py3", "none", super().get_tag()[2]


def suffix(platform: str) -> str:
    """Of a shared library's name, for a platform as wheels name it.

    >>> suffix("win_amd64"), suffix("macosx_11_0_arm64"), suffix("manylinux2014_x86_64")
    ('.dll', '.dylib', '.so')
    """
    return ".dll" if platform.startswith("win") else ".dylib" if platform.startswith("macosx") else ".so"


def compilers() -> list[list[str]]:
    """The C compilers to try, each as the start of its command line.

    On Windows Clang alone: Microsoft's compiler has no vector types, and GCC misaligns wide ones on the stack there.
    """
    if os.environ.get("CC"):
        return [shlex.split(os.environ["CC"])]
    names = ("clang",) if sys.platform == "win32" else ("cc", "gcc", "clang")
    return [[path] for path in map(shutil.which, names) if path]


def compile_library(compiler: list[str], sources: list[str], library: Path) -> str:
    """Build a shared library, named after its platform; returns what went wrong, or ""."""
    more = [] if library.suffix == ".dll" else ["-fPIC", "-lpthread"]
    command = [*compiler, *FLAGS, "-shared", *sources, "-o", str(library), *more]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        return f"{compiler[0]}: {error}"
    print(done.stdout, end="", flush=True)
    return f"{shlex.join(command)}: exit status {done.returncode}\n{done.stdout}" if done.returncode else ""
