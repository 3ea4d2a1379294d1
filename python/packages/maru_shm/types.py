"""What describes pools and regions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class DaxType(IntEnum):
    """What a pool lies on."""

    DEV_DAX = 0
    #: A folder: on tmpfs, hugetlbfs or a DAX file system.
    FS_DAX = 1


@dataclass
class MaruHandle:
    """A region.

    Attributes:
        region_id: Its id.
        offset: Bytes from the beginning of its file.
        length: Its bytes.
    """

    region_id: int = 0
    offset: int = 0
    length: int = 0


@dataclass
class MaruPoolInfo:
    """A pool.

    Attributes:
        dax_path: Where it lies.
        dax_type: What it lies on.
        total_size: Its bytes.
        free_size: Bytes that belong to no region.
        align_bytes: Regions begin and end at multiples of this.
    """

    dax_path: str = ""
    dax_type: DaxType = DaxType.FS_DAX
    total_size: int = 0
    free_size: int = 0
    align_bytes: int = 0
