"""The details of events: short ids for people, whole ones where the form is wide."""

from daemon.cli.present import briefs, make_console

CONTAINER = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
DETAILS = (
    {"incarnation": "01M8JDBSAQRXGH4RP7NT1J7TYF", "container_id": CONTAINER},
    None,
    {"message_out_id": "01M8JDBTVMV2Z9W6N01MMMTS83", "text": "01M8JDBTVMV2Z9W6N01MMMTS83"},
)


def test_ids_are_short_and_texts_stay() -> None:
    assert briefs(make_console(), DETAILS) == [
        "incarnation=NT1J7TYF, container_id=9f86d081884c",
        "",
        "message_out_id=1MMMTS83, text=01M8JDBTVMV2Z9W6N01MMMTS83",
    ]


def test_the_wide_form_has_them_whole() -> None:
    (first, *_) = briefs(make_console(wide=True), DETAILS)
    assert first == f"incarnation=01M8JDBSAQRXGH4RP7NT1J7TYF, container_id={CONTAINER}"


def test_ids_that_end_alike_stay_whole() -> None:
    alike = ("01M8JDBSAQRXGH4RP7NT1J7TYF", "01M8JDBSAQRXGH4RP8NT1J7TYF")
    assert briefs(make_console(), [{"incarnation": one} for one in alike]) == [f"incarnation={one}" for one in alike]
