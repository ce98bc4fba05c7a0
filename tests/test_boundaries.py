from tests.building import Capture
from tracelab.structure import find_breaks


def boundary_of_orphan(capture: Capture) -> str | None:
    found = find_breaks(capture.traces())
    return found.filter(found["kind"] == "orphan_span")["boundary"][0]


def go_requests(*, overlap: bool) -> Capture:
    capture = Capture(sdk_language="go", parent_is_remote=False, service_instance_id="a")
    for number in range(10):
        at = 100 * number
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=20)
        for child in range(2):
            gap = 1 + child * (0.1 if overlap else 5)
            capture.span(number, 2 + child, 1, name="look", start=at + gap, duration=4)
    return capture.span(99, 5, 77, name="look", start=2000, duration=4)


def test_siblings_that_overlap_without_ids_leave_the_boundary_unknown():
    assert boundary_of_orphan(go_requests(overlap=True)) == "unknown"


def test_siblings_one_after_the_other_without_ids_stay_in_one_flow():
    assert boundary_of_orphan(go_requests(overlap=False)) == "same"


def test_siblings_on_a_thread_each_were_handed_over_by_their_missing_parent():
    capture = Capture(sdk_language="java", parent_is_remote=False)
    for number in range(3):
        capture.span(1, 2 + number, 77, name="find", start=number, thread_id=20 + number)
    assert boundary_of_orphan(capture) == "thread"


def test_siblings_on_one_thread_tell_no_hand_over():
    capture = Capture(sdk_language="java", parent_is_remote=False)
    for number in range(3):
        capture.span(1, 2 + number, 77, name="find", start=20 * number, thread_id=20)
    assert boundary_of_orphan(capture) == "same"


def boundaries_by_thread(*threads: int) -> list[str]:
    """Boundaries of orphans with one missing parent, each on a thread."""
    capture = Capture(sdk_language="java", parent_is_remote=False)
    for number, thread in enumerate(threads):
        capture.span(1, 2 + number, 77, name=f"step {number}", start=20 * number, thread_id=thread)
    found = find_breaks(capture.traces()).sort("span_id")
    return found.filter(found["kind"] == "orphan_span")["boundary"].to_list()


def test_the_one_on_another_thread_than_its_siblings_was_handed_over():
    assert boundaries_by_thread(20, 20, 31, 20) == ["same", "same", "thread", "same"]


def test_two_siblings_on_a_thread_each_do_not_tell_which_of_them_left():
    assert boundaries_by_thread(20, 31) == ["unknown", "unknown"]
    assert boundaries_by_thread(20) == ["unknown"]


def test_a_thread_that_the_request_ran_on_before_is_probably_the_lost_parents_too():
    capture = Capture(sdk_language="go", service_instance_id="a")
    capture.span(1, 1, kind="SERVER", name="GET", start=0, duration=50, task_id="7")
    capture.span(1, 3, 2, name="join", start=10, task_id="7", parent_is_remote=False)
    assert boundary_of_orphan(capture) == "same"
