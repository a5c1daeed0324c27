"""One finding for each cause: consequences are folded under it, dead letters of one code are one finding, and nothing is lost."""

from daemon.core.diagnosis import Diagnosis
from daemon.core.findings import findings_of


def diagnosis(
    code: str, session: str | None = None, *, cause: str | None = None, died_of: str | None = None
) -> Diagnosis:
    agent = "a" if session is not None else None
    return Diagnosis(
        code, f"{code}.", ("first", f"why {session}"), f"repair {code}", agent, session, cause=cause, died_of=died_of
    )


def test_a_consequence_goes_to_its_cause_through_any_number_of_steps() -> None:
    image, failing = diagnosis("IMAGE"), diagnosis("SPAWN", "s", cause="IMAGE")
    waiting, other = diagnosis("WAITING", "s", cause="SPAWN"), diagnosis("OTHER", "t")
    found = findings_of([failing, image, waiting, other])
    assert [(one.head, one.consequences) for one in found] == [(image, (failing, waiting)), (other, ())]


def test_the_cause_in_the_same_session_goes_before_that_of_another() -> None:
    first, second = diagnosis("HELD", "s"), diagnosis("HELD", "t")
    waiting = diagnosis("WAITING", "t", cause="HELD")
    assert [one.consequences for one in findings_of([first, second, waiting])] == [(), (waiting,)]
    host = diagnosis("HELD")
    assert findings_of([first, host, waiting])[1].consequences == (waiting,)


def test_one_without_its_cause_and_two_that_blame_each_other_stand_for_themselves() -> None:
    alone, one, two = diagnosis("A", "s", cause="GONE"), diagnosis("B", cause="C"), diagnosis("C", cause="B")
    assert [finding.head for finding in findings_of([alone, one, two])] == [alone, one, two]


def test_dead_letters_of_one_code_are_one_finding_with_commands_for_all() -> None:
    three = [diagnosis("DEAD", name, died_of="NOT_FOUND") for name in ("s", "t", "u")]
    other, unknown = diagnosis("DEAD", "v", died_of="OTHER"), diagnosis("DEAD", "w")
    merged, single, plain = findings_of([*three, other, unknown])
    assert (merged.same, merged.head.session, merged.head.number) == (tuple(three), None, 3)
    assert merged.head.command == "clawbus dead list --code NOT_FOUND"
    assert "3 dead letters of 3 sessions" in merged.head.summary
    assert merged.head.evidence == ("a/s: why s", "a/t: why t", "a/u: why u")
    assert all("--all --code NOT_FOUND" in choice.command for choice in merged.head.choices)
    assert [single.head, plain.head] == [other, unknown]
    many = [diagnosis("DEAD", f"s{number}", died_of="X") for number in range(9)]
    (found,) = findings_of(many)
    assert "4 more sessions" in found.head.evidence[-1]
