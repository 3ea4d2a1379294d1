"""Share KV-cache chunks between the engines of a host: map the memory, copy nothing.

from maru import MaruConfig, MaruHandler

with MaruHandler(MaruConfig(server_url="unix:///run/maru/maru.sock")) as maru:
    maru.store("key", data=b"chunk")
    info = maru.retrieve("key")
    print(bytes(info.view))
"""

from maru_common.logging_setup import setup_package_logging

setup_package_logging("maru")

from maru_common import MaruConfig  # noqa: E402
from maru_handler import MaruError, MaruHandler  # noqa: E402
from maru_handler._native import __version__  # noqa: E402, F401
from maru_handler.memory import AllocHandle, MemoryInfo  # noqa: E402

__all__ = ["AllocHandle", "MaruConfig", "MaruError", "MaruHandler", "MemoryInfo"]
