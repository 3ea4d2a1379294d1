"""Makes torch from PyPI importable without the NVIDIA libraries: libraries of the same names, whose functions all fail.

PyPI has torch for GPUs alone, and it does not load without several gigabytes of libraries that nothing calls on a host
without a GPU. Run with the interpreter that has torch; needs cc, nm and readelf.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

LIBRARY = re.compile(r"lib(cu|nccl|nv).*\.so\.\d+")
FUNCTION = re.compile(r"(cu|nccl|nv|__cuda)\w+")
NO_DEVICE = 100  # cudaErrorNoDevice, and no library's success


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    torch = Path(sysconfig.get_paths()["purelib"]) / "torch"
    missing: set[str] = set()
    versioned: defaultdict[str, set[str]] = defaultdict(set)
    unversioned: set[str] = set()
    for file in [*(torch / "lib").glob("*.so*"), *torch.glob("*.so")]:
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", file))
        missing |= {name for name in needed if LIBRARY.fullmatch(name) and not (torch / "lib" / name).exists()}
        for line in output_of("nm", "-D", "--undefined-only", file).splitlines():
            # NVIDIA's libraries that have versions of symbols name them after themselves.
            symbol, _, version = line.split()[-1].partition("@")
            version = version.lstrip("@")
            if LIBRARY.fullmatch(version):
                versioned[version].add(symbol)
            elif not version and FUNCTION.fullmatch(symbol):
                unversioned.add(symbol)
    for name in sorted(missing):
        # Of a symbol without a version nothing says where it is, so each library without versions has them all.
        make_library(torch / "lib" / name, versioned.get(name, unversioned), is_versioned=name in versioned)
    print(f"{len(missing)} libraries that stand in for NVIDIA's")


def make_library(path: Path, functions: set[str], *, is_versioned: bool) -> None:
    source = "".join(
        f'const char *{name}(void) {{ return "there is no GPU"; }}\n'
        if name.endswith("String")
        else f"int {name}(void) {{ return {NO_DEVICE}; }}\n"
        for name in sorted(functions)
    )
    command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", "-xc", "-", "-o", str(path), f"-Wl,-soname,{path.name}"]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as versions:
        if is_versioned:
            versions.write(f"{path.name} {{ global: *; }};\n")
            versions.flush()
            command.append(f"-Wl,--version-script={versions.name}")
        subprocess.run(command, input=source, text=True, check=True)


if __name__ == "__main__":
    sys.exit(main())
