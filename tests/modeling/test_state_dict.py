import torch

from iounet.modeling import state_dict_faults


def shapes(**parameters):
    return {name.replace("_", "."): torch.zeros(shape) for name, shape in parameters.items()}


EXPECTED = shapes(a_weight=(2, 3), a_bias=(2,), head_weight=(4,))


def test_fitting_weights_have_no_faults():
    assert state_dict_faults(EXPECTED, EXPECTED) == []


def test_one_phrase_per_kind_of_fault():
    weights = shapes(a_weight=(3, 2), extra=(1,), more=(1,), others=(1,), still=(1,))
    assert state_dict_faults(EXPECTED, weights) == [
        "2 missing (a.bias, head.weight)",
        "4 unexpected (extra, more, others, ...)",
        "1 of the wrong shape (a.weight is [3, 2], expected [2, 3])",
    ]


def test_optional_parameters_may_be_missing_but_not_of_the_wrong_shape():
    weights = {name: value for name, value in EXPECTED.items() if not name.startswith("head.")}
    assert state_dict_faults(EXPECTED, weights, optional=("head.",)) == []
    assert state_dict_faults(EXPECTED, weights) == ["1 missing (head.weight)"]
    weights |= shapes(head_weight=(5,))
    assert state_dict_faults(EXPECTED, weights, optional=("head.",)) == [
        "1 of the wrong shape (head.weight is [5], expected [4])"
    ]


def test_counters_of_batch_norms_may_be_missing_or_unexpected():
    counter = {"bn.num_batches_tracked": torch.tensor(0)}
    assert state_dict_faults(EXPECTED | counter, EXPECTED) == []
    assert state_dict_faults(EXPECTED, EXPECTED | counter) == []
