"""Refinement with a detector's heads: in batches, on a GPU, and as a CUDA graph."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from noise import images_of
from repeated import Repeated
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.image_list import ImageList

from iounet.modeling import ImageFeatures
from iounet.modeling.refinement import GraphedRefinement, PackedBoxes, _refine_padded, as_function
from iounet.postprocess import postprocess, suppress

pytestmark = pytest.mark.usefixtures("one_thread")


class Synchronisations(TorchDispatchMode):
    """Record the operators that would synchronise with a GPU, because Python or a shape depends on their result."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags:
            self.operators.append(str(function).rpartition(".")[0])
        return function(*args, **kwargs or {})


ENERGY = {
    "MODEL.ENERGY_HEAD.LOSS": "nce",
    "TEST.REFINE.OBJECTIVE": "energy",
    "TEST.REFINE.COORDINATES": "center_size",
    "TEST.REFINE.STEP_POLICY": "backtracking",
    "TEST.REFINE.NUM_STEPS": 4,
    "TEST.REFINE.STEP_SIZE": 0.01,
    "TEST.REFINE.SIZE_STEP_SIZE": 0.02,
}


class TestRefinement:
    @pytest.fixture
    def before(self, opinionated):
        """A detector, its features of two images, and its detections before refinement."""
        detector = opinionated()
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            candidates = detector.detect(features, detector.propose(features))
        return detector, features, [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]

    @pytest.mark.parametrize("make", ["build_tiny", "opinionated"])
    def test_raises_the_mean_predicted_iou_and_changes_only_boxes(self, make, request):
        detector = request.getfixturevalue(make)()
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            candidates = detector.detect(features, detector.propose(features))
        kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
        refined = detector.refine(features, kept, detector.postprocessing.refinement)
        for old, new in zip(kept, refined, strict=True):
            assert len(old) > 5
            assert torch.equal(old.labels, new.labels)
            assert torch.equal(old.scores, new.scores)
            assert not torch.equal(old.boxes, new.boxes)
            assert new.ious.mean() > old.ious.mean()

    def test_the_ious_are_those_of_the_boxes(self, before):
        detector, features, kept = before
        with torch.no_grad():
            predict_iou = as_function(detector.iou_head, features.maps, PackedBoxes.of(kept, features.sizes))
            torch.testing.assert_close(
                predict_iou(torch.cat([detections.boxes for detections in kept])),
                torch.cat([detections.ious for detections in kept]),
            )
            refined = detector.refine(features, kept, detector.postprocessing.refinement)
            torch.testing.assert_close(
                predict_iou(torch.cat([detections.boxes for detections in refined])),
                torch.cat([detections.ious for detections in refined]),
            )

    def test_by_energy(self, opinionated):
        """The energy rises, and the IoUs are the calibrated predictions of the IoU head for the boxes."""
        detector = opinionated(ENERGY)
        detector.iou_head.calibration.copy_(torch.tensor([0.8, -0.3]))
        with torch.no_grad():
            torch.nn.init.normal_(detector.energy_head.predictor.weight, std=0.5)
            features = detector.extract(images_of((64, 64), (50, 80)))
            candidates = detector.detect(features, detector.propose(features))
        kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
        refined = detector.refine(features, kept, detector.postprocessing.refinement)
        start = PackedBoxes.of(kept, features.sizes)
        energy = as_function(detector.energy_head, features.maps, start)
        with torch.no_grad():
            before, after = (energy(torch.cat([d.boxes for d in of])) for of in (kept, refined))
            (again,) = zip(*[(d.ious,) for d in detector.predict_ious(features, refined)], strict=True)
        moved = torch.cat([(new.boxes != old.boxes).any(1) for old, new in zip(kept, refined, strict=True)])
        assert moved.sum() > 5 and (after[moved] > before[moved]).all()
        torch.testing.assert_close(torch.cat(again), torch.cat([d.ious for d in refined]))
        torch.testing.assert_close(torch.cat([d.ious_before for d in refined]), torch.cat([d.ious for d in kept]))
        path = list(detector.refinement_path(features, kept, detector.postprocessing.refinement))
        assert len(path) == 5
        for one, other in zip(path[-1], refined, strict=True):
            assert torch.equal(one.boxes, other.boxes) and torch.equal(one.ious, other.ious)

    def test_a_box_of_unknown_class_uses_the_energy_of_the_likeliest_class(self, opinionated):
        detector = opinionated(ENERGY)
        with torch.no_grad():
            torch.nn.init.normal_(detector.energy_head.predictor.weight, std=0.5)
            features = detector.extract(images_of((64, 64)))
            (candidates,) = detector.detect(features, detector.propose(features))
            outputs = detector.iou_head.all_classes(features.maps, [candidates.boxes], features.sizes)
        likeliest = outputs[:, 1:].argmax(1) + 1
        assert len(likeliest.unique()) > 1
        options = detector.postprocessing.refinement
        unknown, known = (
            detector.refine(features, [replace(candidates, labels=labels)], options)[0]
            for labels in (torch.zeros_like(likeliest), likeliest)
        )
        assert torch.equal(unknown.boxes, known.boxes)
        assert not unknown.labels.any()

    def test_by_energy_without_an_energy_head(self, before):
        detector, features, kept = before
        options = replace(detector.postprocessing.refinement, objective="energy")
        with pytest.raises(ValueError, match="needs a detector with an energy head"):
            detector.refine(features, kept, options)

    @pytest.mark.parametrize("step_size", [50.0, 1e6])
    def test_boxes_stay_in_their_image_with_any_step_size(self, before, step_size):
        detector, features, kept = before
        options = replace(detector.postprocessing.refinement, step_size=step_size)
        refined = detector.refine(features, kept, options)
        for old, new, (height, width) in zip(kept, refined, features.sizes, strict=True):
            assert (new.boxes >= 0).all() and (new.boxes[:, 2] <= width).all() and (new.boxes[:, 3] <= height).all()
            assert (new.boxes[:, 2:] > new.boxes[:, :2]).all()
            unmoved = (new.boxes == old.boxes).all(1)
            assert torch.equal(new.ious[unmoved], old.ious[unmoved])

    @pytest.mark.parametrize("step_policy", ["every", "best", "backtracking"])
    @pytest.mark.parametrize("coordinates", ["pixels", "relative"])
    def test_steps_of_length_0_change_nothing(self, before, step_policy, coordinates):
        detector, features, kept = before
        options = replace(
            detector.postprocessing.refinement, step_size=0.0, step_policy=step_policy, coordinates=coordinates
        )
        for old, new in zip(kept, detector.refine(features, kept, options), strict=True):
            assert len(old) > 5
            for name in ("boxes", "labels", "scores"):
                assert torch.equal(getattr(old, name), getattr(new, name))
            torch.testing.assert_close(old.ious, new.ious)

    def test_0_steps_change_nothing(self, before):
        detector, features, kept = before
        refined = detector.refine(features, kept, replace(detector.postprocessing.refinement, num_steps=0))
        for old, new in zip(kept, refined, strict=True):
            assert all(getattr(old, name) is getattr(new, name) for name in ("boxes", "labels", "scores", "ious"))
            assert new.ious_before is old.ious and new.index.tolist() == list(range(len(old)))

    def test_only_the_check_for_active_boxes_would_synchronise(self, before, monkeypatch):
        detector, features, kept = before
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # pool in fixed shapes, as on a GPU
        with Synchronisations() as found:
            detector.refine(features, kept, detector.postprocessing.refinement)
        # Only on a CPU does each step check whether any box is still active.
        assert found.operators == ["aten._local_scalar_dense"] * detector.postprocessing.refinement.num_steps

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    @pytest.mark.parametrize("settings", [None, ENERGY], ids=["iou", "energy"])
    def test_does_not_synchronise_with_a_gpu(self, opinionated, settings):
        detector = opinionated(settings).cuda()
        with torch.no_grad():
            features = detector.extract([image.cuda() for image in images_of((64, 64), (50, 80))])
            candidates = detector.detect(features, detector.propose(features))
        kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
        torch.cuda.set_sync_debug_mode("error")
        try:
            detector.refine(features, kept, detector.postprocessing.refinement)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("objective", ["iou", "energy"])
    @pytest.mark.parametrize("step_size", [0.5, 1e6])
    def test_padded_refinement_of_cuda_graphs_agrees(self, opinionated, step_size, objective, monkeypatch):
        detector = opinionated({"MODEL.ENERGY_HEAD.LOSS": "nce"})
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            candidates = detector.detect(features, detector.propose(features))
        kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
        options = replace(detector.postprocessing.refinement, step_size=step_size, objective=objective)
        kept = [kept[0], kept[1][:-3]]
        assert len(kept[0]) != len(kept[1])
        graphed = GraphedRefinement(detector.iou_head, detector.energy_head)
        graphed._graphs = repeated = Repeated(partial(_refine_padded, detector.iou_head, detector.energy_head))
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)  # pool in fixed shapes, as on a GPU
            for order in ([0, 1], [1, 0]):
                swapped = [kept[image] for image in order]
                placed = ImageFeatures(
                    {name: maps[order] for name, maps in features.maps.items()},
                    ImageList(features.batch.tensors[order], [features.sizes[image] for image in order]),
                    [features.original_sizes[image] for image in order],
                )
                expected = detector.refine(placed, swapped, options)
                start = PackedBoxes.of(swapped, placed.sizes)
                *ious, refined = graphed(placed.maps, start, placed.batch.tensors.shape[-2:], options)
                for one, other in zip(start.unpack(swapped, *ious, refined), expected, strict=True):
                    assert len(one) == len(other) > 5
                    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
                    torch.testing.assert_close(one.ious, other.ious, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(one.ious_before, other.ious_before, rtol=1e-4, atol=1e-4)
                    assert torch.equal(one.stops, other.stops)
        assert repeated.recordings == 1

    def test_one_graph_serves_any_number_of_boxes_up_to_a_hundred(self, before, monkeypatch):
        detector, features, kept = before
        graphed = GraphedRefinement(detector.iou_head, detector.energy_head)
        graphed._graphs = repeated = Repeated(partial(_refine_padded, detector.iou_head, detector.energy_head))
        options = detector.postprocessing.refinement
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        for counts in ([6, 1], [0, 3], [6, 6]):
            some = [of_image[:count] for of_image, count in zip(kept, counts, strict=True)]
            start = PackedBoxes.of(some, features.sizes)
            *_, refined = graphed(features.maps, start, features.batch.tensors.shape[-2:], options)
            assert len(refined.boxes) == sum(counts)
        assert repeated.recordings == 1
        many = [of_image[torch.arange(101) % len(of_image)] for of_image in kept]
        graphed(features.maps, PackedBoxes.of(many, features.sizes), features.batch.tensors.shape[-2:], options)
        assert repeated.recordings == 2

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    @pytest.mark.parametrize("settings", [None, ENERGY], ids=["iou", "energy"])
    def test_a_cuda_graph_agrees(self, opinionated, settings):
        detector = opinionated(settings).cuda()
        options = detector.postprocessing.refinement
        for seed, sizes in enumerate([[(64, 64), (50, 80)], [(80, 50)], [(64, 64), (50, 80)], [(50, 80), (64, 64)]]):
            with torch.no_grad():
                features = detector.extract([image.cuda() for image in images_of(*sizes, seed=seed)])
                candidates = detector.detect(features, detector.propose(features))
                kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
                detector.cuda_graphs = False
                expected = detector.refine(features, kept, options)
                detector.cuda_graphs = True
                detector.refine(features, kept, options)  # records the graph
                torch.cuda.set_sync_debug_mode("error")
                try:
                    refined = detector.refine(features, kept, options)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            for one, other in zip(refined, expected, strict=True):
                assert len(one) > 5
                torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
                torch.testing.assert_close(one.ious, other.ious, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(one.ious_before, other.ious_before, rtol=1e-4, atol=1e-4)
        assert len(detector._graphed_refinement._graphs._recorded) == 2

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    def test_a_cuda_graph_uses_changed_and_moved_weights(self, opinionated):
        detector = opinionated().cuda()
        with torch.no_grad():
            features = detector.extract([image.cuda() for image in images_of((64, 64))])
            candidates = detector.detect(features, detector.propose(features))
            kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]

            def ious(cuda_graphs):
                detector.cuda_graphs = cuda_graphs
                return detector.refine(features, kept, detector.postprocessing.refinement)[0].ious_before

            first = ious(True)
            detector.iou_head.predictor.bias.add_(0.5)
            torch.testing.assert_close(ious(True), first + 0.25, rtol=1e-4, atol=1e-4)
            detector.cpu().cuda()
            detector.iou_head.predictor.bias.sub_(0.5)
            torch.testing.assert_close(ious(True), first, rtol=1e-4, atol=1e-4)

    def test_parameters_accumulate_no_gradient(self, before):
        detector, features, kept = before
        detector.refine(features, kept, detector.postprocessing.refinement)
        assert all(parameter.grad is None for parameter in detector.parameters())

    def test_the_path_ends_at_the_result_of_refine(self, before):
        detector, features, kept = before
        options = detector.postprocessing.refinement
        path = list(detector.refinement_path(features, kept, options))
        assert len(path) == options.num_steps + 1
        for first, last, given, refined in zip(
            path[0], path[-1], kept, detector.refine(features, kept, options), strict=True
        ):
            assert torch.equal(first.boxes, given.boxes) and torch.equal(first.ious, refined.ious_before)
            for name in ("boxes", "ious", "ious_before", "stops", "index"):
                assert torch.equal(getattr(last, name), getattr(refined, name))

    def test_refined_before_nms(self, opinionated):
        detector = opinionated()
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            found = detector.detect(features, detector.propose(features))
        options = replace(detector.postprocessing, refine_before_nms=True)
        refined = [suppress(one, options.nms) for one in detector.refine(features, found, options.refinement)]
        expected = postprocess(found, options, refine=partial(detector.refine, features))
        for a, b in zip(refined, expected, strict=True):
            assert len(a) > 5 and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
