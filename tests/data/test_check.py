"""Every rule of the check, on small data sets that break it. The repaired copies must break no rule."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from iounet.data import CocoDataset
from iounet.data.annotations import read_annotations
from iounet.data.check import main

ORIENTATION = 0x0112


def rules_and_ids(findings):
    return [(finding["rule"], finding["id"]) for finding in findings]


def test_a_clean_set_has_no_faults_and_no_notes(write_set, clean, check):
    code, report, text = check(*write_set(clean))
    assert code == 0
    assert report["faults"] == report["notes"] == []
    assert "faults (training refuses them): none" in text
    assert "3 images, 4 objects, 1 crowd\n" in text


def test_numbers(write_set, clean, check):
    # Areas 30.5 and 25 (sides 5.5 and 5), 200 (14.1) and 240 (15.5); the crowd is not counted.
    code, report, text = check(write_set(clean)[0])
    assert [(c["id"], c["name"], c["objects"]) for c in report["classes"]] == [
        (0, "cat", 1),
        (17, "dog", 2),
        (90, "kite", 1),
    ]
    assert [(s["from"], s["below"]) for s in report["sizes"] if s["objects"]] == [(0, 8), (12, 16)]
    assert [s["objects"] for s in report["sizes"] if s["objects"]] == [2, 2]
    assert report["coco_sizes"] == {"small": 4, "medium": 0, "large": 0}
    assert "images not opened" in text


def test_sizes_as_coco_counts_them(tmp_path, check):
    sides = [31.9, 32, 95.9, 96, 600]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 1000, "height": 1000}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [0, 0, side, side]}
            for number, side in enumerate(sides, start=1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    _, report, text = check(tmp_path / "set.json")
    assert report["coco_sizes"] == {"small": 1, "medium": 2, "large": 2}
    assert [s["from"] for s in report["sizes"] if s["objects"]] == [24, 32, 64, 96, 512]
    assert "COCO: 1 small (below 32), 2 medium, 2 large (from 96)" in text


def test_harmless_findings_are_notes(write_set, content, check):
    code, report, text = check(*write_set(content))
    assert code == 0
    assert report["faults"] == []
    assert rules_and_ids(report["notes"]) == [
        ("annotation id 0", 0),
        ("box overhangs its image", 9),
        ("image without objects", 3),
    ]
    assert "image 3 (empty.png): training uses it as background" in text


BAD_BOXES = [
    ([1, 2, 0, 5], "box has no area"),
    ([1, 2, 3, -5], "box has no area"),
    ([16, 0, 5, 5], "box lies outside its image"),
    ([1, 2, math.nan, 5], "box is not finite"),
    ([1, 2, 3, math.inf], "box is not finite"),
    ([1, 2, 10**400, 5], "box is not finite"),
    ([1, 2, 3], "box is not four numbers"),
    ([1, 2, 3, "4"], "box is not four numbers"),
    (None, "box is not four numbers"),
]
# A change to the clean set, the rule that it breaks, and the id in the finding.
BAD_ENTRIES = [
    (lambda c: c["annotations"][1].update(id=5), "duplicate annotation id", 5),
    (lambda c: c["annotations"][1].pop("id"), "no usable id", None),
    (lambda c: c["annotations"].append("box"), "no usable id", None),
    (lambda c: c["annotations"][0].update(image_id=8), "unknown image", 5),
    (lambda c: c["annotations"][0].update(image_id=[0]), "no usable image_id", 5),
    (lambda c: c["annotations"][0].update(category_id=1), "unknown category", 5),
    (lambda c: c["images"][0].update(file_name="../a.png"), "leaves the image folder", 7),
    (lambda c: c["images"][0].update(file_name="/a.png"), "leaves the image folder", 7),
    (lambda c: c["images"][0].pop("file_name"), "no usable file_name", 7),
    (lambda c: c["images"].append(c["images"][0]), "duplicate image id", 7),
    (lambda c: c["categories"].append(c["categories"][0]), "duplicate category id", 90),
]


@pytest.mark.parametrize(
    ("spoil", "rule", "id_"),
    [(lambda c, bbox=bbox: c["annotations"][0].update(bbox=bbox), rule, 5) for bbox, rule in BAD_BOXES] + BAD_ENTRIES,
)
def test_faults_of_the_annotations(write_set, clean, check, tmp_path, spoil, rule, id_):
    spoil(clean)
    annotation_file, _ = write_set(clean)
    fixed = tmp_path / "fixed.json"
    code, report, text = check(annotation_file, "--fix", fixed)
    assert code == 1
    assert rules_and_ids(report["faults"]) == [(rule, id_)]
    assert f"\n  {rule}: 1\n    {report['faults'][0]['text']}\n" in text
    assert len(report["changes"]) == 1
    assert report["changes"][0]["text"] in text
    code, report, _ = check(fixed)
    assert (code, report["faults"]) == (0, [])
    read_annotations(fixed)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: c["images"][1].update(id=7), "image id 7 of empty.png is already used by a.png"),
        (lambda c: c["categories"][1].update(id=90), "category id 90 of cat is already used by kite"),
        (lambda c: c["categories"][1].pop("name"), "category 0: 'name' must be a string"),
        (lambda c: c["images"][1].update(width=0), "image 3 (empty.png): 'width' is 0"),
        (lambda c: [image.update(file_name="/a") for image in c["images"]], "no usable image would remain"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), "annotation 5 of image 0: iscrowd is 'no'; write 0, or 1"),
    ],
)
def test_faults_that_need_a_decision_are_not_repaired(write_set, clean, tmp_path, capsys, spoil, reason):
    spoil(clean)
    assert main([str(write_set(clean)[0]), "--fix", str(tmp_path / "fixed.json")]) == 1
    error = capsys.readouterr().err
    assert "fixed.json: not written, because this fault needs your decision: " in error
    assert reason in error
    assert not (tmp_path / "fixed.json").exists()


def test_several_faults_of_one_annotation_are_repaired_in_turn(write_set, clean, check, tmp_path):
    # The annotation without an id is reported only for that; once it has an id, its box without area is found.
    del clean["annotations"][0]["id"]
    clean["annotations"][0]["bbox"] = [1, 1, 0, 0]
    _, report, _ = check(write_set(clean)[0], "--fix", tmp_path / "fixed.json")
    assert [change["rule"] for change in report["changes"]] == ["annotation renumbered", "annotation removed"]
    assert [a["id"] for a in json.loads((tmp_path / "fixed.json").read_text())["annotations"]] == [10, 9, 6, 11]


def test_an_unusable_annotation_with_a_duplicate_id_is_not_renumbered(write_set, clean, check, tmp_path):
    clean["annotations"][1].update(id=5, bbox=[1, 1, 0, 0])
    _, report, _ = check(write_set(clean)[0], "--fix", tmp_path / "fixed.json")
    assert rules_and_ids(report["faults"]) == [("duplicate annotation id", 5), ("box has no area", 5)]
    assert rules_and_ids(report["changes"]) == [("annotation removed", 5)]


def test_annotations_of_a_faulty_image_are_not_reported(write_set, clean, check):
    clean["images"][0]["width"] = 0
    _, report, text = check(write_set(clean)[0])
    assert rules_and_ids(report["faults"]) == [("no usable width", 7)]
    assert "3 images, 2 objects, 0 crowds, 3 unusable annotations" in text


def test_the_copy_differs_only_by_the_repairs(write_set, clean, check, tmp_path):
    clean = {"info": {"year": 2018}, **clean, "licenses": [{"id": 1, "name": "é"}]}
    clean["images"][0]["coco_url"] = "http://x"
    clean["annotations"][0]["segmentation"] = [[1.5, 2.25, 3, 4]]
    clean["annotations"][1].update(id=5, note="kept")
    clean["annotations"][2]["bbox"] = [30.5, -2, 20, 12]  # overhangs; training clips it
    clean["annotations"][4]["bbox"] = [1, 1, 0, 5]
    expected = json.loads(json.dumps(clean))
    expected["annotations"][1]["id"] = 12
    del expected["annotations"][4]
    annotation_file, _ = write_set(clean)
    before = annotation_file.read_bytes()
    _, report, text = check(annotation_file, "--fix", tmp_path / "fixed.json")
    repaired = json.loads((tmp_path / "fixed.json").read_text())
    assert json.dumps(repaired) == json.dumps(expected)
    assert annotation_file.read_bytes() == before
    assert rules_and_ids(report["changes"]) == [("annotation removed", 11), ("annotation renumbered", 5)]
    assert "an earlier annotation has the same id; give each annotation a unique id (now 12)" in text


def save(path, size, **options):
    """Save an image of noise, which compresses badly, so that a truncated file lacks pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(path, **options)


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def spoil_missing(path):
    path.unlink()


