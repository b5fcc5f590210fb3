from iounet.categories import category_differences, match_names


def named(**names):
    return [{"id": int(key[1:]), "name": name} for key, name in names.items()]


def test_only_differences_are_listed():
    one, other = named(_1="cat", _2="dog", _3="kite"), named(_1="cat", _2="god", _5="cow")
    assert category_differences(one, other) == "id 2: 'dog' and 'god'; id 3: 'kite' and none; id 5: none and 'cow'"
    assert category_differences(one, one) == ""


def test_long_lists_are_truncated():
    many = [{"id": id_, "name": "a"} for id_ in range(72)]
    assert category_differences(many, []).endswith("id 4: 'a' and none; and 67 more")


def test_case_spaces_and_dashes_in_names_do_not_matter():
    classes = [{"id": 3, "name": "traffic light"}, {"id": 8, "name": "star"}]
    assert match_names(["TRAFFIC_light", "star", "", "lights"], classes) == [1, 2, 0, 0]
