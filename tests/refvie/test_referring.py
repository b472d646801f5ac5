"""Instructions that leave to the picture what they would name."""

import pytest

from training.refvie.exports.referring import refer


@pytest.mark.parametrize(("prompt", "name", "kind", "expected"), [
    ("Add a red kite to the sky.", "red kite", "subject", "Add the object in the reference picture to the sky."),
    ("An Old  Boat appears.", "old boat", "subject", "The object in the reference picture appears."),
    ("Change the background to a snowy street.", "snowy street", "background",
     "Change the background to the background of the reference picture."),
    ("Put them in front of the dark blue background.", "dark blue", "background",
     "Put them in front of the background of the reference picture."),
    ("Replace the car with a cart.", "car", "subject", "Replace the object in the reference picture with a cart."),
    ("Turn the red kite into a red kite.", "red kite", "subject", "Turn the red kite into a red kite."),
    ("Add a kite.", "red kite", "subject", "Add a kite."),
    ("Add a kite.", " ", "subject", "Add a kite."),
    ("Add a c++ (sign).", "c++ (sign)", "subject", "Add a c++ (sign)."),
])  # fmt: skip
def test_the_picture_stands_in_for_the_name_where_it_stands_once(prompt, name, kind, expected):
    assert refer(prompt, name, kind, 0) == expected


def test_it_is_said_in_several_ways():
    assert len({refer("Add a kite.", "kite", "subject", lot) for lot in range(8)}) == 4
