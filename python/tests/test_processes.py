"""What several processes promise each other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from maru import MaruHandler
from support import CHUNK, Server, pins, wait_until

Connect = Callable[..., MaruHandler]

PRELUDE = f"""
import os, signal, sys, time
from maru import MaruConfig, MaruHandler
maru = MaruHandler(MaruConfig(server_url=sys.argv[1], chunk_size_bytes={CHUNK}, pool_size={16 * CHUNK}))
assert maru.connect()
"""


def run(server: Server, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that has a handler ``maru``."""
    program = PRELUDE + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=60)


def test_a_chunk_stored_by_one_process_is_read_by_another(server: Server, maru: MaruHandler) -> None:
    done = run(server, "assert maru.store('key', data=b'from afar')\nmaru.close()")
    assert done.returncode == 0, done.stderr
    assert bytes(maru.retrieve("key").view) == b"from afar"


def test_a_process_that_is_killed_leaves_its_chunks_and_no_pins(server: Server, maru: MaruHandler) -> None:
    maru.store("mine", data=b"mine")
    code = """
        maru.store("key", data=b"chunk")
        held = maru.batch_retrieve(["mine", "key"])
        assert maru.pin("mine") and all(held)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(server, code).returncode == -9
    assert bytes(maru.retrieve("key").view) == b"chunk"
    wait_until("the grace period is over", lambda: pins(maru) == 0)
    assert maru.delete("mine")


def test_a_process_ends_whatever_it_still_holds(server: Server) -> None:
    code = """
        import asyncio
        maru.store("key", data=b"chunk")
        info, handle = maru.retrieve("key"), maru.alloc(10)
        asyncio.run(maru.exists_async("key"))
        print("end", flush=True)
    """
    done = run(server, code)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_a_process_that_was_stopped_while_its_server_was_restarted_is_told_that_it_lost_its_chunks(
    server: Server, maru: MaruHandler
) -> None:
    maru.store("key", data=b"chunk")
    code = """
        from maru import MaruError
        info = maru.retrieve("key")
        info.check()
        print("reads", flush=True)
        sys.stdin.readline()
        assert info.revoked
        try:
            info.check()
        except MaruError as error:
            assert "acquire it anew" in str(error), error
        assert maru.retrieve("key") is None
        maru.close()
        assert maru.connect()
        again = maru.retrieve("key")
        print(bytes(again.view), again.revoked, repr(info), flush=True)
    """
    program = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), server.url]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin and reader.stdout
        assert reader.stdout.readline() == "reads\n"
        reader.send_signal(signal.SIGSTOP)
        server.kill()
        server.start()
        wait_until("nobody reads it", lambda: maru.delete("key"))
        assert maru.store("key", data=b"other")
        reader.send_signal(signal.SIGCONT)
        told, _ = reader.communicate("\n", timeout=60)
    assert told.startswith("b'other' False MemoryInfo("), told


def test_the_child_of_a_fork_leaves_the_parents_session_alone(server: Server) -> None:
    code = """
        maru.store("key", data=b"chunk")
        info, handle = maru.retrieve("key"), maru.alloc(10)
        child = os.fork()
        if child == 0:
            assert bytes(info.view) == b"chunk"
            try:
                maru.exists("key")
            except RuntimeError as error:
                assert "parent" in str(error)
                try:
                    info.check()
                except RuntimeError as error:
                    assert "parent" in str(error)
                del info, handle
                assert maru.connect() and maru.exists("key")
                maru.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert maru.get_stats()["store_regions"]["total_free_pages"] == 14, "the page is still held"
        assert not maru.delete("key"), "the pin is still held"
        handle.buf[:] = b"0123456789"
        assert maru.store("other", handle)
    """
    done = run(server, code)
    assert done.returncode == 0, done.stderr


def test_the_child_of_a_fork_logs_and_ends_like_any_process(server: Server) -> None:
    code = """
        if os.fork() == 0:
            assert maru.connect() and maru.store("key", data=b"chunk")
            os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
            assert not maru.healthcheck()
            print("the child ends", flush=True)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    """
    os.environ["SERVER"] = str(server._process.pid)
    done = run(server, code)
    assert (done.returncode, done.stdout) == (0, "the child ends\n"), done.stderr
    assert "lost the connection" in done.stderr, "the parent asked for nothing and so has not noticed"


def test_the_child_of_a_fork_is_told_that_it_can_not_await_what_its_parent_awaited(server: Server) -> None:
    code = """
        import asyncio
        asyncio.run(maru.exists_async("key"))
        if os.fork() == 0:
            assert maru.connect() and not maru.exists("key")
            try:
                asyncio.run(maru.exists_async("key"))
            except RuntimeError as error:
                print(error, flush=True)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
        assert not asyncio.run(maru.exists_async("key"))
    """
    done = run(server, code)
    assert done.returncode == 0, done.stderr
    assert "start processes by spawn" in done.stdout


def test_what_the_client_has_to_say_is_logged(server: Server) -> None:
    code = """
        maru.exists("key")
        os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while maru.healthcheck() and time.monotonic() < deadline:
            time.sleep(0.01)
        maru.close()
    """
    os.environ["SERVER"] = str(server._process.pid)
    done = run(server, code)
    assert done.returncode == 0, done.stderr
    assert "lost the connection" in done.stderr
    assert f"connected to {server.url}" in done.stderr


@pytest.mark.parametrize("scheme", ["tcp", "maru"])
def test_an_address_of_the_original_leads_to_the_unix_socket(start_server: Callable[..., Server], scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start_server("--listen", f"127.0.0.1:{port}")
    code = f"""
        maru.close()
        maru = MaruHandler(MaruConfig(server_url="{scheme}://localhost:{port}", pool_size=1 << 20))
        assert maru.connect() and maru.store("key", data=b"chunk")
        assert bytes(maru.retrieve("key").view) == b"chunk"
        time.sleep(0.1)
        maru.close()
    """
    done = run(server, code)
    assert done.returncode == 0, done.stderr
    assert "moved from tcp://" in done.stderr and str(server.socket) in done.stderr
