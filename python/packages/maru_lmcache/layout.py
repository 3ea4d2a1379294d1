"""What a chunk of KV cache looks like in bytes: its groups of layers one after the other, cut at a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lmcache.v1.memory_management import MemoryFormat


class ChunkLayout:
    """The groups of a full chunk, and what is left of them with fewer tokens.

    Args:
        shapes: Shape of each group; models whose layers are all alike have one group.
        dtypes: Element type of each group.
        fmt: Says which dimension of a shape counts tokens. In a shape with too few dimensions it is the first.
        page_size: Bytes of the page that holds a chunk.

    Raises:
        ValueError: The groups don't fit together, or into a page, or one of them would begin where its elements can't.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        dtypes: Sequence[torch.dtype],
        fmt: MemoryFormat,
        page_size: int,
    ) -> None:
        if not shapes or len(shapes) != len(dtypes):
            raise ValueError(f"each group needs a shape and a dtype, not {len(shapes)} and {len(dtypes)} of them")
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.dtypes = list(dtypes)
        self.fmt = fmt
        self._token_dims = [_token_dim(shape, fmt) for shape in shapes]
        self.tokens = self.shapes[0][self._token_dims[0]]
        if self.tokens == 0 or self.cut(self.tokens) != self.shapes:
            raise ValueError(f"the groups of a chunk have the same number of tokens, and at least one: {self.shapes}")
        self.bytes_per_token = self._check_alignment(page_size)
        if self.bytes_per_token * self.tokens > page_size:
            raise ValueError(f"a chunk of {self.bytes_per_token * self.tokens} bytes in a page of {page_size}")

    def cut(self, tokens: int) -> list[torch.Size]:
        """The shapes of the groups with so many tokens."""
        return [
            torch.Size((*shape[:dim], tokens, *shape[dim + 1 :]))
            for shape, dim in zip(self.shapes, self._token_dims, strict=True)
        ]

    def tokens_of(self, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]) -> int:
        """How many tokens a request for memory is about; may be more than a chunk has.

        Raises:
            ValueError: What is asked for is not this layout with another number of tokens, so that nobody who finds it
                later would know its shape.
        """
        shapes = list(shapes)
        if shapes and len(shapes[0]) == len(self.shapes[0]):
            tokens = shapes[0][self._token_dims[0]]
            if list(dtypes) == self.dtypes and shapes == self.cut(tokens):
                return tokens
        raise ValueError(
            f"chunks have {_describe(self.shapes, self.dtypes)} or fewer tokens of it, not {_describe(shapes, dtypes)}"
        )

    def tokens_in(self, nbytes: int) -> int | None:
        """How many tokens a chunk of so many bytes has; `None` if that is no number of tokens of a chunk."""
        tokens, rest = divmod(nbytes, self.bytes_per_token)
        return tokens if rest == 0 and 0 < tokens <= self.tokens else None

    def _check_alignment(self, page_size: int) -> int:
        """Bytes of a token. However a chunk is cut, each group has to begin at a multiple of its element size."""
        before = 0
        for index, (shape, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True)):
            if before % dtype.itemsize or page_size % dtype.itemsize:
                raise ValueError(
                    f"group {index} of a chunk has elements of {dtype.itemsize} bytes ({dtype}), but would begin at "
                    f"{before} bytes for each token, in pages of {page_size}: both have to be multiples of it"
                )
            before += shape.numel() // self.tokens * dtype.itemsize
        if before == 0:
            raise ValueError(f"a chunk without bytes: {self.shapes}")
        return before


def _token_dim(shape: torch.Size, fmt: MemoryFormat) -> int:
    if not shape:
        raise ValueError("a group without dimensions has no tokens")
    dim = fmt.token_dim()
    return dim if dim < len(shape) else 0


def _describe(shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]) -> str:
    return " and ".join(f"{list(shape)} of {dtype}" for shape, dtype in zip(shapes, dtypes, strict=False))
