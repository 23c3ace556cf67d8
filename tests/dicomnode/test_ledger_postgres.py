"""What the ledger does on PostgreSQL that SQLite needs not: several nodes, and a server that goes away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from dicomnode.errors import IllegalTransition, LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.records import Identity
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import instance
from tests.postgres import PostgresServer


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def nodes(url: str) -> Iterator[tuple[Ledger, Ledger]]:
    """The ledgers of two nodes on one database."""
    two = Ledger.open(url, busy_timeout_s=10.0), Ledger.open(url, busy_timeout_s=10.0)
    yield two
    for ledger in two:
        ledger.close()


def both(*calls: Callable[[], object]) -> list[object]:
    """Run at the same moment. returns: what each returned or raised."""
    gate = threading.Barrier(len(calls))

    def one(call: Callable[[], object]) -> object:
        gate.wait(10)
        try:
            return call()
        except Exception as error:  # noqa: BLE001  the caller judges it
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def made_ready(ledger: Ledger, study: str) -> int:
    (case_id,) = ledger.add_instances([instance(study)], 0.0)
    assert ledger.assembled(ledger.case(case_id), 1.0, "{}", "inputs", Identity(), "complete") is not None
    return case_id


def test_nodes_that_open_an_empty_database_at_once_migrate_it_once(url: str) -> None:
    ledgers = both(*[lambda: Ledger.open(url)] * 3)
    for ledger in ledgers:
        assert isinstance(ledger, Ledger)
        assert ledger.cases() == []
        ledger.close()


def test_two_receivers_of_one_new_study_open_one_case(nodes: tuple[Ledger, Ledger]) -> None:
    for n in range(20):
        study = f"1.2.{n + 1}"
        touched = both(
            lambda s=study: nodes[0].add_instances([instance(s, 1), instance(s, 3)], 1.0),
            lambda s=study: nodes[1].add_instances([instance(s, 2), instance(s, 3)], 1.0),
        )
        assert touched[0] == touched[1] == {nodes[0].find_case(study).id}
        assert len(nodes[0].instances(nodes[0].find_case(study).id)) == 3
    assert len(nodes[1].cases()) == 20


def test_batches_of_the_same_studies_in_another_order_do_not_stop_each_other(
    nodes: tuple[Ledger, Ledger],
) -> None:
    studies = [f"1.2.{n + 1}" for n in range(30)]
    for turn in range(5):
        here = [instance(s, 10 * turn + 1) for s in studies]
        there = [instance(s, 10 * turn + 2) for s in reversed(studies)]
        outcome = both(
            lambda given=here, at=turn: nodes[0].add_instances(given, float(at)),
            lambda given=there, at=turn: nodes[1].add_instances(given, float(at)),
        )
        assert [len(touched) for touched in outcome if isinstance(touched, set)] == [30, 30]
    assert {len(nodes[0].instances(case.id)) for case in nodes[0].cases()} == {10}


def test_of_two_nodes_that_claim_each_case_one_gets_it(nodes: tuple[Ledger, Ledger]) -> None:
    for n in range(20):
        case_id = made_ready(nodes[0], f"1.2.{n + 1}")
        claims = [partial(ledger.begin, case_id, Event.CLAIM, "compute", 2.0) for ledger in nodes]
        outcome = both(*claims)
        assert sum(isinstance(each, IllegalTransition) for each in outcome) == 1, outcome
        assert len(nodes[0].attempts(case_id)) == 1


def test_an_object_and_a_claim_at_once_leave_a_story_that_holds_together(
    nodes: tuple[Ledger, Ledger],
) -> None:
    """Either the claim came first and was stopped, or it was refused; a state is never overwritten."""
    for n in range(20):
        study = f"1.2.{n + 1}"
        case_id = made_ready(nodes[0], study)
        both(
            lambda s=study: nodes[0].add_instances([instance(s, 2)], 3.0),
            lambda c=case_id: nodes[1].begin(c, Event.CLAIM, "compute", 3.0),
        )
        story = nodes[0].story(case_id)
        assert all(a.to_state == b.from_state for a, b in pairwise(story))
        assert nodes[0].case(case_id).state is State.COLLECTING
        assert [a.outcome for a in nodes[0].attempts(case_id)] in ([], ["stopped"])


def test_one_node_has_the_work_until_it_ends(url: str, nodes: tuple[Ledger, Ledger]) -> None:
    first, second = nodes
    """And is told so at once: a second that finds the lock still taken would wait for its next turn."""
    assert [first.has_work(), second.has_work(), first.has_work()] == [True, False, True]
    for _ in range(30):
        first.close()
        assert second.has_work()
        first, second = second, first


def test_the_work_is_lost_and_found_with_the_server(postgres_server: PostgresServer, url: str) -> None:
    ledger = Ledger.open(url)
    made_ready(ledger, "1.2.1")
    assert ledger.has_work()
    postgres_server.stop()
    try:
        for use in (ledger.has_work, ledger.cases, lambda: ledger.add_instances([instance("1.2.2")], 1.0)):
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                use()
    finally:
        postgres_server.start()
    assert ledger.has_work()
    assert [case.state for case in ledger.cases()] == [State.READY]
    assert len(ledger.add_instances([instance("1.2.2")], 1.0)) == 1
    ledger.close()


def test_a_connection_that_the_server_ends_in_the_middle_is_replaced(
    postgres_server: PostgresServer, url: str
) -> None:
    ledger = Ledger.open(url)
    case_id = made_ready(ledger, "1.2.1")

    def interrupted() -> None:
        with ledger._decide() as connection:
            connection.exec_driver_sql("UPDATE cases SET state = 'DONE'")
            postgres_server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dicomnode'"
            )

    with pytest.raises(LedgerUnavailable):
        interrupted()
    assert ledger.case(case_id).state is State.READY
    ledger.close()


def test_a_case_that_another_node_keeps_locked_is_unavailable_after_the_timeout(url: str) -> None:
    patient, impatient = Ledger.open(url), Ledger.open(url, busy_timeout_s=0.1)
    case_id = made_ready(patient, "1.2.1")
    with patient._decide() as connection:
        connection.exec_driver_sql(f"SELECT * FROM cases WHERE id = {case_id} FOR UPDATE")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            impatient.begin(case_id, Event.CLAIM, "compute", 1.0)
        assert len(impatient.cases()) == 1, "readers do not wait for a writer"
    assert impatient.begin(case_id, Event.CLAIM, "compute", 2.0).case_id == case_id
    patient.close()
    impatient.close()


@pytest.mark.parametrize("text", ["A\0B", "A\ud800B", "Mü\0ller^Jürgen"])
def test_text_that_postgresql_cannot_store_loses_a_character_and_no_object(
    nodes: tuple[Ledger, Ledger], text: str
) -> None:
    (case_id,) = nodes[0].add_instances([instance(patient_id=text)], 0.0)
    (kept,) = nodes[1].instances(case_id)
    assert kept.patient_id in (text.replace("\0", ""), text.replace("\ud800", "?"))


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber"])
def test_an_endless_value_keeps_no_object_out_of_the_ledger(
    nodes: tuple[Ledger, Ledger], keyword: str
) -> None:
    """An index of PostgreSQL takes 2704 bytes of a row; the batch would be refused for ever."""
    endless = "".join(chr(0x20000 + number * 7919 % 40000) for number in range(5000))
    hostile = replace(instance(), attributes={keyword: endless, "IssuerOfPatientID": endless})
    (case_id,) = nodes[0].add_instances([hostile], 0.0)
    assert len(nodes[1].instances(case_id)) == 1


def test_an_object_of_more_than_two_gigabytes_is_registered(nodes: tuple[Ledger, Ledger]) -> None:
    large = replace(instance(), size_bytes=3_000_000_000)
    (case_id,) = nodes[0].add_instances([large], 0.0)
    assert nodes[0].instances(case_id) == [large]
