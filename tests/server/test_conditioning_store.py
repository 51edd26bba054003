"""Laws of the handle cache and of blends, on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from carv.errors import Reason
from carv.v1 import conditioning_pb2
from carv_server.conditioning import ConditioningStore, blend_handle, source_handles
from carv_server.errors import RequestError
from carv_server.replicas.protocol import Conditioning
from carv_server.store import StoreConfig
from carv_server.teachers.protocol import Classes, Prompts, RawTensors, Unconditional
from carv_server.validation.sources import check_blend


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _row(value: float, size: int = 4) -> dict[str, torch.Tensor]:
    return {"embedding": torch.full((size,), value)}


def test_a_handle_lives_so_long_after_its_last_use() -> None:
    clock = Clock()
    store = ConditioningStore(StoreConfig(seconds_to_live=10.0), clock)
    assert store.put("h", "teacher", _row(1.0)) == 1010.0
    for _ in range(5):
        clock.now += 9.0
        assert store.get("h", "teacher") is not None
    clock.now += 10.0
    assert store.get("h", "teacher") is None
    clock.now -= 5.0
    assert store.get("h", "teacher") is None, "once expired it is gone"


def test_putting_again_starts_its_life_anew() -> None:
    clock = Clock()
    store = ConditioningStore(StoreConfig(seconds_to_live=10.0), clock)
    store.put("h", "teacher", _row(1.0))
    clock.now += 8.0
    assert store.put("h", "teacher", _row(1.0)) == 1018.0
    clock.now += 8.0
    assert store.get("h", "teacher") is not None


def test_the_least_recently_used_goes_first() -> None:
    store = ConditioningStore(StoreConfig(max_entries=3), Clock())
    for handle in "abc":
        store.put(handle, "teacher", _row(1.0))
    store.get("a", "teacher")
    store.put("d", "teacher", _row(1.0))
    kept = {handle for handle in "abcd" if store.get(handle, "teacher") is not None}
    assert kept == {"a", "c", "d"}


def test_bytes_are_bounded_and_given_back() -> None:
    clock = Clock()
    store = ConditioningStore(StoreConfig(max_bytes=100, seconds_to_live=10.0), clock)
    store.put("a", "teacher", _row(1.0, 12))  # 48 bytes
    store.put("b", "teacher", _row(1.0, 12))
    store.put("b", "teacher", _row(1.0, 13))  # in place of itself: 48 + 52
    assert store.get("a", "teacher") is not None
    store.put("c", "teacher", _row(1.0, 1))  # 104: b is the oldest use
    assert store.get("b", "teacher") is None
    assert store.get("a", "teacher") is not None and store.get("c", "teacher") is not None
    clock.now += 11.0
    assert store.get("a", "teacher") is None and store.get("c", "teacher") is None
    store.put("d", "teacher", _row(1.0, 25))  # all of the 100 that expiry gave back
    assert store.get("d", "teacher") is not None


def test_one_entry_above_the_bound_is_kept_alone() -> None:
    store = ConditioningStore(StoreConfig(max_bytes=10), Clock())
    store.put("small", "teacher", _row(1.0, 1))
    store.put("large", "teacher", _row(1.0, 100))
    assert store.get("small", "teacher") is None
    assert store.get("large", "teacher") is not None


def test_teachers_do_not_see_each_others_handles() -> None:
    """Nor do they push them out: the same weights under two ids have the same handles."""
    store = ConditioningStore(StoreConfig(), Clock())
    store.put("h", "one", _row(1.0))
    assert store.get("h", "two") is None
    store.put("h", "two", _row(1.0))
    assert store.get("h", "one") is not None and store.get("h", "two") is not None


def test_handles_are_a_function_of_teacher_and_content_alone() -> None:
    tensor = torch.arange(4.0)
    sources = [
        Prompts(("a", "b")),
        Prompts(("ab", "")),
        Classes((1, 2, 12)),
        Unconditional(),
        RawTensors({"x": tensor}),
        RawTensors({"x": tensor.reshape(2, 2)}),
        RawTensors({"y": tensor}),
        RawTensors({"x": tensor + 1}),
    ]
    handles = [h for digest in ("d1", "d2") for s in sources for h in source_handles(digest, s)]
    assert len(set(handles)) == len(handles) == 2 * 12
    again = [h for digest in ("d1", "d2") for s in sources for h in source_handles(digest, s)]
    assert again == handles
    two = RawTensors({"y": tensor, "x": tensor + 1})
    turned = RawTensors({"x": tensor + 1, "y": tensor})
    assert source_handles("d", two) == source_handles("d", turned)
    assert source_handles("d1", Prompts(("b", "a"))) == handles[1::-1]


def _resolver(rows: Mapping[str, dict[str, torch.Tensor]]) -> Callable[[str], Conditioning | None]:
    return lambda handle: Conditioning(handle, rows[handle]) if handle in rows else None


ROWS = {
    "p": {"embedding": torch.tensor([1.0, -2.0]), "pooled": torch.tensor([0.5])},
    "q": {"embedding": torch.tensor([3.0, 4.0]), "pooled": torch.tensor([-1.5])},
    "longer": {"embedding": torch.zeros(3), "pooled": torch.zeros(1)},
}


def _blend(handles: list[str], weights: list[float]) -> conditioning_pb2.BlendSource:
    return conditioning_pb2.BlendSource(handles=handles, weights=weights)


def test_a_blend_is_the_convex_combination() -> None:
    weights, tensors = check_blend(_blend(["p", "q"], [0.25, 0.75]), _resolver(ROWS))
    assert weights == {"p": 0.25, "q": 0.75}
    assert torch.equal(tensors["embedding"], torch.tensor([2.5, 2.5]))
    assert torch.equal(tensors["pooled"], torch.tensor([-1.0]))


def test_a_blends_weights_are_divided_by_their_sum_and_added_by_handle() -> None:
    weights, tensors = check_blend(_blend(["p", "q", "p"], [0.2502, 0.5004, 0.25]), _resolver(ROWS))
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-15)
    assert weights["p"] == pytest.approx(0.5002 / 1.0006, abs=1e-15)
    assert tensors["pooled"].item() == pytest.approx(
        0.5 * weights["p"] - 1.5 * weights["q"], abs=1e-6
    )


def test_a_blends_handle_forgets_the_order_of_its_parts() -> None:
    one, _ = check_blend(_blend(["p", "q"], [0.25, 0.75]), _resolver(ROWS))
    turned, _ = check_blend(_blend(["q", "p"], [0.75, 0.25]), _resolver(ROWS))
    other, _ = check_blend(_blend(["q", "p"], [0.25, 0.75]), _resolver(ROWS))
    assert blend_handle("d", one) == blend_handle("d", turned)
    assert blend_handle("d", one) != blend_handle("d", other)
    assert blend_handle("d", one) != blend_handle("e", one)


def test_conditionings_of_other_shapes_do_not_blend() -> None:
    with pytest.raises(RequestError) as caught:
        check_blend(_blend(["p", "longer"], [0.5, 0.5]), _resolver(ROWS))
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [v.field for v in caught.value.violations] == ["source.blend.handles"]
