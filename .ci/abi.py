"""Installs the package as a user does, into the environment that runs this, and looks inside.

- `pip install .` with pip's build isolation installs this package and nothing else, least of all
  another torch.
- The wheel is py3-none: one for every Python.
- It holds one library, and one for CUDA tensors where torch has CUDA.
- The libraries use LibTorch's stable ABI, no symbol of it newer than torch 2.10 (weak ones
  excepted: they may be missing), need libtorch_cpu.so, and nothing that is not on every machine
  with torch.
- They export nothing, and no directory of the machine that built them is inside.
- The C core allocates, prints and exits nowhere and reads no environment variable.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
OLDEST_TORCH = (2, 10)
CUDA = "libdeeppcr_torch_cuda.so"
NEEDED = r"libtorch_cpu\.so|lib(c|m)\.so\.6|libstdc\+\+\.so\.6|libgcc_s\.so\.1|ld-linux.*"
# glibc's as well, before 2.34
NEEDED_CUDA = NEEDED + r"|libtorch_cuda\.so|lib(dl|rt|pthread)\.so\.\d"
# What the core promises not to do (csrc/pcr/pcr.h); snprintf into its own buffer is no output.
FORBIDDEN = set(
    """malloc calloc realloc aligned_alloc posix_memalign free abort exit __assert_fail getenv
    printf fprintf vfprintf puts putchar fputs fwrite __printf_chk __fprintf_chk""".split()
)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def require(condition: bool, sentence: str) -> None:
    if not condition:
        sys.exit(f"abi: {sentence}")


def undefined(library: Path, *options: str) -> set[str]:
    """Symbols that must come from elsewhere, without the weak ones and without versions."""
    lines = run("nm", *options, "--undefined-only", library).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if re.search(r" U \S+$", line)}


def install() -> list[Path]:
    """Runs pip install . and returns the libraries that it installed."""
    report = REPOSITORY / "build" / "pip-report.json"
    report.parent.mkdir(exist_ok=True)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--report", report, REPOSITORY)
    names = [entry["metadata"]["name"] for entry in json.loads(report.read_text())["install"]]
    require(names == ["torch-deeppcr"], f"pip install . installed {names}")

    package = distribution("torch-deeppcr")
    tag = re.search(r"^Tag: (.*)$", package.read_text("WHEEL") or "", re.MULTILINE)
    require(tag is not None and tag[1].startswith("py3-none-"), f"the wheel is tagged {tag}")
    libraries = [file for file in package.files or [] if file.suffix == ".so"]
    names = {file.name for file in libraries}
    expected = {"libdeeppcr_torch.so"}
    require(names in (expected, expected | {CUDA}), f"the wheel holds the libraries {names}")
    return [Path(str(package.locate_file(file))) for file in libraries]


def check_dependencies(library: Path) -> None:
    dynamic = run("readelf", "-d", library)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    require("libtorch_cpu.so" in needed, "libtorch_cpu.so is not in DT_NEEDED")
    if library.name == CUDA:
        require("libtorch_cuda.so" in needed, "libtorch_cuda.so is not in DT_NEEDED")
    allowed = NEEDED_CUDA if library.name == CUDA else NEEDED
    surplus = [name for name in needed if not re.fullmatch(allowed, name)]
    require(not surplus, f"needs {surplus}")
    require("RPATH" not in dynamic and "RUNPATH" not in dynamic, "has a run path")
    exported = run("nm", "-D", "--defined-only", library).split()
    require(not exported, f"exports {exported}")
    print(f"abi: {library.name} needs", *needed)


def check_paths(library: Path) -> None:
    here = [str(REPOSITORY), sys.prefix, str(Path.home()) + "/", "site-packages", "/tmp/"]
    texts = run("strings", "-a", library).splitlines()
    leaks = [text for text in texts if any(path in text for path in here)]
    require(not leaks, f"build paths inside: {leaks}")


def check_torch(library: Path) -> None:
    if sys.version_info < (3, 11):
        print("abi: SKIPPED the audit of the torch ABI: torch-abi-audit needs Python 3.11")
        return
    from torch_abi_audit.torch_versions import stable_shim_versions

    audit = Path(sys.executable).parent / "torch-abi-audit"
    run(audit, "--check", "torch", library)
    versions = stable_shim_versions()
    symbols = [name for name in undefined(library, "-D") if re.match("(aoti_)?torch_", name)]
    new = [name for name in symbols if name not in versions or versions[name][:2] > OLDEST_TORCH]
    require(bool(symbols) and not new, f"newer than torch {OLDEST_TORCH}: {new}")
    print(f"abi: {len(symbols)} symbols of LibTorch's stable ABI, none newer than torch 2.10")


def check_core(archive: Path) -> None:
    calls = undefined(archive) & FORBIDDEN
    require(not calls, f"the C library calls {calls}")


def main() -> None:
    for library in install():
        check_dependencies(library)
        check_paths(library)
        check_torch(library)
    check_core(REPOSITORY / "build" / "release" / "libdeeppcr.a")
    print("abi: passed")


if __name__ == "__main__":
    main()
