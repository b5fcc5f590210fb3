import dataclasses

import pytest
import torch
from noise import images_of
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import MultiScaleRoIAlign

from iounet import Detections, build_detector, get_cfg
from iounet.boxes import best_iou
from iounet.postprocess import suppress
from iounet.training.checkpoint import load_detector_weights, select_categories

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_iou"}


def target(*boxes_and_labels):
    return {
        "boxes": torch.tensor([box for box, _ in boxes_and_labels], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label in boxes_and_labels], dtype=torch.int64),
        "image_id": 17,  # the data loader adds this key to the tensors
    }


OBJECTS = target(((4, 6, 30, 40), 1), ((20, 20, 60, 50), 3), ((0, 0, 64, 64), 2))
NO_OBJECTS = target()


class TestNames:
    """Parameter names allow torchvision's published weights to be loaded."""

    def test_parameters_are_torchvisions_except_for_the_iou_head(self):
        cfg = get_cfg()
        cfg.MODEL.NUM_CLASSES = 90
        with torch.device("meta"):
            ours = build_detector(cfg).state_dict()
            theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
        assert {key: value.shape for key, value in ours.items() if not key.startswith("iou_head.")} == {
            key: value.shape
            for key, value in theirs.items()
            if not key.endswith("num_batches_tracked")  # counters of norms that are not frozen
        }
        assert {key for key in ours if key.startswith("iou_head.")} == {
            f"iou_head.{layer}.{parameter}"
            for layer in ("mlp.fc6", "mlp.fc7", "predictor")
            for parameter in ("weight", "bias")
        } | {"iou_head.calibration"}

    def test_published_coco_weights_load(self):
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

    def test_outputs_are_close_to_torchvisions_with_the_same_weights(self):
        """The features agree; RoIAlign converges to PrRoI pooling as the number of its sampling points grows."""
        torch.manual_seed(1)
        size = {"min_size": 256, "max_size": 320}
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91, **size).eval()
        cfg = get_cfg()
        cfg.MODEL.NUM_CLASSES = 90
        cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE = size.values()
        ours = build_detector(cfg).eval()
        load_detector_weights(ours, theirs.state_dict(), "stock.pth", need_iou_head=False)
        # Boxes lie inside the image: beyond the border, RoIAlign repeats the last pixel and PrRoI pooling reads zeros.
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
        # DistributedDataParallel hangs if a parameter gets no gradient.
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

    def test_the_iou_loss_is_weighted(self, build_tiny):
        losses = []
        for weight in (1.0, 3.0):
            detector = build_tiny({"MODEL.IOU_HEAD.LOSS_WEIGHT": weight}).train()
            torch.manual_seed(0)  # samplers and jitter
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

    def test_targets_are_required_and_not_modified(self, build_tiny):
        detector = build_tiny().train()
        with pytest.raises(ValueError, match="needs targets in training mode"):
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

    def test_other_modules_and_their_statistics_do_not_change(self, detector):
        before = {key: value.clone() for key, value in detector.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
        for seed in range(2):
            detector(images_of((64, 64), seed=seed), [OBJECTS])["loss_iou"].backward()
            optimizer.step()
        changed = {key for key, value in detector.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {key for key in before if key.startswith("iou_head.")} - {"iou_head.calibration"}

    @pytest.mark.parametrize("candidates", [0, 16])
    def test_an_energy_head_trains_with_the_iou_head(self, build_tiny, candidates):
        settings = {"MODEL.STANDALONE": True, "MODEL.ENERGY_HEAD.LOSS": "nce"}
        detector = build_tiny(settings | {"MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE": candidates}).train()
        losses = detector(images_of((64, 64), (48, 80)), [OBJECTS, NO_OBJECTS])
        assert set(losses) == {"loss_iou", "loss_energy"}
        sum(losses.values()).backward()
        trained = {name.split(".")[0] for name, parameter in detector.named_parameters() if parameter.grad is not None}
        assert trained == {"iou_head", "energy_head"}

    def test_its_batch_norm_stays_in_evaluation_mode(self, detector, build_tiny):
        norm = "backbone.body.bn1"
        assert not detector.get_submodule(norm).training
        assert detector.iou_head.training
        assert build_tiny().train().get_submodule(norm).training
        assert not detector.eval().iou_head.training


class TestBeyondThePaper:
    """An energy head, and an IoU head that learns from the detector's own candidates."""

    SETTINGS = {"MODEL.ENERGY_HEAD.LOSS": "nce+", "MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE": 16}

    @pytest.mark.parametrize("targets", [[OBJECTS, NO_OBJECTS], [NO_OBJECTS, NO_OBJECTS]])
    def test_losses_and_gradients(self, build_tiny, targets):
        detector = build_tiny(self.SETTINGS).train()
        losses = detector(images_of((64, 64), (48, 80)), targets)
        assert set(losses) == LOSSES | {"loss_energy"}
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        assert [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_candidates_lower_the_iou_predicted_for_background(self, build_tiny):
        """Train on one image with one small object; the other proposals show background."""
        predicted = {}
        for candidates in (0, 16):
            detector = build_tiny({"MODEL.STANDALONE": True, "MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE": candidates}).train()
            trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
            optimizer = torch.optim.Adam(trainable, lr=1e-3)
            torch.manual_seed(0)
            images, small = images_of((64, 64)), target(((4, 6, 16, 18), 1))
            for _ in range(20):
                optimizer.zero_grad()
                detector(images, [small])["loss_iou"].backward()
                optimizer.step()
            detector.eval()
            with torch.no_grad():
                features = detector.extract(images)
                (found,) = detector.detect(features, detector.propose(features))
            background = best_iou(found.boxes, found.labels, small["boxes"], small["labels"]) < 0.1
            predicted[candidates] = found.ious[background & (found.labels == 1)].mean().item()
        assert predicted[0] > 0.5 and predicted[16] < 0.35

    def test_the_loss_weight_is_a_factor(self, build_tiny):
        of_weight = {}
        for weight in (0.5, 2.0):
            detector = build_tiny(self.SETTINGS | {"MODEL.ENERGY_HEAD.LOSS_WEIGHT": weight}).train()
            torch.manual_seed(3)
            of_weight[weight] = detector(images_of((64, 64)), [OBJECTS])["loss_energy"].item()
        assert of_weight[2.0] == pytest.approx(4 * of_weight[0.5], rel=1e-4)


class TestInference:
    SIZES = ((64, 64), (50, 80), (90, 41), (213, 160))

    def test_boxes_lie_in_their_images_and_are_sorted_by_descending_score(self, opinionated):
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
        # An image of twice the size is resized to the same input.
        detector = opinionated()
        (image,) = images_of((64, 64))
        small, large = (
            detector([given])[0] for given in (image, image.repeat_interleave(2, 1).repeat_interleave(2, 2))
        )
        torch.testing.assert_close(large.boxes, 2 * small.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(large.scores, small.scores)

    def test_a_batch_agrees_with_single_images(self, opinionated):
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

    def test_images_with_and_without_detections_in_a_batch(self, opinionated):
        detector = opinionated()
        features = detector.extract(images_of((64, 64), (64, 64)))
        candidates = detector.detect(features, detector.propose(features))
        options = detector.postprocessing
        kept = [suppress(candidates[0], options.nms), suppress(candidates[1], options.nms)[:0]]
        refined = detector.refine(features, kept, options.refinement)
        assert [len(detections) for detections in refined] == [len(kept[0]), 0]
        alone = detector.extract(images_of((64, 64), (64, 64))[:1])
        refined_alone = detector.refine(alone, kept[:1], options.refinement)
        torch.testing.assert_close(refined[0].boxes, refined_alone[0].boxes, rtol=0, atol=1e-2)

    def test_inference_is_the_sequence_of_its_steps(self, opinionated):
        detector = opinionated()
        images = images_of((64, 64), (50, 80))
        with torch.no_grad():
            features = detector.extract(images)
            candidates = detector.detect(features, detector.propose(features))
            kept = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
            refined = detector.refine(features, kept, detector.postprocessing.refinement)
            expected = features.to_original(refined)
        for found, wanted in zip(detector(images), expected, strict=True):
            assert torch.equal(found.boxes, wanted.boxes)
            assert torch.equal(found.ious, wanted.ious)

    def test_the_configuration_chooses_the_kind_of_nms(self, opinionated):
        scores = {
            nms: opinionated({"TEST.NMS": nms, "TEST.REFINE.NUM_STEPS": 0})(images_of((64, 64)))[0].scores
            for nms in ("greedy", "soft", "iou_guided")
        }
        # IoU-guided NMS passes on the best score of each cluster; soft-NMS keeps the best score and drops no box.
        assert scores["greedy"][0] == scores["soft"][0] == scores["iou_guided"][0]
        assert len(scores["soft"]) > len(scores["greedy"])
