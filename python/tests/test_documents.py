"""What the documents show in Python runs, on a real server; and their links lead somewhere."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maru import MaruConfig, MaruHandler
from support import Server

ROOT = Path(__file__).parents[2]
SOCKET = "unix:///run/maru/maru.sock"
WITH_PYTHON = ["README.md", "docs/getting-started.md", "docs/python.md"]
#: What the guide calls the files of a server on TLS, by option.
CERTIFICATES = {"cert": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
#: The address of a heading in a browser.
KEPT = re.compile(r"[^\w\- ]")


def blocks(document: str) -> list[tuple[int, str]]:
    """The blocks of Python, each with the line that it begins at."""
    text = (ROOT / document).read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)) + 1, block[1]) for block in found]


CODE = [pytest.param(code, id=f"{document}:{line}") for document in WITH_PYTHON for line, code in blocks(document)]


def test_the_documents_have_code() -> None:
    assert all(blocks(document) for document in WITH_PYTHON)


@pytest.mark.parametrize("code", CODE)
def test_a_block_runs(code: str, start_server: Callable[..., Server]) -> None:
    server = start_server("--pool-size", "1100MiB")
    exec(compile(code.replace(SOCKET, server.url), "block", "exec"), {"__name__": "block"})


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_the_certificates_of_the_guide_are_believed(start_server: Callable[..., Server], tmp_path: Path) -> None:
    guide = (ROOT / "docs/deploying.md").read_text().partition("\n## TLS\n")[2]
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)).replace("\\\n", "")
    made = [line.replace("node-7", "localhost") for line in shell.splitlines() if not line.startswith("maru")]
    subprocess.run(["bash", "-euc", "\n".join(made)], cwd=tmp_path, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [f"--tls-{name}={tmp_path / file}" for name, file in CERTIFICATES.items()]
    start_server(f"--listen=127.0.0.1:{port}", *files)
    url, ca = f"tls://localhost:{port}", tmp_path / "ca.pem"
    identity = (tmp_path / "client.pem", tmp_path / "client.key")
    with MaruHandler(MaruConfig(server_url=url, pool_size=1 << 20, tls_ca=ca, tls_identity=identity)) as maru:
        assert maru.store("key", data=b"chunk")
        assert maru.exists("key")
    assert not MaruHandler(MaruConfig(server_url=url, tls_ca=ca)).connect(), "it asks for a certificate"
    assert not MaruHandler(MaruConfig(server_url=url, tls_identity=identity)).connect(), "nobody knows its authority"


def headings(document: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {KEPT.sub("", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", [path.relative_to(ROOT) for path in sorted(ROOT.glob("docs/*.md"))], ids=str)
def test_the_links_of_a_page_stay_in_the_book(document: Path) -> None:
    links_lead_somewhere(ROOT / document, ROOT / "docs")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "python/README.md"])
def test_the_links_of_a_document_lead_somewhere(document: str) -> None:
    links_lead_somewhere(ROOT / document, ROOT)


def links_lead_somewhere(document: Path, root: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists() and target.is_relative_to(root), f"{document.name} links to {link}"
        assert not heading or heading in headings(target), f"{document.name} links to {link}"


def test_every_page_is_in_the_book() -> None:
    pages = set(re.findall(r"\(([\w-]+\.md)\)", (ROOT / "docs/SUMMARY.md").read_text()))
    assert pages == {path.name for path in ROOT.glob("docs/*.md")} - {"SUMMARY.md"}