def spoil_text(path):
    path.write_text("not a picture")


def spoil_truncated(path):
    save(path, (40, 30), format="JPEG")
    path.write_bytes(path.read_bytes()[:-600])


def spoil_16_bits(path):
    Image.fromarray(np.full((30, 40), 30000, dtype=np.uint16)).save(path, format="PNG")


def spoil_link(path):
    target = path.parent.parent / "outside.png"
    save(target, (40, 30))
    path.unlink()
    path.symlink_to(target)


def spoil_rotated(path):
    # As stored by a rotated camera: 30 wide and 40 high in the file, displayed 40 wide and 30 high.
    save(path, (30, 40), format="JPEG", exif=exif(6))


BAD_FILES = [
    (spoil_missing, "missing image", "no such image; restore it"),
    (spoil_text, "unreadable image", "cannot be read as an image"),
    (spoil_truncated, "unreadable image", "may be truncated. Copy or download it again"),
    (spoil_16_bits, "more than 8 bits per channel", "PIL mode I;16"),
    (spoil_link, "leaves the image folder", "a link points outside the image folder, to "),
    (spoil_rotated, "annotated as rotated by EXIF", "40 wide and 30 high, is that of the rotated image"),
]


@pytest.mark.parametrize(("spoil", "rule", "words"), BAD_FILES)
def test_faults_of_the_images(write_set, clean, check, tmp_path, spoil, rule, words):
    annotation_file, folder = write_set(clean)
    spoil(folder / "a.png")
    fixed = tmp_path / "fixed.json"
    code, report, text = check(annotation_file, folder, "--fix", fixed)
    assert code == 1
    assert rules_and_ids(report["faults"]) == [(rule, 7)]
    assert words in report["faults"][0]["text"]
    assert report["faults"][0]["text"] in text
    # Image 7 has three annotations: 10, 9 and the crowd 6.
    assert "(left out with its 3 annotations)" in text
    code, report, _ = check(fixed, folder)
    assert (code, report["faults"]) == (0, [])
    assert [a["id"] for a in json.loads(fixed.read_text())["annotations"]] == [5, 11]
    assert [target["image_id"] for _, target in CocoDataset(fixed, folder)] == [3, 0]


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"width": 30, "height": 40}, "wrong width or height"),
        ({"width": 0}, "no usable width"),
        ({"height": None}, "no usable height"),
    ],
)
def test_a_wrong_size_is_corrected_from_the_file(write_set, clean, check, tmp_path, wrong, rule):
    right = json.loads(json.dumps(clean))
    clean["images"][0].update(wrong)
    annotation_file, folder = write_set(clean)
    _, report, text = check(annotation_file, folder, "--fix", tmp_path / "fixed.json")
    assert (rule, 7) in rules_and_ids(report["faults"])
    assert "40 x 30, the size of the file; check that its boxes fit (3 annotations, unchanged)" in text
    assert json.loads((tmp_path / "fixed.json").read_text()) == right
    assert check(tmp_path / "fixed.json", folder)[0] == 0


