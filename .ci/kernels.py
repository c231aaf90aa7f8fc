"""What ptxas says of every CUDA kernel: python .ci/kernels.py LOG, of a build with -Xptxas=-v.

One line a kernel: registers by architecture, then, of the architecture with the most, bytes of
static shared memory and of spill stores and loads. It fails if a hot kernel spills, and if one was
not compiled for every architecture.
"""

import re
import subprocess
import sys
from pathlib import Path

# Run once over little, or only where a sample is recomputed. Every other kernel is hot.
COLD = {"clear_kernel", "repair_kernel", "start_gradient_kernel", "wide_damping_kernel"}
# Products of Jacobians in double precision, or of 32 columns, are more than registers hold.
LARGE = re.compile(r"(newton|propagate)_kernel<team<(double|float, 32)")

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def demangled(names: list[str]) -> list[str]:
    tool = subprocess.run(
        ["c++filt"], input="\n".join(names), check=True, text=True, stdout=subprocess.PIPE
    )
    return [re.sub(r"^void |\(.*", "", name) for name in tool.stdout.splitlines()]


def main(log: Path) -> None:
    text = log.read_text()
    entries = [match.groupdict() for match in ENTRY.finditer(text)]
    if not entries or len(entries) != text.count("Compiling entry function"):
        sys.exit(f"kernels: {log} is not the log of a whole build with -Xptxas=-v")
    architectures = sorted({entry["architecture"] for entry in entries}, key=int)
    kernels: dict[str, dict[str, dict[str, str]]] = {}
    for name, entry in zip(demangled([entry["name"] for entry in entries]), entries, strict=True):
        kernels.setdefault(name, {})[entry["architecture"]] = entry

    broken = []
    print(f"{'kernel':56}{'registers, sm_' + '/'.join(architectures):>32}{'shared':>8}  spills")
    for name, by_architecture in sorted(kernels.items()):
        values = list(by_architecture.values())
        registers = "/".join(
            by_architecture.get(a, {"registers": "-"})["registers"] for a in architectures
        )
        shared = max(int((re.findall(r"(\d+) bytes smem", v["rest"]) or ["0"])[0]) for v in values)
        stores, loads = (max(int(v[kind]) for v in values) for kind in ("stores", "loads"))
        hot = name.split("<")[0] not in COLD and not LARGE.match(name)
        print(f"{name + ('' if hot else '  (cold)'):56}{registers:>32}{shared:8}  {stores}+{loads}")
        if sorted(by_architecture, key=int) != architectures:
            broken.append(f"{name} is there for sm_{', '.join(by_architecture)} only")
        if hot and stores + loads > 0:
            broken.append(f"{name} spills")
    for sentence in broken:
        print(f"kernels: {sentence}")
    if broken:
        sys.exit(1)
    print(f"kernels: {len(kernels)} for each of sm_{', '.join(architectures)}, no hot one spills")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
