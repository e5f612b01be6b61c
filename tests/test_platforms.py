"""The kernels for CPUs on other processors and systems, and the wheels that carry them.

zig, which the extra [build] brings, compiles for all of them on any machine; qemu-user and Wine run the result of two.
"""

import ctypes
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mambaad_cli
from mambaad_cli.model.kernels import cpu

build = pytest.importorskip("mambaad_cli._build", reason="setuptools is not installed", exc_type=ImportError)

ROOT = Path(mambaad_cli.__file__).parent
KERNELS = ROOT / "model" / "kernels"
CHECK = Path(__file__).parent / "model" / "kernels.c"
ZIG = [sys.executable, "-m", "ziglang", "cc", "-s"]
# zig's name of a platform, the end of the library's name, and what its file says of system and processor
TARGETS = {
    "x86_64-linux-gnu.2.17": (".so", "ELF", 62),
    "aarch64-linux-gnu.2.17": (".so", "ELF", 183),
    "x86_64-windows-gnu": (".dll", "PE", 0x8664),
    "aarch64-macos.11.0": (".dylib", "Mach-O", 0x0100000C),
    "x86_64-macos.10.15": (".dylib", "Mach-O", 0x01000007),
}
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="zig is not installed: [build]")
needs_checkout = pytest.mark.skipif(not (ROOT.parent / "pyproject.toml").exists(), reason="not in a checkout")


def exported() -> list[str]:
    return re.findall(r"^EXPORT int (\w+)\(", (KERNELS / "cpu.c").read_text(), re.MULTILINE)


def kind(library: bytes) -> tuple[str, int]:
    """Of a library's file: its format, and its processor's number in that format."""
    if library.startswith(b"\x7fELF"):
        return "ELF", struct.unpack_from("<H", library, 18)[0]
    if library.startswith(b"MZ"):
        start = struct.unpack_from("<I", library, 60)[0]
        assert library[start : start + 4] == b"PE\0\0"
        return "PE", struct.unpack_from("<H", library, start + 4)[0]
    assert library.startswith(b"\xcf\xfa\xed\xfe")
    return "Mach-O", struct.unpack_from("<I", library, 4)[0]


def mach_symbols(library: bytes) -> set[str]:
    """The names that a library of macOS exports."""
    names, place = set(), 32  # behind the header
    for _ in range(struct.unpack_from("<I", library, 16)[0]):
        command, size = struct.unpack_from("<II", library, place)
        if command == 2:  # LC_SYMTAB
            symbols, count, strings, _ = struct.unpack_from("<IIII", library, place + 8)
            for symbol in range(symbols, symbols + 16 * count, 16):
                offset, type_ = struct.unpack_from("<IB", library, symbol)
                if type_ & 0x0F == 0x0F:  # N_EXT and N_SECT: defined here, for others
                    start = strings + offset
                    names.add(library[start : library.index(b"\0", start)].decode())
        place += size
    return names


def test_python_calls_what_is_exported() -> None:
    called = {name for path in KERNELS.glob("*.py") for name in re.findall(r"\bmambaad_[a-z_]+", path.read_text())}
    set_by_python = {"mambaad_cli", "mambaad_isa", "mambaad_parallel"}
    assert len(exported()) == 9
    assert called - set_by_python == set(exported())


@pytest.mark.skipif(not build.compilers(), reason="no compiler")
def test_memory_may_be_read_as_another_type_than_it_was_written_as(tmp_path: Path) -> None:
    """As the comparison with the nearest patches does: pairs of int16 are read as int32."""
    source = tmp_path / "pair.c"
    source.write_text("int pair(int *whole, short *half) { *whole = 0; half[0] = 1; return *whole; }\n")
    library = tmp_path / f"pair{build.suffix(sysconfig.get_platform().replace('-', '_'))}"
    assert build.compile_library(build.compilers()[0], [str(source)], library) == ""
    memory = ctypes.c_int()
    assert ctypes.CDLL(str(library)).pair(ctypes.byref(memory), ctypes.byref(memory)) == 1


