"""The table of kernel timings says what the result files say; to mend: python dev/update_kernel_table.py."""

import pytest

from dev import update_kernel_table


def test_the_table_is_that_of_the_results():
    path = update_kernel_table.ROOT / "kernels" / "README.md"
    assert path.read_text() == update_kernel_table.page(update_kernel_table.read_results(), path.read_text())


def test_every_result_names_its_machine_and_versions():
    results = update_kernel_table.read_results()
    assert results
    for result in results:
        assert {"processor", "threads", "torch", "python"} <= set(result["machine"])
        assert {row["shape"] for row in result["timings"]} <= set(result["shapes"])


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="has no"):
        update_kernel_table.page([], "# kernels\n")
