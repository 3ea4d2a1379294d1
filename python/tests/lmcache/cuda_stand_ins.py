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
Versions = dict[str, set[str]]
NO_DEVICE = 100  # cudaErrorNoDevice, and no library's success


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    torch = Path(sysconfig.get_paths()["purelib"]) / "torch"
    missing: set[str] = set()
    versioned: defaultdict[str, Versions] = defaultdict(lambda: defaultdict(set))
    unversioned: set[str] = set()
    for file in [*(torch / "lib").glob("*.so*"), *torch.glob("*.so")]:
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", file))
        missing |= {name for name in needed if LIBRARY.fullmatch(name) and not (torch / "lib" / name).exists()}
        library_of = libraries_of_versions(file)
        for line in output_of("nm", "-D", "--undefined-only", file).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            version = version.lstrip("@")
            if library := library_of.get(version):
                versioned[library][version].add(symbol)
            elif not version and FUNCTION.fullmatch(symbol):
                unversioned.add(symbol)
    for name in sorted(missing):
        # Nothing says where a symbol without a version is, so each library without versions has them all.
        make_library(torch / "lib" / name, versioned.get(name) or {"": unversioned})
    print(f"{len(missing)} libraries that stand in for NVIDIA's")


def libraries_of_versions(file: Path) -> dict[str, str]:
    """Which of NVIDIA's libraries a file wants each version of symbols from."""
    _, _, needs = output_of("readelf", "-VW", file).partition("Version needs section")
    found: dict[str, str] = {}
    library = ""
    for kind, name in re.findall(r"\b(File|Name): (\S+)", needs):
        if kind == "File":
            library = name
        elif LIBRARY.fullmatch(library):
            found[name] = library
    return found


def make_library(path: Path, versions: Versions) -> None:
    source = "".join(
        f'const char *{name}(void) {{ return "there is no GPU"; }}\n'
        if name.endswith("String")
        else f"int {name}(void) {{ return {NO_DEVICE}; }}\n"
        for names in versions.values()
        for name in sorted(names)
    )
    command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", "-xc", "-", "-o", str(path), f"-Wl,-soname,{path.name}"]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        for version, names in versions.items():
            if version:
                script.write(f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n")
        script.flush()
        if "" not in versions:
            command.append(f"-Wl,--version-script={script.name}")
        subprocess.run(command, input=source, text=True, check=True)


if __name__ == "__main__":
    sys.exit(main())