@needs_zig
@pytest.mark.parametrize("target", TARGETS)
def test_every_platform_compiles_without_a_warning_and_exports_the_kernels(
    target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suffix, system, processor = TARGETS[target]
    library = tmp_path / f"_cpu{suffix}"
    assert build.compile_library([*ZIG, "-target", target, "-Wextra"], [str(KERNELS / "cpu.c")], library) == ""
    assert "warning" not in "".join(capfd.readouterr())
    content = library.read_bytes()
    assert kind(content) == (system, processor)
    if system == "Mach-O":
        linkers_own = {"___dso_handle", "__mh_dylib_header"}
        assert mach_symbols(content) - linkers_own == {f"_{name}" for name in exported()}
    else:  # each name stands in the table of exported names, which is the only one that -s leaves
        assert [name for name in exported() if f"\0{name}\0".encode() not in content] == []
        assert b"forward_portable\0" not in content
    assert b"__cpu_model" not in content  # of libgcc, which ctypes would not find


def checked(compiler: list[str], program: Path, emulator: list[str]) -> str:
    """What kernels.c prints; it compares all kernels with their plain versions."""
    command = [*compiler, *build.FLAGS, "-Wextra", str(CHECK), "-o", str(program)]
    libraries = [] if program.suffix == ".exe" else ["-lm", "-lpthread"]
    compiled = subprocess.run([*command, *libraries], capture_output=True, text=True, check=False)
    assert (compiled.returncode, compiled.stdout + compiled.stderr) == (0, "")
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_checkout
def test_the_kernels_are_the_plain_versions_in_c_alone(tmp_path: Path) -> None:
    compilers = build.compilers()
    if not compilers or sys.platform == "win32":
        pytest.skip("no C compiler")
    library = cpu.kernels()
    sets = cpu.ISA[: library.mambaad_best_isa() + 1] if library is not None else cpu.ISA[:1]
    said = checked(compilers[0], tmp_path / "check", []).splitlines()
    assert said[: len(sets)] == [f"{name}: all kernels agree" for name in sets]


@needs_zig
@needs_checkout
def test_on_arm_they_are_the_plain_versions_too(tmp_path: Path) -> None:
    """NEON, which the compiler makes of the portable vectors; in an emulator."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64: Debian's package qemu-user brings it")
    said = checked([*ZIG, "-target", "aarch64-linux-musl", "-static"], tmp_path / "check", [emulator])
    assert said == "portable: all kernels agree\n"


@needs_zig
@needs_checkout
def test_on_windows_they_are_the_plain_versions_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Windows' threads and memory, in Wine."""
    wine = shutil.which("wine64") or shutil.which("wine64", path="/usr/lib/wine")
    if wine is None:
        pytest.skip("no Wine: Debian's package wine64 brings it")
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "wine"))
    monkeypatch.setenv("WINEDEBUG", "-all")
    said = checked([*ZIG, "-target", "x86_64-windows-gnu"], tmp_path / "check.exe", [wine])
    assert said.splitlines()[0].strip() == "portable: all kernels agree"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not tell what its processor has")
def test_the_best_instruction_set_is_one_that_the_system_names() -> None:
    library, flags = cpu.kernels(), set(Path("/proc/cpuinfo").read_text().split())
    if library is None:
        pytest.skip("the optional kernels were not built: no C compiler")
    avx512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    expected = 2 if {"avx2", "fma", *avx512} <= flags else 1 if {"avx2", "fma"} <= flags else 0
    assert library.mambaad_best_isa() == expected


# Wheels


@needs_checkout
@pytest.mark.parametrize("platform", ["linux_x86_64", "win_amd64", "macosx_11_0_arm64"])
def test_a_wheel_serves_every_python_of_its_platform(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"  # the platform's own may be missing here; what it makes is not looked at
    compiler.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text('a library')\n"
    )
    compiler.chmod(0o755)
    name, names = wheel(tmp_path, monkeypatch, str(compiler), f"--plat-name={platform}")
    assert name.endswith(f"-py3-none-{platform}.whl")
    assert [file for file in names if "_cpu." in file] == [f"mambaad_cli/model/kernels/_cpu{build.suffix(platform)}"]


@needs_checkout
def test_without_a_compiler_the_wheel_has_no_kernels_and_is_for_any_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, names = wheel(tmp_path, monkeypatch, "no-such-compiler")
    assert name.endswith("-py3-none-any.whl")
    assert [file for file in names if "_cpu." in file] == []
    assert "mambaad_cli/model/kernels/cpu_platform.h" in names


def wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, *options: str) -> tuple[str, list[str]]:
    """A wheel's name, and those of the files in it."""
    if sys.platform == "win32":
        pytest.skip("a program in Python is no compiler there")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT.parent / name, source)
    shutil.copytree(ROOT, source / "mambaad_cli", ignore=shutil.ignore_patterns("_cpu.*", "__pycache__"))
    monkeypatch.setenv("CC", compiler)
    program = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", program, "-q", "bdist_wheel", f"--dist-dir={folder}", *options]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        assert f"Root-Is-Purelib: {str('-any' in path.name).lower()}" in file.read(metadata(file)).decode()
        return path.name, file.namelist()


def metadata(file: zipfile.ZipFile) -> str:
    return next(name for name in file.namelist() if name.endswith(".dist-info/WHEEL"))
