import dataclasses
from dataclasses import replace
from functools import partial

import pytest
import torch
from repeated import Repeated
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from iounet import Detections, build_detector, get_cfg
from iounet.config import ConfigError
from iounet.modeling import ImageFeatures, Postprocessing, to_original
from iounet.modeling.refinement import BoxesOfImages, GraphedRefinement, _refine_padded
from iounet.training.checkpoint import load_detector_weights, select_categories

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_iou"}


def images_of(*sizes, seed=0):
    """Patches of noise, coarse enough to survive the network's strides."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator) for height, width in sizes]
    return [
        torch.nn.functional.interpolate(noise, size=size, mode="nearest")[0]
        for noise, size in zip(coarse, sizes, strict=True)
    ]


def target(*boxes_and_labels):
    return {
        "boxes": torch.tensor([box for box, _ in boxes_and_labels], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label in boxes_and_labels], dtype=torch.int64),
        "image_id": 17,  # as the loader gives it, beside the tensors
    }


OBJECTS = target(((4, 6, 30, 40), 1), ((20, 20, 60, 50), 3), ((0, 0, 64, 64), 2))
NO_OBJECTS = target()


class WaitsFor(TorchDispatchMode):
    """Notes the operators whose result Python, or the shape of a tensor, has to know."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags:
            self.operators.append(str(function).rpartition(".")[0])
        return function(*args, **kwargs or {})


@pytest.fixture
def opinionated(build_tiny):
    """A tiny detector whose scores, boxes and IoUs differ from box to box."""

    def build(settings=None):
        detector = build_tiny(settings)
        with torch.no_grad():
            detector.roi_heads.box_predictor.cls_score.weight.mul_(20)
            detector.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
            detector.iou_head.predictor.weight.mul_(20)
        return detector

    return build


class TestNames:
    """So that torchvision's published weights load."""

    def test_parameters_are_torchvisions_but_for_the_iou_head(self):
        cfg = get_cfg()
        cfg.MODEL.NUM_CLASSES = 90
        with torch.device("meta"):
            ours = build_detector(cfg).state_dict()
            theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
        assert {key: value.shape for key, value in ours.items() if not key.startswith("iou_head.")} == {
            key: value.shape
            for key, value in theirs.items()
            if not key.endswith("num_batches_tracked")  # of unfrozen norms
        }
        assert {key for key in ours if key.startswith("iou_head.")} == {
            f"iou_head.{layer}.{parameter}"
            for layer in ("mlp.fc6", "mlp.fc7", "predictor")
            for parameter in ("weight", "bias")
        }

    def test_published_weights_of_coco_load(self):
        torch.manual_seed(1)
        weights = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
        category_ids = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
        cfg = get_cfg()
        cfg.MODEL.NUM_CLASSES = 80
        detector = build_detector(cfg)
        load_detector_weights(detector, select_categories(weights, category_ids), "coco.pth", need_iou_head=False)
        loaded = detector.state_dict()
        for key, value in loaded.items():
            if key.startswith("roi_heads.box_predictor."):
                per_category = weights[key].reshape(91, -1)[torch.tensor([0, *category_ids])]
                assert torch.equal(value.reshape(81, -1), per_category), key
            elif not key.startswith("iou_head."):
                assert torch.equal(value, weights[key]), key

    def test_the_same_weights_give_nearly_what_they_give_torchvision(self):
        """The features are the same; PrRoI pooling is what RoIAlign tends to with more and more points."""
        torch.manual_seed(1)
        size = {"min_size": 256, "max_size": 320}
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91, **size).eval()
        cfg = get_cfg()
        cfg.MODEL.NUM_CLASSES = 90
        cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE = size.values()
        ours = build_detector(cfg).eval()
        load_detector_weights(ours, theirs.state_dict(), "stock.pth", need_iou_head=False)
        # Inside the image: beyond its border RoIAlign repeats the last pixel, where PrRoI pooling sees zeros.
        start, extent = 64 + 32 * torch.rand(50, 2), 16 + 80 * torch.rand(50, 2)
        boxes = [torch.cat([start, start + extent], 1)]

        def distance(a, b):
            return ((a - b).norm() / a.norm()).item()

        with torch.no_grad():
            features = ours.extract(images_of((256, 320)))
            batch, _ = theirs.transform(images_of((256, 320)))
            stock_features = theirs.backbone(batch.tensors)
            for name, stock_map in stock_features.items():
                assert distance(stock_map, features.maps[name]) < 1e-5
            precise = ours.roi_heads.box_roi_pool(features.maps, boxes, features.sizes)
            for sampling_ratio, tolerance in ((2, 0.05), (8, 0.005), (64, 1e-4)):
                roi_align = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio)
                assert distance(roi_align(stock_features, boxes, batch.image_sizes), precise) < tolerance
            aligned = theirs.roi_heads.box_roi_pool(stock_features, boxes, batch.image_sizes)
            stock_outputs = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(aligned))
            outputs = ours.roi_heads._predict(features.maps, boxes, features.sizes)
        for theirs_of_all, ours_of_all in zip(stock_outputs, outputs, strict=True):
            spread = theirs_of_all - theirs_of_all.mean(0)
            assert (theirs_of_all - ours_of_all).norm() < 0.1 * spread.norm()


