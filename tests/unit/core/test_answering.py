"""Who may answer a question, and which plain text is an answer."""

import pytest

from daemon.core.answering import AnswersFrom, Person, PlainAnswer, may_answer, may_answer_plainly, plain_answer
from daemon.core.people import RANK, UserRole
from schema.questions import Option, Question

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


@pytest.mark.parametrize(
    ("rule", "asker", "allowed"),
    [
        (AnswersFrom.ANYONE, ANN, [ANN, OTHER_PHONE]),
        (AnswersFrom.ASKER, ANN, [ANN, OTHER_PHONE]),
        (AnswersFrom.ASKER, STRANGER, [STRANGER]),
        (AnswersFrom.ASKER, NOBODY, [NOBODY]),
        (AnswersFrom.KNOWN, ANN, [ANN]),
        (AnswersFrom.ADMIN, ANN, []),
        (AnswersFrom.ADMIN, ADMIN, [ADMIN]),
    ],
)
def test_only_the_asker_need_not_name_the_question(rule: AnswersFrom, asker: Person, allowed: list[Person]) -> None:
    everybody = (ANN, OTHER_PHONE, BOB, ADMIN, OWNER, STRANGER, NOBODY)
    assert [one for one in everybody if may_answer_plainly(rule, asker, one)] == allowed


PERMISSION = Question("Delete?", (Option("allow-1", "Allow once"), Option("reject-1", "Reject")))
YES_NO = Question("Delete?", (Option("yes", "Yes"), Option("no", "No")), free_text=False)
OPEN = Question("How many?")


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        (PERMISSION, " allow ONCE ", PlainAnswer("allow ONCE")),
        (PERMISSION, "2", PlainAnswer("2")),
        (PERMISSION, "@helper: reject-1", PlainAnswer("reject-1")),
        (PERMISSION, "no", PlainAnswer(None)),
        (PERMISSION, "yes", None),
        (PERMISSION, "3", None),
        (PERMISSION, "what does it delete?", None),
        (YES_NO, "YES", PlainAnswer("YES")),
        (YES_NO, "no", PlainAnswer("no")),
        (OPEN, "3", PlainAnswer("3")),
        (OPEN, "n", PlainAnswer("n")),
        (OPEN, "by the way, it rains", None),
        (OPEN, " ", None),
        (OPEN, "1" * 300, None),
    ],
)
def test_what_is_an_answer(question: Question, text: str, answer: PlainAnswer | None) -> None:
    assert plain_answer(question, text) == answer
