"""The measured numbers of docs/benchmarks.md; see figures_of_results.py."""

from figure_sources import (
    BOTH,
    CPUS,
    FIRST,
    FORWARD,
    KERNELS,
    LARGE_RATIOS,
    LAST,
    ROIS,
    a_piece,
    backward,
    bounds,
    exported,
    faster,
    first,
    kernel_row,
    median,
    peak,
    pooling,
    ratio,
)

FIGURES = {
    "docs/benchmarks.md": [
        (
            "is {:.1f} to {:.0f} times as fast as torchvision's `roi_align` with 2 × 2 points in channels-last layout "
            "and {:.1f} to {:.0f} times as fast in contiguous layout",
            *faster("cpu", LAST, FORWARD, BOTH),
            *faster("cpu", FIRST, FORWARD, BOTH),
        ),
        (
            "which take {:.0f} to {:.0f} times as long",
            *LARGE_RATIOS,
        ),
        (
            "takes {:.2f} to {:.2f} times as long as torchvision's Faster R-CNN",
            *(ratio(name, "whole") for name in CPUS),
        ),
        ("and {:.2f} times as long on an H200", ratio("detector_cuda", "whole")),
        ("takes {:.0f} ms per image", a_piece("refine detections, 100 an image", 10000)),
        ("takes {:.2f} times as long as PyTorch to refine 10 boxes.", exported("ONNX Runtime", 10)),
        (
            "takes {:.2f} times as long as PyTorch to refine 10 boxes and {:.2f} times for 100, and needs {:.0f} "
            "instead of {:.0f} MiB of memory",
            exported("ONNX Runtime", 10),
            exported("ONNX Runtime", 100),
            peak("ONNX Runtime"),
            peak("PyTorch"),
        ),
        (
            "is {:.0f} times as fast as `roi_align` with 2 × 2 points in channels-last layout and {:.0f} times",
            *(faster("cpu", layout, FORWARD, workload="512 RoIs of 14")[0] for layout in (LAST, FIRST)),
        ),
        (
            "it is {:.0f} and {:.0f} times as fast",
            *(faster("cpu", layout, BOTH, workload="512 RoIs of 14")[0] for layout in (LAST, FIRST)),
        ),
        (
            "for large RoIs ({:.1f} to {:.1f} times)",
            *bounds(
                (
                    *faster("cpu", LAST, FORWARD, BOTH, workload="large"),
                    *faster("cpu", FIRST, FORWARD, BOTH, workload="large"),
                )
            ),
        ),
        ("in contiguous layout ({:.1f} times)", faster("cpu", FIRST, FORWARD, workload="refinement")[0]),
        (
            "it takes {:.1f} times as long as the forward pass in channels-last layout and {:.1f} times",
            *(first("cpu", layout, ROIS) / first("cpu", layout, FORWARD) for layout in (LAST, FIRST)),
        ),
        (
            "forward pass is {:.1f} to {:.1f} times as fast, and forward with the feature gradient {:.1f} to {:.1f} "
            "times",
            *faster("cuda", LAST, FORWARD, without=["large"]),
            *faster("cuda", LAST, BOTH, without=["large"]),
        ),
        (
            "the factors are {:.1f} to {:.1f} and {:.1f} to {:.1f}.",
            *faster("cuda", FIRST, FORWARD, without=["large"]),
            *faster("cuda", FIRST, BOTH, without=["large"]),
        ),
        (
            "The RoI gradient takes {:.1f} to {:.1f} times as long as the forward pass in contiguous layout (the aim "
            "was at most 1.5), and {:.1f} to {:.1f} times in channels-last layout",
            *backward("cuda", FIRST),
            *backward("cuda", LAST),
        ),
        (
            "`roi_align` takes {:.1f} to {:.1f} ms",
            *bounds(
                times["roi_align(0)"]
                for layout in (LAST, FIRST)
                for times in pooling("cuda_nvcc_kernels", layout, FORWARD, "large").values()
            ),
        ),
        (
            "pixels take {:.0f} to {:.0f} times as long as with `roi_align`",
            *LARGE_RATIOS,
        ),
        (
            "the authors' kernels took {:.2f} ms for the forward pass, {:.2f} ms with the feature "
            "gradient, and {:.1f} ms for the RoI gradient: {:.1f}, {:.1f} and {:.0f} times as long",
            *(first("cuda_nvcc_kernels", FIRST, operation, "original") for operation in (FORWARD, BOTH, ROIS)),
            *(
                first("cuda_nvcc_kernels", FIRST, operation, "original") / first("cuda", FIRST, operation)
                for operation in (FORWARD, BOTH, ROIS)
            ),
        ),
        ("the first workload {:.1f} to {:.1f} times as fast", *bounds(before / after for before, after in KERNELS)),
        ("| {:.3f} → {:.3f} |", *kernel_row(LAST, FORWARD)),
        ("| {:.3f} → {:.3f} |", *kernel_row(FIRST, FORWARD)),
        ("| {:.3f} → {:.3f} |", *kernel_row(LAST, BOTH)),
        ("| {:.2f} → {:.3f} |", *kernel_row(FIRST, BOTH)),
        ("| {:.3f} → {:.3f} |", *kernel_row(LAST, ROIS)),
        ("| {:.3f} → {:.3f} |", *kernel_row(FIRST, ROIS)),
        (
            "for an image, and {:.2f} to {:.2f} times for a training step",
            *(ratio(name, "training step") for name in CPUS),
        ),
        (
            "it takes {:.2f} and {:.2f} times as long",
            *(ratio("detector_cuda", stage) for stage in ("whole", "training step")),
        ),
        (
            "saves {:.0f} ms against RoIAlign",
            median("detector_cpu", "pooling of the proposals", detector="Faster R-CNN")
            - median("detector_cpu", "pooling of the proposals"),
        ),
        (
            "most of the {:.0f} ms",
            median("detector_cpu", "predicted IoU of the candidates") + median("detector_cpu", "refinement"),
        ),
        (
            "IoU-Net takes {:.2f} times as long for an image and {:.2f} times for a training step",
            *(ratio("detector_cpu_newer", stage) for stage in ("whole", "training step")),
        ),
        ("and takes {:.1f} ms", median("detector_cuda", "refinement")),
        ("and {:.1f} ms [without]", median("detector_cuda_without_graphs", "refinement")),
        (
            "take {:.1f} ms as one CUDA graph instead of {:.1f} ms without",
            median("detector_energy_cuda", "refinement"),
            median("detector_energy_cuda_without_graphs", "refinement"),
        ),
        (
            "An image takes {:.1f} ms instead of {:.1f} ms, {:.2f} times as long",
            median("detector_energy_cuda", "whole"),
            median("detector_energy_cuda_without_graphs", "whole"),
            ratio("detector_energy_cuda", "whole"),
        ),
        ("takes {:.2f} times as long as a whole step of Faster R-CNN", ratio("detector_energy_cuda", "training step")),
    ],
}

ALLOWED = {
    "docs/benchmarks.md": [
        ("at 2.50 GHz", "the name of the processor"),
        ("one run of 0.04 s for each call", "a setting"),
        ("the aim was at most 1.5", "a goal"),
        ("measured for 1 s each", "a setting"),
    ],
}
