"""How chunks lie in pages, whatever their groups and however many tokens they have."""

from __future__ import annotations

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat

from maru_lmcache.layout import ChunkLayout

FULL = torch.Size([2, 3, 16, 8])


def layout(shapes: list[torch.Size], dtypes: list[torch.dtype], page_size: int = 1 << 20) -> ChunkLayout:
    return ChunkLayout(shapes, dtypes, MemoryFormat.KV_2LTD, page_size)


def test_a_token_has_the_bytes_of_all_groups() -> None:
    assert layout([FULL], [torch.float16]).bytes_per_token == 2 * 3 * 8 * 2
    two = layout([FULL, torch.Size([1, 5, 16, 4])], [torch.float16, torch.int8])
    assert two.bytes_per_token == 2 * 3 * 8 * 2 + 5 * 4


def test_a_cut_shortens_every_group_and_nothing_else() -> None:
    two = layout([FULL, torch.Size([1, 5, 16, 4])], [torch.float16, torch.float16])
    assert two.cut(7) == [torch.Size([2, 3, 7, 8]), torch.Size([1, 5, 7, 4])]


def test_tokens_are_counted_by_the_first_dimension_of_a_shape_that_lacks_the_usual_one() -> None:
    flat = layout([torch.Size([256])], [torch.float32])
    assert flat.cut(8) == [torch.Size([8])]
    assert flat.tokens_in(32) == 8


def test_the_tokens_of_a_request_are_those_of_its_shape() -> None:
    one = layout([FULL], [torch.float16])
    for tokens in (1, 16, 17):
        assert one.tokens_of(one.cut(tokens), [torch.float16]) == tokens


@pytest.mark.parametrize(
    ("shapes", "dtypes"),
    [
        ([torch.Size([2, 4, 16, 8])], [torch.float16]),
        ([torch.Size([2, 3, 16])], [torch.float16]),
        ([FULL], [torch.bfloat16]),
        ([FULL, FULL], [torch.float16, torch.float16]),
        ([], []),
    ],
)
def test_a_request_for_another_shape_is_refused(shapes: list[torch.Size], dtypes: list[torch.dtype]) -> None:
    with pytest.raises(ValueError, match=r"chunks have \[2, 3, 16, 8\] of torch.float16 or fewer tokens"):
        layout([FULL], [torch.float16]).tokens_of(shapes, dtypes)


def test_only_whole_tokens_up_to_a_chunk_are_a_chunk() -> None:
    one = layout([FULL], [torch.float16])
    assert [one.tokens_in(nbytes) for nbytes in (96, 96 * 16)] == [1, 16]
    assert [one.tokens_in(nbytes) for nbytes in (0, 95, 97, 96 * 17)] == [None] * 4


def test_groups_that_would_begin_between_elements_are_refused() -> None:
    odd = torch.Size([1, 1, 16, 3])
    with pytest.raises(ValueError, match="group 1 of a chunk has elements of 4 bytes"):
        layout([odd, FULL], [torch.int8, torch.float32])
    # The other way round only the pages could be wrong.
    layout([FULL, odd], [torch.float32, torch.int8])
    with pytest.raises(ValueError, match="group 0 of a chunk has elements of 4 bytes"):
        layout([FULL, odd], [torch.float32, torch.int8], page_size=16 * (2 * 3 * 8 * 4 + 3) + 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "each group needs a shape and a dtype"),
        ([FULL, torch.Size([2, 3, 15, 8])], "the same number of tokens"),
        ([torch.Size([2, 3, 0, 8])], "at least one"),
        ([torch.Size([])], "without dimensions"),
        ([torch.Size([2, 0, 16, 8])], "without bytes"),
        ([torch.Size([2, 3, 1 << 16, 8])], "in a page of"),
    ],
)
def test_groups_that_make_no_chunk_are_refused(shapes: list[torch.Size], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(shapes, [torch.float16] * len(shapes))
