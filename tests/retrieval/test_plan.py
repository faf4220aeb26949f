"""Which index is planned for which budget, and what is refused before anything is embedded."""

from __future__ import annotations

import math
from pathlib import Path

import faiss
import numpy as np
import pytest

from cclm.retrieval.plan import (
    EXACT_BELOW,
    Budget,
    _left_in_group,
    bytes_of,
    check_factory,
    check_parameters,
    check_search,
    free_memory,
    ladder,
    list_count,
    milliseconds,
    size,
    size_text,
)

MILLION, DIM = 1_000_000, 256


def test_exact_search_of_few_rows_whatever_the_memory_may_hold() -> None:
    assert [plan.factory for plan in ladder(EXACT_BELOW - 1, DIM, Budget())] == ["Flat"]
    assert ladder(EXACT_BELOW, DIM, Budget())[0].factory != "Flat"


def test_each_next_plan_is_smaller_and_all_fit_the_memory() -> None:
    plans = ladder(MILLION, DIM, Budget(max_memory=4 * 10**9))
    assert plans.pop().factory == "Flat"  # which finds what is near whatever the vectors are
    sizes = [plan.bytes_per_vector for plan in plans]
    assert len(plans) >= 5 and sizes == sorted(sizes, reverse=True)
    assert all(plan.build_memory <= 4 * 10**9 for plan in plans)
    assert {"PQ64x4fs,Refine(SQ8)", "RaBitQfs4"} <= {plan.factory.partition(",")[2] for plan in plans}


def test_less_memory_cuts_the_ladder_from_its_top() -> None:
    every, half = (
        [plan.factory.partition(",")[2] for plan in ladder(MILLION, DIM, Budget(max_memory=memory))]
        for memory in (4 * 10**9, 512 * 10**6)
    )
    every.pop()  # Flat
    assert half == every[len(every) - len(half) :] and 0 < len(half) < len(every)
    with pytest.raises(ValueError, match=r"no index of 1000000 vectors .* the smallest, IVF.* give that as --max-mem"):
        ladder(MILLION, DIM, Budget(max_memory=100 * 10**6))


def test_few_rows_that_do_not_fit_as_they_are() -> None:
    wide = Budget(max_memory=400 * 10**6)
    assert all(plan.build_memory <= 400 * 10**6 for plan in ladder(EXACT_BELOW - 1, 768, wide))
    assert "Refine(SQ8)" in ladder(EXACT_BELOW - 1, 768, wide)[0].factory
    with pytest.raises(ValueError, match="no index of 1000 vectors .* the smallest, Flat"):
        ladder(1000, 64, Budget(max_memory=10**6))


def test_a_factory_of_ones_own_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="the smallest, HNSW32, takes .*: give that as --max-memory"):
        ladder(EXACT_BELOW, 64, Budget(factory="HNSW32", max_memory=100 * 10**6))


def test_a_graph_only_where_single_queries_must_be_fast() -> None:
    assert ladder(MILLION, DIM, Budget(max_latency=0.5))[0].factory == "HNSW32,SQ8"
    assert not any("HNSW" in plan.factory for plan in ladder(MILLION, DIM, Budget(max_latency=50)))


@pytest.mark.parametrize("dim", [256, 512, 250, 10, 7])
def test_planned_sizes_are_those_of_the_indices(dim: int) -> None:
    for plan in ladder(MILLION, dim, Budget(max_memory=10**11, max_latency=0.5)):
        shared = 4 * dim * list_count(MILLION, dim, 10**11) / MILLION * ("IVF" in plan.factory)
        assert plan.bytes_per_vector == pytest.approx(bytes_of(plan.factory, dim) + shared, rel=0.12, abs=3)


