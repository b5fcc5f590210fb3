import argparse
import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from iounet import get_cfg
from iounet.config import (
    RENAMED,
    add_override_arguments,
    config_from_yaml,
    describe_scaling,
    load_config,
    scale_learning_rate,
)
from iounet.errors import ConfigError
from iounet.postprocess import NMSOptions, Postprocessing, RefinementOptions

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*"))


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults_are_the_papers():
    cfg = get_cfg()
    assert cfg.MODEL.BACKBONE.NAME == "resnet50"
    assert (cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE) == (800, 1200)
    solver = cfg.SOLVER
    assert (solver.GLOBAL_BATCH_SIZE, solver.BASE_LR, solver.MAX_ITERATIONS, solver.STEPS) == (
        16,
        0.01,
        160_000,
        (120_000,),
    )
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.9, 1e-4)
    assert cfg.MODEL.BOX_HEAD.BOXES_PER_IMAGE == 512
    assert cfg.MODEL.IOU_HEAD.MIN_IOU == 0.5
    test = cfg.TEST
    assert (test.NMS_THRESHOLD, test.DETECTIONS_PER_IMAGE) == (0.5, 100)
    refine = test.REFINE
    assert (refine.NUM_STEPS, refine.STEP_SIZE, refine.EARLY_STOP, refine.DEGENERATION) == (5, 0.5, 0.001, -0.01)


def test_defaults_of_postprocessing_are_those_of_its_options():
    test = get_cfg().TEST
    assert {name.lower(): value for name, value in test.REFINE.items()} == dataclasses.asdict(RefinementOptions())
    assert NMSOptions() == NMSOptions(
        test.NMS, test.NMS_THRESHOLD, test.NMS_RANKING, test.SOFT_NMS_SIGMA, test.DETECTIONS_PER_IMAGE
    )
    assert (test.REFINE_BEFORE_NMS, test.FINAL_SCORE) == (Postprocessing.refine_before_nms, Postprocessing.final_score)


def test_each_call_returns_a_new_copy():
    get_cfg().SEED = 17
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 1.0
    assert (get_cfg().SEED, get_cfg().SOLVER.BASE_LR) == (0, 0.01)


def test_file_then_overrides(write):
    path = write("SEED: 3\nSOLVER:\n  BASE_LR: 0.5\n  STEPS: [10, 20]\n")
    cfg = load_config(path, ["SOLVER.BASE_LR", "0.25", "OUTPUT_DIR", "5", "MODEL.STANDALONE", "True"])
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS) == (3, 0.25, (10, 20))
    assert cfg.OUTPUT_DIR == "5"  # a string stays a string, even if it spells a number
    assert cfg.MODEL.STANDALONE is True
    assert cfg.SOLVER.MOMENTUM == 0.9
    with pytest.raises(AttributeError):
        cfg.SEED = 4


def test_no_file_gives_the_defaults():
    assert load_config() == get_cfg()


def test_a_dumped_config_loads_as_itself(write):
    cfg = load_config(None, ["SOLVER.WEIGHT_DECAY", "1e-5", "MODEL.RPN.ASPECT_RATIOS", "(0.5, 4)"])
    assert load_config(write(cfg.dump())) == cfg


@pytest.mark.parametrize("value", ["1", "1.0", "1e0", "'1e0'"])
def test_a_float_may_be_written_as_an_integer_or_in_any_notation(write, value):
    for cfg in (load_config(write(f"SOLVER:\n  BASE_LR: {value}\n")), load_config(None, ["SOLVER.BASE_LR", "1"])):
        assert cfg.SOLVER.BASE_LR == 1.0
        assert type(cfg.SOLVER.BASE_LR) is float


def test_1e_3_in_yaml_is_a_number(write):
    assert yaml.safe_load("1e-3") == "1e-3"
    assert load_config(write("SOLVER:\n  BASE_LR: 1e-3\n")).SOLVER.BASE_LR == 0.001


