from iounet.wording import counted


def test_counted_uses_singular_and_plural():
    assert [counted(number, "box", "boxes") for number in (0, 1, 1200)] == ["0 boxes", "1 box", "1,200 boxes"]
    assert counted(2, "image") == "2 images"
