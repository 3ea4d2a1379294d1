"""Memory objects of LMCache that show pages, each alive as long as somebody uses it and no longer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload
from weakref import WeakValueDictionary

import torch
from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj

if TYPE_CHECKING:
    from maru_handler.memory import AllocHandle
    from maru_lmcache.adapter import CxlMemoryAdapter

# Chunks that others stored are read-only memory, for which torch has no kind of tensor: it makes an ordinary one and
# warns, once in a process. LMCache only reads what it retrieves, and its users can do nothing about the warning. It is
# filtered here once and for this module alone: changing filters around the call would not be safe with several threads.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning, module=__name__)

_NOTHING = torch.empty(0, dtype=torch.uint8)


def bytes_of(view: memoryview) -> torch.Tensor:
    """A flat tensor of a view's bytes, in place. It keeps the view, not only the memory behind it."""
    # LMCache works in inference mode, and what is made there may not be written into anywhere else.
    with torch.inference_mode(False):
        return torch.frombuffer(view, dtype=torch.uint8)


class PageObj(TensorMemoryObj):
    """What LMCache knows of a page: the bytes, and their shapes.

    The tensor keeps the view that it was made of, and the view keeps the page: allocated while it is not stored, pinned
    while it was retrieved. So whatever LMCache forgets to free goes back when nothing shows it any more.

    Args:
        view: The bytes, exactly as many as `metadata` says.
        metadata: Shapes, dtypes and address.
        adapter: Frees it when its last reference is given up.
        handle: Of a page that is allocated and not stored: the right to do either.
    """

    def __init__(
        self,
        view: memoryview,
        metadata: MemoryObjMetadata,
        adapter: CxlMemoryAdapter,
        handle: AllocHandle | None = None,
    ) -> None:
        super().__init__(bytes_of(view), metadata, parent_allocator=adapter)
        self.adapter = adapter
        self._handle = [] if handle is None else [handle]

    def __del__(self) -> None:
        # LMCache's class complains here about references that were not given up, and frees. Objects of MaruBackend
        # always end with one, and the view sees to the page.
        pass

    @property
    def tensor(self) -> torch.Tensor | None:
        """The chunk in its shape; where it has several groups, which no single shape fits, all of its bytes."""
        if len(self.meta.shapes) > 1 and self.is_valid():
            return self.raw_data[: self.get_size()]
        tensor: torch.Tensor | None = super().tensor
        return tensor

    def take_handle(self) -> AllocHandle | None:
        """The right to store or free the page. Whoever comes first has it, and nobody a second time."""
        try:
            return self._handle.pop()
        except IndexError:
            return None

    def release(self) -> None:
        """Lets go of the bytes; whoever has a tensor of them keeps it, and what it stands for."""
        self.invalidate()
        self.raw_data = _NOTHING


class RegionPool(Sequence[PageObj]):
    """The pages of a region as memory objects, each made when it is asked for and nobody has it.

    What LMCache is given is never taken from here, but made for it: an object that somebody still has from an earlier
    use of its page would not protect the present one.

    Args:
        pages: How many.
        make: Makes the object of a full page by its index.
    """

    def __init__(self, pages: int, make: Callable[[int], PageObj]) -> None:
        self._pages = pages
        self._make = make
        self._latest: WeakValueDictionary[int, PageObj] = WeakValueDictionary()

    def __len__(self) -> int:
        return self._pages

    @overload
    def __getitem__(self, index: int) -> PageObj: ...

    @overload
    def __getitem__(self, index: slice) -> list[PageObj]: ...

    def __getitem__(self, index: int | slice) -> PageObj | list[PageObj]:
        pages = range(self._pages)[index]
        return self._of(pages) if isinstance(pages, int) else [self._of(page) for page in pages]

    def _of(self, page: int) -> PageObj:
        obj = self._latest.get(page)
        if obj is None:
            obj = self._latest[page] = self._make(page)
        return obj

    def remember(self, page: int, obj: PageObj) -> None:
        """From now on `obj` is the object of the page."""
        self._latest[page] = obj

    def forget(self, page: int) -> None:
        """The page has a use now that it has no full object for."""
        self._latest.pop(page, None)