@pytest.mark.parametrize("value", ["[30, 40]", "(30, 40)", "30, 40"])
def test_a_tuple_on_the_command_line(value):
    assert load_config(None, ["SOLVER.STEPS", value]).SOLVER.STEPS == (30, 40)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("SOLVER.BASE_LRR", "SOLVER.BASE_LR"),
        ("SOLVR.BASE_LR", "SOLVER.BASE_LR"),
        ("solver.base_lr", "SOLVER.BASE_LR"),
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("SOLVER.LR", "SOLVER.BASE_LR"),
        ("MODEL.IOU_HEAD.MINIOU", "MODEL.IOU_HEAD.MIN_IOU"),
        ("MODEL.IOUHEAD.MIN_IOU", "MODEL.IOU_HEAD.MIN_IOU"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.NUM_CLASSES"),
        ("TRAIN.GLOBAL_BATCH_SIZE", "SOLVER.GLOBAL_BATCH_SIZE"),
        ("TEST.REFINEMENT.NUM_STEPS", "TEST.REFINE.NUM_STEPS"),
    ],
)
def test_an_unknown_key_names_the_nearest(write, key, nearest):
    with pytest.raises(ConfigError, match=rf"command line: unknown config key .*did you mean {nearest}\?"):
        load_config(None, [key, "1"])
    text = "1"
    for part in reversed(key.split(".")):
        text = f"{{{part}: {text}}}"
    with pytest.raises(ConfigError, match=rf"config\.yaml: unknown config key .*did you mean {nearest}\?"):
        load_config(write(text))


def test_a_misspelt_group_of_several_keys_names_the_nearest_key(write):
    with pytest.raises(ConfigError, match=r"unknown config key SOLVR\.BASE_LR; did you mean SOLVER\.BASE_LR\?"):
        load_config(write("SOLVR:\n  BASE_LR: 1\n  GLOBAL_BATCH_SIZE: 2\n"))


def test_yaml_accepts_full_key_names(write):
    cfg = load_config(write("SOLVER.BASE_LR: 0.5\nTEST:\n  REFINE.NUM_STEPS: 3\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.TEST.REFINE.NUM_STEPS) == (0.5, 3)


def test_an_unknown_key_without_similar_keys_names_the_list_of_keys():
    with pytest.raises(ConfigError, match=r"unknown config key QQQ; iounet/config\.py lists all keys"):
        load_config(None, ["QQQ", "1"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "fast"),
        ("SOLVER.BASE_LR", "True"),
        ("SOLVER.MAX_ITERATIONS", "1.5"),
        ("SOLVER.MAX_ITERATIONS", "True"),
        ("SOLVER.STEPS", "100"),
        ("MODEL.STANDALONE", "1"),
    ],
)
def test_a_value_of_another_type_is_refused(write, key, value):
    kind = type(dict(leaves(get_cfg()))[key]).__name__
    with pytest.raises(ConfigError, match=f"{key} must be of type {kind}, such as"):
        load_config(None, [key, value])
    group, name = key.split(".")
    with pytest.raises(ConfigError, match=rf"config\.yaml: {key} must be of type {kind}"):
        load_config(write(f"{group}:\n  {name}: {value}\n"))


@pytest.mark.parametrize("text", ["OUTPUT_DIR: 5", "OUTPUT_DIR:", "OUTPUT_DIR: [a]"])
def test_a_string_must_be_written_as_a_string(write, text):
    with pytest.raises(ConfigError, match="OUTPUT_DIR must be of type str"):
        load_config(write(text))


def test_a_group_is_not_a_value(write):
    with pytest.raises(ConfigError, match=r"SOLVER is a group of keys; set one of them, such as SOLVER\."):
        load_config(None, ["SOLVER", "1"])
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_LR"):
        load_config(None, ["SOLVER.BASE_LR.VALUE", "1"])


@pytest.mark.parametrize("overrides", [["SEED"], ["SEED", "1", "OUTPUT_DIR"]])
def test_overrides_come_in_pairs(overrides):
    with pytest.raises(ConfigError, match=f"pairs KEY VALUE; '{overrides[-1]}' has no value"):
        load_config(None, overrides)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file; see configs/"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- SEED\n", "SEED"])
def test_a_file_without_keys(write, text):
    with pytest.raises(ConfigError, match=r"config\.yaml contains no keys"):
        load_config(write(text))


def test_a_file_that_is_not_yaml(write):
    with pytest.raises(ConfigError, match=r"config\.yaml is not valid YAML"):
        load_config(write("SOLVER: [1, 2\n"))


def test_a_python_file_is_refused_and_not_executed(write, tmp_path):
    path = write(
        f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\ncfg = dict(SEED=1)\n", "config.py"
    )
    with pytest.raises(ConfigError, match=r"config\.py: a config file must be a \.yaml file"):
        load_config(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"SEED: 2026-13-45", b"SOLVER: [1, 2\n", b"[" * 10_000])
def test_malformed_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "binary.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "binary.yaml")
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'binary.yaml'}") and len(message.splitlines()) == 1


@pytest.mark.parametrize("tag", ["object/apply", "object/new"])
def test_yaml_tags_execute_nothing(write, tmp_path, tag):
    marker = tmp_path / "executed"
    with pytest.raises(ConfigError, match=r"config\.yaml is not valid YAML"):
        load_config(write(f"SEED: !!python/{tag}:os.mkdir [{marker}]\n"))
    assert not marker.exists()