def test_boxes_are_judged_by_the_corrected_size(write_set, clean, check, tmp_path):
    clean["images"][0].update(width=400)
    clean["annotations"][1]["bbox"] = [100, 0, 20, 20]
    annotation_file, folder = write_set(clean)
    _, report, _ = check(annotation_file, folder, "--fix", tmp_path / "fixed.json")
    assert rules_and_ids(report["faults"]) == [("wrong width or height", 7)]
    assert rules_and_ids(report["changes"]) == [("width and height corrected", 7), ("annotation removed", 10)]
    assert check(tmp_path / "fixed.json", folder)[0] == 0


@pytest.mark.parametrize(
    ("orientation", "size", "words"),
    [(6, (40, 30), "annotated size fits the stored image"), (3, (40, 30), "annotated size fits both the stored and")],
)
def test_a_rotation_that_does_not_contradict_the_size_is_a_note(write_set, clean, check, orientation, size, words):
    annotation_file, folder = write_set(clean)
    save(folder / "a.png", size, format="JPEG", exif=exif(orientation))
    code, report, text = check(annotation_file, folder)
    assert code == 0
    assert rules_and_ids(report["notes"]) == [("rotated by EXIF", 7)]
    assert f"without its EXIF rotation (orientation {orientation})" in text
    assert words in text
    # As the note claims, training reads the pixels as stored.
    with Image.open(folder / "a.png") as file:
        stored = np.asarray(file.convert("RGB"))
    assert np.array_equal(CocoDataset(annotation_file, folder)[0][0].permute(1, 2, 0).mul(255).round(), stored)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("tags", [exif(1), exif(0), exif(99), b"Exif\0\0damaged", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_upright_or_damaged_exif_is_not_noted(write_set, clean, check, tags):
    annotation_file, folder = write_set(clean)
    save(folder / "a.png", (40, 30), format="JPEG", exif=tags)
    code, report, _ = check(annotation_file, folder)
    assert (code, report["notes"]) == (0, [])


def test_cmyk_is_a_note(write_set, clean, check):
    annotation_file, folder = write_set(clean)
    save(folder / "a.png", (40, 30), mode="CMYK", format="JPEG")
    code, report, text = check(annotation_file, folder)
    assert (code, rules_and_ids(report["notes"])) == (0, [("CMYK image", 7)])
    assert "training converts it to RGB" in text


def test_links_that_stay_inside_are_fine(write_set, clean, check, tmp_path):
    annotation_file, folder = write_set(clean)
    (folder / "a.png").rename(folder / "deep" / "real.png")
    (folder / "a.png").symlink_to("deep/real.png")
    linked = tmp_path / "linked"
    linked.symlink_to(folder, target_is_directory=True)
    assert check(annotation_file, linked)[0] == 0


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png"])
def test_invalid_file_names(write_set, clean, check, name):
    annotation_file, folder = write_set(clean | {"images": [{**clean["images"][0], "file_name": name}]})
    code, report, _ = check(annotation_file, folder)
    assert code == 1
    assert ("missing image", 7) in rules_and_ids(report["faults"])


def test_long_lists_are_shortened_only_in_print(write_set, clean, check):
    clean["annotations"] += [
        {"id": id_, "image_id": 7, "category_id": 0, "bbox": [0, 0, 0, 0]} for id_ in range(100, 142)
    ]
    _, report, text = check(write_set(clean)[0])
    assert [fault["id"] for fault in report["faults"]] == list(range(100, 142))
    assert "  box has no area: 42\n" in text
    assert "annotation 104 " in text
    assert "annotation 105 " not in text
    assert "and 37 more" in text


def test_json_instead_of_text(write_set, clean, capsys):
    clean["annotations"][0]["bbox"] = [1, 1, 0, 0]
    assert main([str(write_set(clean)[0]), "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert rules_and_ids(report["faults"]) == [("box has no area", 5)]
    assert "changes" not in report


class TestUsage:
    def refused(self, capsys, *arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as exit_:
            code = exit_.code
        assert code == 2
        return capsys.readouterr().err

    def test_missing_annotation_file(self, tmp_path, capsys):
        assert "no.json: no such annotation file" in self.refused(capsys, tmp_path / "no.json")

    def test_not_json(self, tmp_path, capsys):
        (tmp_path / "set.json").write_text("[" * 100_000)
        assert "set.json: not valid JSON" in self.refused(capsys, tmp_path / "set.json")

    def test_missing_folder(self, write_set, clean, capsys):
        assert "nowhere: no such image folder" in self.refused(capsys, write_set(clean)[0], "nowhere")

    @pytest.mark.parametrize("option", ["--fix", "--json"])
    @pytest.mark.parametrize("link", [None, os.symlink, os.link])
    def test_the_annotation_file_is_never_overwritten(self, write_set, clean, tmp_path, capsys, option, link):
        annotation_file, _ = write_set(clean)
        before = annotation_file.read_bytes()
        output = annotation_file.parent / "." / annotation_file.name
        if link is not None:
            output = tmp_path / "other.json"
            link(annotation_file, output)
        assert "would overwrite the annotation file" in self.refused(capsys, annotation_file, option, output)
        assert annotation_file.read_bytes() == before

    def test_outputs_that_cannot_be_written(self, write_set, clean, tmp_path, capsys):
        file = write_set(clean)[0]
        assert "give a file name in an existing folder" in self.refused(capsys, file, "--fix", tmp_path / "no/a.json")
        same = tmp_path / "same.json"
        assert "give two names" in self.refused(capsys, file, "--fix", same, "--json", same)


def test_as_a_command(write_set, clean):
    clean["images"][0]["file_name"] = "\ud800.png"  # not printable
    command = [sys.executable, "-m", "iounet.data.check", str(write_set(clean)[0])]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 images, 4 objects" in done.stdout
