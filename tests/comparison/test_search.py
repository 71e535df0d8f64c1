import pytest

from megaselect.comparison.search import MicroBatchSearch, search_after


@pytest.mark.parametrize("start", [1, 8, 64])
@pytest.mark.parametrize("limit", [0, 1, 7, 43, 700])
def test_the_answer_trains_and_is_close_to_the_limit(start, limit):
    search, outcomes = MicroBatchSearch(start), []
    while (size := search.next_size()) is not None:
        outcomes.append((size, "" if size <= limit else "out of memory"))
        search.record(*outcomes[-1])
        assert search_after(start, outcomes).next_size() == search.next_size()
    assert search.largest <= limit
    assert limit - search.largest <= max(limit // 16, 1)
    assert search.beyond == "out of memory"


def test_what_never_fails_ends_too():
    search, sizes = MicroBatchSearch(8), []
    while (size := search.next_size()) is not None:
        sizes.append(size)
        search.record(size, "")
    assert (sizes[:3], len(sizes), search.largest, search.beyond) == ([8, 16, 32], 20, 8 * 2**19, "")
