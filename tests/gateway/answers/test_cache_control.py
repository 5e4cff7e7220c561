"""What a request's Cache-Control header says, and which kept answers it accepts."""

import pytest

from splitinference_gateway.client_requests.cache_control import CacheControl


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ([], CacheControl()),
        ([""], CacheControl()),
        (["no-store"], CacheControl(no_store=True)),
        (["No-Cache"], CacheControl(no_cache=True)),
        (["max-age=60"], CacheControl(max_age=60)),
        (['max-age = "60"'], CacheControl(max_age=60)),
        (["max-age=60, max-age=5"], CacheControl(max_age=5)),
        (["max-age=60", "no-store"], CacheControl(max_age=60, no_store=True)),
        (["max-age"], CacheControl(max_age=0)),
        (["max-age=-1"], CacheControl(max_age=0)),
        (["max-age=1.5"], CacheControl(max_age=0)),
        (["max-age=soon"], CacheControl(max_age=0)),
        (["max-age=99999999999999999999"], CacheControl(max_age=2**31)),
        (["max-age=٣"], CacheControl(max_age=0)),
        (["min-fresh=10"], CacheControl(min_fresh=10)),
        (["min-fresh=x"], CacheControl(min_fresh=2**31)),
        (["only-if-cached,max-stale"], CacheControl(only_if_cached=True)),
        (['private="no-store", no-transform'], CacheControl()),
        ([", , ,"], CacheControl()),
        (["a" * 2000], CacheControl(no_store=True)),
    ],
)
def test_directives_are_read_and_the_stricter_one_counts(headers: list[str], read: CacheControl) -> None:
    assert CacheControl.read(headers) == read


@pytest.mark.parametrize(
    ("control", "age", "left", "accepted"),
    [
        (CacheControl(), 1e6, 1.0, True),
        (CacheControl(no_cache=True), 0.0, 100.0, False),
        (CacheControl(no_store=True), 0.0, 100.0, False),
        (CacheControl(max_age=0), 0.1, 100.0, False),
        (CacheControl(max_age=10), 10.0, 100.0, True),
        (CacheControl(max_age=10), 10.5, 100.0, False),
        (CacheControl(min_fresh=10), 0.0, 9.0, False),
        (CacheControl(min_fresh=10), 0.0, 10.0, True),
        (CacheControl(only_if_cached=True), 5.0, 5.0, True),
    ],
)
def test_an_answer_is_accepted_by_age_and_by_what_is_left(control: CacheControl, age: float, left: float, accepted: bool) -> None:
    assert control.accepts(age, left) is accepted
