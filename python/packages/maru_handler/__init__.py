"""The handler: one instance of maru in this process."""

from maru_common.logging_setup import setup_package_logging

setup_package_logging("maru_handler")

from ._native import MaruError  # noqa: E402
from .handler import MaruHandler  # noqa: E402

__all__ = ["MaruError", "MaruHandler"]
