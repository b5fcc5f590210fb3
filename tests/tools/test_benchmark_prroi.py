import json


def test_measures_all_peers_and_writes_what_it_prints(run_tool, tmp_path):
    output = tmp_path / "folder" / "figures.json"
    document = tmp_path / "page.md"
    document.write_text("above\n<!-- cpu figures -->\nold\n<!-- cpu figures -->\nbelow\n")
    done = run_tool(
        "benchmark_prroi.py", "--workloads", "tiny", "--seconds", 0, "--output", output, "--document", document
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert figures["copy_gigabytes_per_second"] > 0
    rows = figures["rows"]
    assert [(row["layout"], row["operation"]) for row in rows] == [
        (layout, operation)
        for layout in ("channels-last", "contiguous")
        for operation in ("forward", "forward + feature gradient", "RoI gradient")
    ]
    for row in rows:
        peers = {"prroi_pool", "reference"} | (
            set() if row["operation"] == "RoI gradient" else {"roi_align(2)", "roi_align(0)"}
        )
        assert set(row["milliseconds"]) == peers
        assert min(row["milliseconds"].values()) > row["floor_milliseconds"] > 0
    table = [line for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert len(table) == len(rows)
    page = document.read_text()
    assert page.startswith("above\n<!-- cpu figures -->\n") and page.endswith("\n<!-- cpu figures -->\nbelow\n")
    assert "\n".join(table) in page and "old" not in page


def test_a_gpu_that_is_not_there(call_tool):
    assert call_tool("benchmark_prroi.py", "--original", "somewhere") == (
        "--original needs --device cuda: the authors' kernels are CUDA alone"
    )