def test_a_factory_of_ones_own_is_the_whole_ladder() -> None:
    (plan,) = ladder(1000, 64, Budget(factory="IVF8,SQ8", search="nprobe=2"))
    assert plan.factory == "IVF8,SQ8" and plan.search == "nprobe=2" and math.isnan(plan.expected_recall)
    assert "recall not known" in str(plan) and "IVF8,SQ8 with nprobe=2" in str(plan)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("IVF4x", "is no index of width 64"),
        ("IVF8,PQ7x4fs", "is no index of width 64"),
        ("IVF99999999999999999999,Flat", "numbers go up to"),
        ("IVF2000,Flat", "2000 lists for 1000 vectors"),
        ("IVF64,PQ8x24", "8x24 asks for codebooks that are too large"),
        ("RQ4000x12", "4000x12 asks for codebooks that are too large"),
        ("IMI2x16,SQ8", "2x16 asks for codebooks that are too large"),
        ("HNSW1000000", "numbers other than of lists go up to"),
        ("NSG16", "has no codes of a known size"),
    ],
)
def test_a_factory_that_faiss_does_not_know(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ladder(1000, 64, Budget(factory=factory))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_recall": 0}, "min_recall is 0"),
        ({"min_recall": 95}, "min_recall is 95"),
        ({"max_latency": -1}, "max_latency is -1"),
        ({"max_latency": math.nan}, "max_latency is nan"),
        ({"max_memory": -5}, "max_memory is -5"),
        ({"search": "nprobe=3"}, "of no chosen index"),
        ({"factory": "IVF8,SQ8", "search": "nprobes=3"}, "is none of nprobe"),
    ],
)
def test_a_budget_that_is_none(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**given)


@pytest.mark.parametrize(
    "search", ["nprobe=0", "nprobe=-1", "nprobe=1e99", "k_factor_rf=100000", "nprobe", "verbose=1"]
)
def test_search_parameters_that_would_take_any_amount(search: str) -> None:
    with pytest.raises(ValueError, match="search parameter"):
        check_search(search)


def test_search_parameters_that_an_index_has_not() -> None:
    check_parameters("IVF8,PQ16x4fs,Refine(SQ8)", "nprobe=4,k_factor_rf=8", 64)
    with pytest.raises(ValueError, match=r"'efSearch=16' do not fit an index 'IVF8,SQ8'"):
        check_parameters("IVF8,SQ8", "efSearch=16", 64)


def test_an_empty_index_of_a_kind_is_for_inner_products() -> None:
    index = check_factory("IVF8,SQ8", 64)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT and index.ntotal == 0 and index.d == 64
    assert bytes_of("HNSW16,SQ8", 64) == pytest.approx(64 + 4 * 33 + 12, rel=0.1)


def test_sizes_and_durations_as_people_write_them() -> None:
    assert [size(text) for text in ("512MB", "2GB", "300MiB", "1e9", "1.5 kb", "7")] == [
        512 * 10**6, 2 * 10**9, 300 * 2**20, 10**9, 1500, 7,
    ]  # fmt: skip
    assert [milliseconds(text) for text in ("5", "5ms", "0.2s")] == [5, 5, 200]
    assert [size_text(count) for count in (512 * 10**6, 2.4 * 10**9)] == ["512 MB", "2.4 GB"]
    for wrong in ("", "MB", "-1MB", "5 elephants", "1e999GB"):
        with pytest.raises(ValueError, match="is no size"):
            size(wrong)
    for wrong in ("", "5 min", "-1"):
        with pytest.raises(ValueError, match="is no duration"):
            milliseconds(wrong)


def test_lists_grow_with_the_root_of_rows_and_no_more_than_memory_trains() -> None:
    counts = [list_count(rows, DIM, 10**11) for rows in (10**5, 10**6, 10**7, 10**8)]
    assert counts == sorted(set(counts)) and all(np.log2(count) % 1 == 0 for count in counts)
    assert list_count(10**8, DIM, 500 * 10**6) < counts[-1]


@pytest.mark.parametrize(
    ("controllers", "most", "used"),
    [("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_a_container_leaves_less_than_the_machine(tmp_path: Path, controllers: str, most: str, used: str) -> None:
    listing, mounted = tmp_path / "cgroup", tmp_path / "mounted"
    listing.write_text(f"3:cpu:/\n4:{controllers}:/outer/inner\n")
    inner = mounted / controllers / "outer" / "inner"
    inner.mkdir(parents=True)
    assert _left_in_group(listing, mounted) == math.inf
    for folder, limit in ((inner, "max" if not controllers else str(2**63 - 4096)), (inner.parent, "1000000")):
        (folder / most).write_text(f"{limit}\n")
        (folder / used).write_text("400000\n")
        (folder / "memory.stat").write_text("anon 7\ninactive_file 100000\n")
    assert _left_in_group(listing, mounted) == 700_000
    assert 0 < free_memory() < 2**50


def test_what_training_a_factory_of_ones_own_takes_is_counted() -> None:
    few, many = (ladder(10**5, DIM, Budget(factory=f"PCA64,IVF{lists},SQ8"))[0].build_memory for lists in (64, 2048))
    assert many - few > 100 * 10**6
    assert ladder(10**5, DIM, Budget(factory="Flat"))[0].build_memory > 4 * DIM * 10**5
