"""What all packages share: the configuration, and logging."""

from .config import MaruConfig
from .logging_setup import setup_package_logging

setup_package_logging("maru_common")

__all__ = ["MaruConfig", "setup_package_logging"]
