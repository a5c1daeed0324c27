"""Who may answer a question."""

import pytest

from daemon.core.answering import AnswersFrom, Person, may_answer
from daemon.core.people import RANK, UserRole

ANN = Person("ann", "anna", RANK[UserRole.MEMBER])
OTHER_PHONE = Person("ann-phone", "anna")
BOB = Person("bob", "bob", RANK[UserRole.MEMBER])
ADMIN, OWNER = Person("eve", "eve", RANK[UserRole.ADMIN]), Person("olga", "olga", RANK[UserRole.OWNER])
STRANGER, NOBODY = Person("tom"), Person()


@pytest.mark.parametrize(
    ("rule", "asker", "allowed"),
    [
        (AnswersFrom.ANYONE, ANN, [ANN, OTHER_PHONE, BOB, ADMIN, OWNER, STRANGER, NOBODY]),
        (AnswersFrom.ASKER, ANN, [ANN, OTHER_PHONE, ADMIN, OWNER]),
        (AnswersFrom.ASKER, STRANGER, [ADMIN, OWNER, STRANGER]),
        (AnswersFrom.ASKER, NOBODY, [ANN, OTHER_PHONE, BOB, ADMIN, OWNER, STRANGER, NOBODY]),
        (AnswersFrom.KNOWN, ANN, [ANN, BOB, ADMIN, OWNER]),
        (AnswersFrom.ADMIN, ANN, [ADMIN, OWNER]),
        (AnswersFrom.OWNER, ANN, [OWNER]),
    ],
)
def test_who_may(rule: AnswersFrom, asker: Person, allowed: list[Person]) -> None:
    everybody = (ANN, OTHER_PHONE, BOB, ADMIN, OWNER, STRANGER, NOBODY)
    assert [one for one in everybody if may_answer(rule, asker, one)] == allowed