class TestTraining:
    def test_losses_and_gradients(self, build_tiny):
        detector = build_tiny().train()
        losses = detector(images_of((64, 64), (48, 80)), [OBJECTS, NO_OBJECTS])
        assert set(losses) == LOSSES
        assert all(loss.dim() == 0 and torch.isfinite(loss) and loss > 0 for loss in losses.values())
        sum(losses.values()).backward()
        without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.requires_grad)
        for part in ("backbone.body.conv1", "backbone.fpn", "rpn", "roi_heads", "iou_head"):
            gradients = [p.grad for name, p in detector.named_parameters() if name.startswith(part)]
            assert any(gradient.abs().sum() > 0 for gradient in gradients), part

    def test_a_batch_without_any_object(self, build_tiny):
        # DistributedDataParallel hangs on a parameter that gets no gradient.
        detector = build_tiny().train()
        losses = detector(images_of((64, 64), (64, 64)), [NO_OBJECTS, NO_OBJECTS])
        assert set(losses) == LOSSES
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert losses["loss_iou"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
        sum(losses.values()).backward()
        assert [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_frozen_stages_get_no_gradient(self, build_tiny):
        detector = build_tiny({"MODEL.BACKBONE.TRAINABLE_LAYERS": 2, "MODEL.BACKBONE.NORM": "FrozenBN"}).train()
        sum(detector(images_of((64, 64)), [OBJECTS]).values()).backward()
        with_gradient = {
            name.split(".")[2] for name, p in detector.named_parameters() if p.grad is not None and "body" in name
        }
        assert with_gradient == {"layer3", "layer4"}

    def test_the_iou_loss_has_its_weight(self, build_tiny):
        losses = []
        for weight in (1.0, 3.0):
            detector = build_tiny({"MODEL.IOU_HEAD.LOSS_WEIGHT": weight}).train()
            torch.manual_seed(0)  # of the samplers and the jitter
            losses.append(detector(images_of((64, 64)), [OBJECTS])["loss_iou"].item())
        assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)

    def test_the_iou_heads_boxes_are_jittered_in_the_resized_image(self, build_tiny):
        detector = build_tiny({"INPUT.MIN_SIZE": 128, "INPUT.MAX_SIZE": 256}).train()
        calls, sample = [], detector.sample_iou_boxes

        def spy(boxes, image_sizes):
            calls.append(([boxes_in_image.tolist() for boxes_in_image in boxes], image_sizes))
            return sample(boxes, image_sizes)

        detector.sample_iou_boxes = spy
        detector(images_of((64, 64)), [OBJECTS])
        ((boxes, image_sizes),) = calls
        assert image_sizes == [(128, 128)]
        assert boxes == [[[8, 12, 60, 80], [40, 40, 120, 100], [0, 0, 128, 128]]]

    def test_targets_are_needed_and_left_as_they_were(self, build_tiny):
        detector = build_tiny().train()
        with pytest.raises(ValueError, match="in training mode the detector needs targets"):
            detector(images_of((64, 64)))
        given = {key: value.clone() if torch.is_tensor(value) else value for key, value in OBJECTS.items()}
        detector(images_of((64, 64)), [given])
        assert all(torch.equal(torch.as_tensor(given[key]), torch.as_tensor(OBJECTS[key])) for key in OBJECTS)


def test_on_every_device(opinionated, device):
    detector = opinionated().to(device)
    images = [image.to(device) for image in images_of((64, 64), (48, 80))]
    for found, image in zip(detector(images), images, strict=True):
        assert len(found) > 5
        assert {getattr(found, field.name).device.type for field in dataclasses.fields(Detections)} == {device.type}
        assert (found.boxes[:, 2] <= image.shape[2]).all() and (found.boxes[:, 3] <= image.shape[1]).all()
    targets = [{key: target[key].to(device) for key in ("boxes", "labels")} for target in (OBJECTS, NO_OBJECTS)]
    losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    assert set(losses) == LOSSES
    assert all(torch.isfinite(loss) for loss in losses.values())


class TestStandalone:
    @pytest.fixture
    def detector(self, build_tiny):
        return build_tiny({"MODEL.STANDALONE": True}).train()

    def test_only_the_iou_head_has_gradients(self, detector):
        losses = detector(images_of((64, 64), (48, 80)), [OBJECTS, NO_OBJECTS])
        assert set(losses) == {"loss_iou"}
        losses["loss_iou"].backward()
        for name, parameter in detector.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad == name.startswith("iou_head."), name

    def test_the_rest_does_not_change_its_statistics_included(self, detector):
        before = {key: value.clone() for key, value in detector.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
        for seed in range(2):
            detector(images_of((64, 64), seed=seed), [OBJECTS])["loss_iou"].backward()
            optimizer.step()
        changed = {key for key, value in detector.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {key for key in before if key.startswith("iou_head.")}

    def test_its_batch_norm_stays_in_inference_mode_where_a_joint_detectors_trains(self, detector, build_tiny):
        norm = "backbone.body.bn1"
        assert not detector.get_submodule(norm).training
        assert detector.iou_head.training
        assert build_tiny().train().get_submodule(norm).training
        assert not detector.eval().iou_head.training


class TestInference:
    SIZES = ((64, 64), (50, 80), (90, 41), (213, 160))

    def test_boxes_lie_in_their_images_by_falling_score(self, opinionated):
        detector = opinionated({"TEST.DETECTIONS_PER_IMAGE": 12})
        found = detector(images_of(*self.SIZES))
        assert len(found) == len(self.SIZES)
        for detections, (height, width) in zip(found, self.SIZES, strict=True):
            assert isinstance(detections, Detections)
            assert len(detections) == 12
            boxes = detections.boxes
            assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (detections.scores.diff() <= 0).all() and (detections.scores > 0.05).all()
            assert set(detections.labels.tolist()) <= {1, 2, 3}
            assert not boxes.requires_grad and not detections.ious.requires_grad

    def test_at_most_100_detections_by_default(self, opinionated):
        found = opinionated({"TEST.SCORE_THRESHOLD": 0.0, "TEST.NMS_THRESHOLD": 0.99, "MODEL.RPN.POST_NMS_TEST": 50})(
            images_of((64, 64))
        )
        assert len(found[0]) == 100

    def test_boxes_are_in_pixels_of_the_original_image(self, opinionated):
        # Doubled, an image is scaled back to the same resized one.
        detector = opinionated()
        (image,) = images_of((64, 64))
        small, large = (
            detector([given])[0] for given in (image, image.repeat_interleave(2, 1).repeat_interleave(2, 2))
        )
        torch.testing.assert_close(large.boxes, 2 * small.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(large.scores, small.scores)

    def test_a_batch_gives_what_its_images_give_alone(self, opinionated):
        detector = opinionated()
        images = images_of((64, 64), (64, 64), (64, 64), seed=1)
        for together, image in zip(detector(images), images, strict=True):
            (alone,) = detector([image])
            assert len(alone) > 5
            assert together.labels.tolist() == alone.labels.tolist()
            torch.testing.assert_close(together.scores, alone.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.boxes, alone.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(together.ious, alone.ious, rtol=0, atol=1e-4)

    def test_no_candidates(self, opinionated):
        for nms in ("greedy", "soft", "iou_guided"):
            found = opinionated({"TEST.SCORE_THRESHOLD": 1.0, "TEST.NMS": nms})(images_of((64, 64), (50, 80)))
            for detections in found:
                assert [tuple(getattr(detections, field.name).shape) for field in dataclasses.fields(Detections)] == [
                    (0, 4),
                    (0,),
                    (0,),
                    (0,),
                ]

    def test_one_image_with_detections_beside_one_without(self, opinionated):
        detector = opinionated()
        features = detector.extract(images_of((64, 64), (64, 64)))
        candidates = detector.detect(features, detector.propose(features))
        kept = [detector.suppress(candidates[0]), detector.suppress(candidates[1])[:0]]
        refined = detector.refine(features, kept)
        assert [len(detections) for detections in refined] == [len(kept[0]), 0]
        alone = detector.extract(images_of((64, 64), (64, 64))[:1])
        torch.testing.assert_close(refined[0].boxes, detector.refine(alone, kept[:1])[0].boxes, rtol=0, atol=1e-2)

    def test_the_inference_method_is_its_parts_in_a_line(self, opinionated):
        detector = opinionated()
        images = images_of((64, 64), (50, 80))
        with torch.no_grad():
            features = detector.extract(images)
            candidates = detector.detect(features, detector.propose(features))
            kept = [detector.suppress(candidates_in_image) for candidates_in_image in candidates]
            expected = to_original(features, detector.refine(features, kept))
        for found, wanted in zip(detector(images), expected, strict=True):
            assert torch.equal(found.boxes, wanted.boxes)
            assert torch.equal(found.ious, wanted.ious)

    def test_each_kind_of_nms_is_chosen_by_the_configuration(self, opinionated):
        scores = {
            nms: opinionated({"TEST.NMS": nms, "TEST.REFINE.STEPS": 0})(images_of((64, 64)))[0].scores
            for nms in ("greedy", "soft", "iou_guided")
        }
        # IoU-guided clusters hand on the best score of all; soft-NMS keeps the best box's too, and drops nothing.
        assert scores["greedy"][0] == scores["soft"][0] == scores["iou_guided"][0]
        assert len(scores["soft"]) > len(scores["greedy"])

    def test_an_unknown_nms(self):
        with pytest.raises(ValueError, match=r"unknown nms 'hard': TEST\.NMS is one of greedy, soft, iou_guided"):
            Postprocessing(nms="hard")


class TestRefinement:
    @pytest.fixture
    def before(self, opinionated):
        """The detector, its features of two images and its detections before refinement."""
        detector = opinionated()
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            candidates = detector.detect(features, detector.propose(features))
        return detector, features, [detector.suppress(candidates_in_image) for candidates_in_image in candidates]

    @pytest.mark.parametrize("make", ["build_tiny", "opinionated"])
    def test_it_raises_the_predicted_iou_on_average_and_moves_boxes_alone(self, make, request):
        detector = request.getfixturevalue(make)()
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            candidates = detector.detect(features, detector.propose(features))
        kept = [detector.suppress(candidates_in_image) for candidates_in_image in candidates]
        refined = detector.refine(features, kept)
        for old, new in zip(kept, refined, strict=True):
            assert len(old) > 5
            assert torch.equal(old.labels, new.labels)
            assert torch.equal(old.scores, new.scores)
            assert not torch.equal(old.boxes, new.boxes)
            assert new.ious.mean() > old.ious.mean()

    def test_the_ious_are_those_of_the_boxes(self, before):
        detector, features, kept = before
        with torch.no_grad():
            predict_iou = detector.iou_predictor(features, kept)
            torch.testing.assert_close(
                predict_iou(torch.cat([detections.boxes for detections in kept])),
                torch.cat([detections.ious for detections in kept]),
            )
            refined = detector.refine(features, kept)
            torch.testing.assert_close(
                predict_iou(torch.cat([detections.boxes for detections in refined])),
                torch.cat([detections.ious for detections in refined]),
            )

    @pytest.mark.parametrize("step_size", [50.0, 1e6])
    def test_boxes_stay_in_their_image_however_far_they_are_pushed(self, before, step_size):
        detector, features, kept = before
        refined = detector.refine(features, kept, replace(detector.postprocessing, step_size=step_size))
        for old, new, (height, width) in zip(kept, refined, features.sizes, strict=True):
            assert (new.boxes >= 0).all() and (new.boxes[:, 2] <= width).all() and (new.boxes[:, 3] <= height).all()
            assert (new.boxes[:, 2:] > new.boxes[:, :2]).all()
            unmoved = (new.boxes == old.boxes).all(1)
            assert torch.equal(new.ious[unmoved], old.ious[unmoved])

    @pytest.mark.parametrize("accept", ["every", "best", "rising"])
    @pytest.mark.parametrize("coordinates", ["pixels", "relative"])
    def test_steps_of_no_length_change_nothing(self, before, accept, coordinates):
        detector, features, kept = before
        options = replace(detector.postprocessing, step_size=0.0, accept=accept, coordinates=coordinates)
        for old, new in zip(kept, detector.refine(features, kept, options), strict=True):
            assert len(old) > 5
            for name in ("boxes", "labels", "scores"):
                assert torch.equal(getattr(old, name), getattr(new, name))
            torch.testing.assert_close(old.ious, new.ious)

    def test_no_steps_change_nothing(self, before):
        detector, features, kept = before
        assert detector.refine(features, kept, replace(detector.postprocessing, refinement_steps=0)) == kept

    def test_a_gpu_is_not_waited_for_within_it(self, before, monkeypatch):
        detector, features, kept = before
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # pools as a GPU does
        with WaitsFor() as waits:
            detector.refine(features, kept)
        # On a CPU each step looks whether any box is left; on a GPU none does.
        assert waits.operators == ["aten._local_scalar_dense"] * detector.postprocessing.refinement_steps

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    def test_a_gpu_that_would_be_waited_for_raises(self, opinionated):
        detector = opinionated().cuda()
        with torch.no_grad():
            features = detector.extract([image.cuda() for image in images_of((64, 64), (50, 80))])
            candidates = detector.detect(features, detector.propose(features))
        kept = [detector.suppress(candidates_in_image) for candidates_in_image in candidates]
        torch.cuda.set_sync_debug_mode("error")
        try:
            detector.refine(features, kept)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("step_size", [0.5, 1e6])
    def test_as_a_cuda_graph_would_compute_it(self, before, step_size, monkeypatch):
        detector, features, kept = before
        # All boxes of one image, as many as there may be, and fewer of the other.
        options = replace(detector.postprocessing, detections_per_image=max(map(len, kept)), step_size=step_size)
        kept = [kept[0], kept[1][:-3]]
        assert len(kept[0]) != len(kept[1])
        graphed = GraphedRefinement(detector.iou_head)
        graphed._graphs = repeated = Repeated(partial(_refine_padded, detector.iou_head))
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)  # pools as a GPU does
            for order in ([0, 1], [1, 0]):
                swapped = [kept[image] for image in order]
                placed = ImageFeatures(
                    {name: maps[order] for name, maps in features.maps.items()},
                    ImageList(features.batch.tensors[order], [features.sizes[image] for image in order]),
                    [features.original_sizes[image] for image in order],
                )
                expected = detector.refine(placed, swapped, options)
                start = BoxesOfImages.of(swapped, placed.sizes)
                found = graphed(placed.maps, start, placed.batch.tensors.shape[-2:], options)
                for boxes, ious, other in zip(*found, expected, strict=True):
                    torch.testing.assert_close(boxes[: len(other)], other.boxes, rtol=1e-4, atol=1e-3)
                    torch.testing.assert_close(ious[: len(other)], other.ious, rtol=1e-4, atol=1e-4)
        assert repeated.recordings == 1

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    def test_by_a_cuda_graph(self, opinionated):
        detector = opinionated().cuda()
        for seed, sizes in enumerate([[(64, 64), (50, 80)], [(80, 50)], [(64, 64), (50, 80)], [(50, 80), (64, 64)]]):
            with torch.no_grad():
                features = detector.extract([image.cuda() for image in images_of(*sizes, seed=seed)])
                candidates = detector.detect(features, detector.propose(features))
                kept = [detector.suppress(of_image) for of_image in candidates]
                detector.cuda_graphs = False
                expected = detector.refine(features, kept)
                detector.cuda_graphs = True
                detector.refine(features, kept)  # records
                torch.cuda.set_sync_debug_mode("error")
                try:
                    refined = detector.refine(features, kept)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            for one, other in zip(refined, expected, strict=True):
                assert len(one) > 5
                torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
                torch.testing.assert_close(one.ious, other.ious, rtol=1e-4, atol=1e-4)
        assert len(detector._graphs._graphs._recorded) == 2

    def test_parameters_gather_no_gradient(self, before):
        detector, features, kept = before
        detector.refine(features, kept)
        assert all(parameter.grad is None for parameter in detector.parameters())


class TestBeyondThePaper:
    @pytest.fixture
    def candidates(self, opinionated):
        """The detector, its features of two images and the candidates in them."""
        detector = opinionated()
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            return detector, features, detector.detect(features, detector.propose(features))

    def test_nms_ranked_by_class_score_times_iou(self, candidates):
        detector, _, _ = candidates
        boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20]])  # the first fits better, the second is surer
        pair = Detections(boxes, torch.ones(2).long(), torch.tensor([0.3, 0.9]), torch.tensor([0.9, 0.8]))
        by_iou = detector.suppress(pair)
        by_both = detector.suppress(pair, replace(detector.postprocessing, ranking="score_times_iou"))
        assert by_iou.boxes.tolist() == boxes[:1].tolist() and by_both.boxes.tolist() == boxes[1:].tolist()
        assert by_iou.scores.tolist() == by_both.scores.tolist() == pytest.approx([0.9])

    def test_refined_before_nms(self, candidates):
        detector, features, found = candidates
        refined = [detector.suppress(of_image) for of_image in detector.refine(features, found)]
        expected = detector.postprocess(features, found, replace(detector.postprocessing, refine_before_nms=True))
        for a, b in zip(refined, expected, strict=True):
            assert len(a) > 5 and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)

    def test_final_score_times_iou(self, candidates):
        detector, features, found = candidates
        plain = detector.postprocess(features, found)
        rescored = detector.postprocess(
            features, found, replace(detector.postprocessing, final_score="class_times_iou")
        )
        for a, b in zip(plain, rescored, strict=True):
            scores = a.scores * a.ious.clamp(0, 1)
            assert torch.equal(b.scores, scores.sort(descending=True).values)
            order = scores.argsort(descending=True, stable=True)
            assert torch.equal(b.boxes, a.boxes[order]) and not torch.equal(a.scores, b.scores)

    def test_the_path_leads_to_what_refine_returns(self, candidates):
        detector, features, found = candidates
        kept = [detector.suppress(of_image) for of_image in found]
        path = list(detector.refinement_path(features, kept))
        assert len(path) == detector.postprocessing.refinement_steps + 1
        for (at_start, _), (at_end, stops), before, refined in zip(
            path[0], path[-1], kept, detector.refine(features, kept), strict=True
        ):
            assert stops.shape == at_end.ious.shape
            assert torch.equal(at_start.boxes, before.boxes) and torch.equal(at_end.boxes, refined.boxes)

    def test_repeated_box_regression_is_the_box_branchs_own(self, opinionated):
        detector = opinionated({"TEST.SCORE_THRESHOLD": 0.0})
        with torch.no_grad():
            features = detector.extract(images_of((64, 64), (50, 80)))
            proposals = detector.propose(features)
            boxes, labels, _ = detector.roi_heads.candidates(features.maps, proposals, features.sizes)
            for label in (1, 2, 3):
                of_label = [torch.full((len(p),), label) for p in proposals]
                regressed = detector.roi_heads.regress(features.maps, proposals, of_label, features.sizes)
                for moved, of_image, its_labels in zip(regressed, boxes, labels, strict=True):
                    expected = of_image[its_labels == label]
                    assert len(expected) == len(moved) > 5
                    torch.testing.assert_close(moved, expected)

    def test_cross_entropy_bounds_the_predicted_iou(self, opinionated):
        detector = opinionated({"MODEL.IOU_HEAD.LOSS": "bce", "TEST.SCORE_THRESHOLD": 0.0})
        with torch.no_grad():
            detector.iou_head.predictor.weight.mul_(1000)
            features = detector.extract(images_of((64, 64)))
            (found,) = detector.detect(features, detector.propose(features))
        assert ((found.ious >= 0) & (found.ious <= 1)).all() and found.ious.min() < 0.1 and found.ious.max() > 0.9

    def test_an_unknown_loss_is_named(self, build_tiny):
        with pytest.raises(ConfigError, match=r"unknown loss 'l2': MODEL\.IOU_HEAD\.LOSS is smooth_l1 or bce"):
            build_tiny({"MODEL.IOU_HEAD.LOSS": "l2"})

    @pytest.mark.parametrize(
        ("field", "key"),
        [("ranking", "RANKING"), ("coordinates", r"REFINE\.COORDINATES"), ("final_score", "FINAL_SCORE")],
    )
    def test_unknown_choices_are_named(self, field, key):
        with pytest.raises(ValueError, match=rf"unknown {field} 'other': TEST\.{key} is one of"):
            Postprocessing(**{field: "other"})