def test_overrides_execute_nothing(tmp_path):
    with pytest.raises(ConfigError, match="SEED must be of type int"):
        load_config(None, ["SEED", f"__import__('os').mkdir({str(tmp_path / 'executed')!r})"])
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", ["-0.02", "-2e-2", "-.02", "-2E-02"])
def test_a_negative_number_is_a_value(value):
    parser = argparse.ArgumentParser()
    parser.add_argument("--flag", action="store_true")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args(["SEED", "1", "--flag", "TEST.REFINE.DEGENERATION", value, "OUTPUT_DIR", "a"])
    cfg = load_config(None, args.overrides)
    assert args.flag and (cfg.SEED, cfg.OUTPUT_DIR, cfg.TEST.REFINE.DEGENERATION) == (1, "a", -0.02)


class TestScaledLearningRate:
    @pytest.mark.parametrize(("batch_size", "expected"), [(2, 0.00125), (16, 0.01), (64, 0.04)])
    def test_it_is_proportional_to_the_batch_size(self, batch_size, expected):
        cfg = scale_learning_rate(load_config(None, ["SOLVER.GLOBAL_BATCH_SIZE", str(batch_size)]))
        assert cfg.SOLVER.BASE_LR == pytest.approx(expected, rel=1e-12)

    def test_scaling_again_changes_nothing(self, write):
        once = scale_learning_rate(load_config(None, ["SOLVER.GLOBAL_BATCH_SIZE", "6"]))
        assert scale_learning_rate(once) == once
        assert scale_learning_rate(load_config(write(once.dump()))) == once

    def test_the_argument_and_all_other_keys_are_unchanged(self):
        given = load_config(None, ["SOLVER.GLOBAL_BATCH_SIZE", "2"])
        before, after = dict(leaves(given.clone())), dict(leaves(scale_learning_rate(given)))
        assert dict(leaves(given)) == before
        changed = {key for key, value in after.items() if value != before[key]}
        assert changed == {"SOLVER.BASE_LR", "SOLVER.REFERENCE_BATCH_SIZE"}

    @pytest.mark.parametrize("override", [["SOLVER.REFERENCE_BATCH_SIZE", "0"], ["SOLVER.OPTIMIZER", "AdamW"]])
    def test_not_with_reference_0_and_not_for_adamw(self, override):
        given = load_config(None, ["SOLVER.GLOBAL_BATCH_SIZE", "2", *override])
        assert scale_learning_rate(given) == given

    def test_overrides_that_keep_the_number_of_epochs(self):
        """The schedule in docs/guides/coco.md: 16 / 4 times the paper's 160k, 120k and 10k iterations."""

        def equivalent_schedule(*overrides):
            given = load_config(None, ["SOLVER.GLOBAL_BATCH_SIZE", "4", *overrides])
            _, line = describe_scaling(given, scale_learning_rate(given), num_images=100)
            return shlex.split(line.partition("keep its epochs with ")[2])

        solver = load_config(None, equivalent_schedule()).SOLVER
        assert (solver.MAX_ITERATIONS, solver.STEPS, solver.WARMUP_ITERATIONS) == (640_000, (480_000,), 40_000)
        without = equivalent_schedule("SOLVER.DECAY", "linear", "SOLVER.WARMUP_ITERATIONS", "0")
        assert without == ["SOLVER.MAX_ITERATIONS", "640000"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_state_the_learning_rate_of_their_own_batch_size(path):
    cfg = load_config(path)
    assert cfg.SOLVER.REFERENCE_BATCH_SIZE == cfg.SOLVER.GLOBAL_BATCH_SIZE
    assert scale_learning_rate(cfg) == cfg


class TestBase:
    """A config file that is based on another file."""

    def test_the_file_overrides_its_base(self, write):
        write("SEED: 1\nSOLVER:\n  BASE_LR: 0.5\n  STEPS: [10]\n", "base.yaml")
        cfg = load_config(write("BASE: base.yaml\nSOLVER:\n  BASE_LR: 0.25\n", "other.yaml"), ["SOLVER.STEPS", "[7]"])
        assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS) == (1, 0.25, (7,))
        assert "BASE" not in cfg

    def test_a_base_may_have_a_base_in_another_folder(self, write, tmp_path):
        (tmp_path / "shared").mkdir()
        write("SEED: 5\n", "shared/grandparent.yaml")
        write("BASE: grandparent.yaml\nOUTPUT_DIR: parent\n", "shared/parent.yaml")
        cfg = load_config(write("BASE: shared/parent.yaml\nOUTPUT_DIR: child\n"))
        assert (cfg.SEED, cfg.OUTPUT_DIR) == (5, "child")

    @pytest.mark.parametrize("name", ["config.yaml", "../{folder}/config.yaml"])
    def test_it_may_not_be_based_on_itself(self, write, tmp_path, name):
        with pytest.raises(ConfigError, match=r"config\.yaml is based on itself: BASE must name another file"):
            load_config(write(f"BASE: {name.format(folder=tmp_path.name)}\n"))

    def test_cycles_are_refused(self, write):
        write("BASE: config.yaml\n", "other.yaml")
        with pytest.raises(ConfigError, match="is based on itself"):
            load_config(write("BASE: other.yaml\n"))

    def test_a_missing_base_is_named_with_its_file(self, write):
        with pytest.raises(
            ConfigError, match=r"none\.yaml: no such config file, which .*config\.yaml names as its BASE"
        ):
            load_config(write("BASE: none.yaml\n"))

    def test_base_must_be_a_name(self, write):
        with pytest.raises(
            ConfigError, match=r"BASE must be the name of a config file, such as bccd\.yaml; got \['a'\]"
        ):
            load_config(write("BASE: [a]\n"))

    def test_an_error_in_the_base_names_the_base(self, write):
        write("SEEED: 1\n", "base.yaml")
        with pytest.raises(ConfigError, match=r"base\.yaml: unknown config key SEEED; did you mean SEED\?"):
            load_config(write("BASE: base.yaml\n"))


