"""Short forms of ids: only of those that the bus made, unique among those shown, and meant by a part of six letters."""

import pytest

from daemon.core.short_ids import is_part, means, shortened

ONE = "01M8FHSNAY52PJVXWFNW2C10N7"
TWO = "01M8FHSNAY52PJVXWFAB2C10N8"


def test_only_ids_of_the_bus_are_shortened() -> None:
    given = [ONE, f"{TWO}+r1+r2", f"{ONE}@{TWO}", "order-4711", f"order@{TWO}", ONE.lower(), f"{ONE}X"]
    assert shortened(given) == [
        "NW2C10N7", "AB2C10N8+r1+r2", "NW2C10N7@AB2C10N8", "order-4711", "order@AB2C10N8", ONE.lower(), f"{ONE}X",
    ]  # fmt: skip


def test_two_with_one_short_form_stay_whole_and_one_twice_does_not() -> None:
    alike = "01M8FHSNAZ" + ONE[10:]
    assert shortened([ONE, alike, TWO, TWO]) == [ONE, alike, "AB2C10N8", "AB2C10N8"]


@pytest.mark.parametrize("part", ["NW2C10N7", "2C10N7", "01M8FH", ONE[:25], ONE[1:]])
def test_a_begin_or_an_end_means_an_id(part: str) -> None:
    assert is_part(part)
    assert means(part, ONE)
    assert not means(part, f"{ONE}X")


def test_what_is_too_short_whole_or_of_other_letters_is_no_part() -> None:
    for text in ("C10N7", ONE, "nw2c10n7", "order-4711", "", "NW2C10N7 "):
        assert not is_part(text), text


def test_the_beginning_of_a_question_s_id_means_it() -> None:
    question = "q-6jbnqwzr5vkbi5xd"
    assert is_part("q-6jbnqw")
    assert means("q-6jbnqw", question)
    for text in ("q-6jbnq", question, "5vkbi5xd"):
        assert not is_part(text), text
    assert not means("q-6jbnqw", "q-6jbnqwzr5vkbi5xd2"), "an id that the bus did not make"


def test_a_requeued_message_is_meant_with_its_number() -> None:
    assert is_part("NW2C10N7+r1")
    assert means("NW2C10N7+r1", f"{ONE}+r1")
    assert not means("NW2C10N7", f"{ONE}+r1")
    assert not means("NW2C10N7+r1", ONE)
