"""How the packages log."""

from __future__ import annotations

import logging
import os

_FORMAT = "[%(asctime)s,%(msecs)03.0f] maru %(levelname)s: %(message)s (%(filename)s:%(lineno)d:%(name)s)"


def setup_package_logging(package_name: str) -> logging.Logger:
    """The logger of a package, which writes to stderr unless the application has given it handlers.

    The level is that of ``MARU_LOG_LEVEL``, else of ``LMCACHE_LOG_LEVEL``, else ``INFO``. Calling it twice is fine.
    """
    logger = logging.getLogger(package_name)
    if logger.handlers:
        return logger
    name = os.environ.get("MARU_LOG_LEVEL") or os.environ.get("LMCACHE_LOG_LEVEL") or "INFO"
    level = logging.getLevelNamesMapping().get(name.upper(), logging.INFO)
    logger.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    return logger