class TestKeysOfEarlierVersions:
    OLD = {
        "SOLVER": {"BATCH_SIZE": 4, "BASE_LR": 0.5},
        "TEST": {
            "BATCH_SIZE": 2,
            "RANKING": "score_times_iou",
            "REFINE": {"STEPS": 3, "ACCEPT": "rising", "BEFORE_NMS": True, "CUDA_GRAPHS": False, "STEP_SIZE": 2.0},
        },
    }

    def test_each_is_in_the_example(self):
        assert set(RENAMED) <= {key for key, _ in leaves(self.OLD)}

    def test_they_are_translated(self):
        cfg = config_from_yaml(yaml.safe_dump(self.OLD), "old.pth")
        assert (cfg.SOLVER.GLOBAL_BATCH_SIZE, cfg.SOLVER.BASE_LR) == (4, 0.5)
        assert (cfg.TEST.BATCH_SIZE_PER_DEVICE, cfg.TEST.NMS_RANKING) == (2, "score_times_iou")
        assert cfg.TEST.REFINE_BEFORE_NMS is True
        assert cfg.TEST.CUDA_GRAPHS is True  # False meant "not measured yet"
        refine = cfg.TEST.REFINE
        assert (refine.NUM_STEPS, refine.STEP_POLICY, refine.STEP_SIZE) == (3, "backtracking", 2.0)

    def test_in_any_notation_and_on_the_command_line(self, write):
        assert load_config(write("TEST.REFINE.STEPS: 3\n")).TEST.REFINE.NUM_STEPS == 3
        cfg = load_config(None, ["TEST.REFINE.STEPS", "3", "TEST.REFINE.ACCEPT", "best"])
        assert (cfg.TEST.REFINE.NUM_STEPS, cfg.TEST.REFINE.STEP_POLICY) == (3, "best")

    def test_new_keys_are_known(self):
        known = dict(leaves(get_cfg()))
        assert set(RENAMED.values()) - {None} <= set(known) and not set(RENAMED) & set(known)


def test_a_checkpoints_configuration_that_cannot_be_read_names_the_file():
    with pytest.raises(ConfigError, match=r"odd\.pth: unknown config key SEEED"):
        config_from_yaml("SEEED: 1", "odd.pth")


@pytest.mark.parametrize(("make", "reason"), [("folder", "Is a directory"), ("binary", "not UTF-8 text")])
def test_something_else_with_the_name_of_a_config(tmp_path, make, reason):
    path = tmp_path / "config.yaml"
    path.mkdir() if make == "folder" else path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=rf"config\.yaml: cannot be read as a config file \({reason}\); see configs/"):
        load_config(path)


def test_there_are_configs():
    assert "synthetic.yaml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_load_and_hold_only_differences(path):
    assert path.suffix == ".yaml"
    cfg = load_config(path)
    assert isinstance(cfg, CfgNode)
    content = yaml.safe_load(path.read_text())
    base = content.pop("BASE", None)
    before = dict(leaves(load_config(path.parent / base if base else None)))
    resolved = dict(leaves(cfg))
    assert [key for key, _ in leaves(content) if resolved[key] == before[key]] == []
    assert path.read_text().startswith("#"), "a config must start with a comment that contains its command"
