"""Commitments, promises and enquiries in the ledger, on both databases."""

from __future__ import annotations

from pathlib import Path

from dicomnode.ledger import Ledger
from dicomnode.records import Case, Run
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import encoded_case, instance

PEERS = ("PACS", "ARCHIVE")


def sent(
    ledger: Ledger, data_dir: Path, to: tuple[str, ...] = PEERS, study: str = "1.2.3"
) -> tuple[Case, Run]:
    """A case whose results `to` have taken; the others of PEERS lack them."""
    case = encoded_case(ledger, data_dir, PEERS, study=study)
    attempt = ledger.begin(case.id, Event.SEND, "deliver", 20.0)
    run = ledger.latest_run(case.id)
    assert run is not None
    for _, delivery in ledger.deliveries(run.id):
        if delivery.peer in to:
            ledger.answered(delivery, 20.0, status=0, detail="", delivered=True)
    ledger.delivered(attempt, run, 20.0, "", PEERS)
    return ledger.case(case.id), run


def asked(ledger: Ledger, run: Run, peer: str, transaction: str) -> list[str]:
    """Ask a peer for everything. returns: the SOP Instance UIDs."""
    items = [(r, d) for r, d in ledger.deliveries(run.id) if d.peer == peer]
    number = ledger.ask(run.id, peer, transaction, [d.id for _, d in items], 30.0)
    ledger.asked(number, "waiting", "", 1000.0)
    return [r.new.sop_instance_uid for r, _ in items]


def test_a_case_waits_until_each_of_the_peers_has_committed(ledger: Ledger, tmp_path: Path) -> None:
    case, run = sent(ledger, tmp_path)
    assert case.state is State.SENDING
    assert ledger.to_deliver(PEERS) == []
    assert [c.id for c in ledger.to_deliver(())] == [case.id]
    for number, peer in enumerate(PEERS):
        (item,) = ledger.uncommitted(peer)
        assert (item.case_id, item.run_id, item.since, item.outdated) == (case.id, run.id, 20.0, False)
        uids = asked(ledger, run, peer, f"2.25.{number}")
        (item,) = ledger.uncommitted(peer)
        assert (item.last_outcome, item.ask_again_at, item.failed) == ("waiting", 1000.0, False)
        assert ledger.reported(f"2.25.{number}", peer, uids, {}, 40.0, PEERS) is not None
        assert ledger.uncommitted(peer) == []
    assert ledger.case(case.id).state is State.DONE


def test_a_peer_that_has_everything_is_asked_though_another_lacks_it(ledger: Ledger, tmp_path: Path) -> None:
    case, _ = sent(ledger, tmp_path, ("PACS",))
    assert [i.case_id for i in ledger.uncommitted("PACS")] == [case.id]
    assert ledger.uncommitted("ARCHIVE") == []
    assert [c.id for c in ledger.to_deliver(PEERS)] == [case.id]


def test_what_failed_is_open_again_and_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    case, run = sent(ledger, tmp_path)
    first, *others = asked(ledger, run, "PACS", "2.25.1")
    ledger.reported("2.25.1", "PACS", others, {first: 0x0112}, 40.0, PEERS)
    (item,) = ledger.uncommitted("PACS")
    assert item.failed
    ledger.send_uncommitted_again(item, 50.0, "lost", 60.0)
    reopened = [(r.new.sop_instance_uid, d.peer) for r, d in ledger.deliveries(run.id) if not d.delivered_at]
    assert reopened == [(first, "PACS")]
    assert ledger.uncommitted("PACS") == []
    (again,) = ledger.to_deliver(PEERS)
    assert (again.id, again.state, again.reason, again.next_attempt_at) == (
        case.id,
        State.SENDING,
        "lost",
        60.0,
    )


def test_a_report_of_another_peer_or_on_nothing_is_not_taken(ledger: Ledger, tmp_path: Path) -> None:
    _, run = sent(ledger, tmp_path)
    uids = asked(ledger, run, "PACS", "2.25.1")
    assert ledger.reported("2.25.1", "ARCHIVE", uids, {}, 40.0, PEERS) is None
    assert ledger.reported("2.25.2", "PACS", uids, {}, 40.0, PEERS) is None
    assert {d.committed_at for _, d in ledger.deliveries(run.id)} == {None}


def test_a_report_may_overtake_the_answer_to_its_request(ledger: Ledger, tmp_path: Path) -> None:
    _, run = sent(ledger, tmp_path)
    items = [(r, d) for r, d in ledger.deliveries(run.id) if d.peer == "PACS"]
    number = ledger.ask(run.id, "PACS", "2.25.1", [d.id for _, d in items], 30.0)
    ledger.reported("2.25.1", "PACS", [r.new.sop_instance_uid for r, _ in items], {}, 31.0, PEERS)
    ledger.asked(number, "waiting", "", 1000.0)
    assert [c.outcome for c in ledger.commitments(run.id)] == ["committed"]


def test_a_promise_is_open_until_the_peer_is_told_or_given_up(ledger: Ledger) -> None:
    objects = [("1.2.840.10008.5.1.4.1.1.2", "1.2.3.1")]
    number, is_new = ledger.promise("SCANNER", "2.25.1", objects, 10.0)
    assert is_new
    ledger.not_told(number, "down", 40.0)
    (promise,) = ledger.open_promises()
    assert (promise.tries, promise.next_attempt_at) == (1, 40.0)
    assert list(ledger.promised(promise.id)) == objects
    ledger.told(number, 50.0)
    assert ledger.open_promises() == []
    assert ledger.promise("SCANNER", "2.25.1", objects, 60.0) == (number, False)
    assert [p.tries for p in ledger.open_promises()] == [0]
    assert ledger.promise("OTHER", "2.25.1", objects, 60.0)[1], "another peer's transactions are its own"


def test_a_want_is_about_the_case_as_it_is(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([instance()], 10.0)
    case = ledger.case(case_id)
    want = ledger.want(case, 70.0, "no SPECT", ("SPECT",))
    assert want is not None
    assert [(c.id, w) for c, w in ledger.open_wants()] == [(case_id, want)]
    ledger.asked_about(want, 130.0, settled=False, counts=True)
    assert ledger.want(case, 75.0, "no SPECT", ("SPECT",)) == ledger.wanted(case_id), "said twice, it is one"
    ledger.add_instances([instance(number=2, at=80.0)], 80.0)
    assert ledger.open_wants() == []
    assert ledger.want(case, 81.0, "no SPECT", ("SPECT",)) is None, "an object arrived meanwhile"
    newer = ledger.want(ledger.case(case_id), 150.0, "no SPECT", ("SPECT",))
    assert newer is not None
    assert (newer.requests, newer.next_attempt_at) == (1, 0.0)
    ledger.forget_want(case_id, named=True)
    assert ledger.wanted(case_id) is None


def test_a_round_that_ends_after_an_object_came_settles_nothing(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([instance()], 10.0)
    before = ledger.want(ledger.case(case_id), 70.0, "", ())
    assert before is not None
    ledger.add_instances([instance(number=2, at=80.0)], 80.0)
    after = ledger.want(ledger.case(case_id), 150.0, "", ())
    ledger.asked_about(before, 200.0, settled=True, counts=True)
    assert after is not None
    now = ledger.wanted(case_id)
    assert now is not None
    assert not now.settled


def test_what_a_pacs_named_is_outstanding_until_it_is_here_or_the_pacs_says_otherwise(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([instance()], 10.0)
    series, asked = instance().series_instance_uid, ("PACS", "OTHER")
    late = [instance(number=n, at=30.0) for n in (2, 3)]
    uids = [i.sop_instance_uid for i in late]
    assert ledger.absent(case_id, [instance().sop_instance_uid, *uids]) == set(uids)
    first = ledger.begin_enquiry(case_id, "PACS", "", 20.0)
    ledger.named(first, {series: uids})
    open_one = ledger.asking(case_id)
    assert open_one is not None
    assert (open_one.id, open_one.missing) == (first, 2)
    ledger.close_enquiries("the node stopped")
    assert ledger.asking(case_id) is None
    ledger.add_instances(late[:1], 30.0)
    assert ledger.counted(first) == (2, 1)
    ((enquiry, objects),) = ledger.outstanding(case_id, asked)
    assert (enquiry.id, enquiry.outcome, objects) == (first, "unreachable", 1)
    ledger.forget_want(case_id, named=False)
    other = ledger.begin_enquiry(case_id, "OTHER", "", 40.0)
    ledger.named(other, {})
    assert len(ledger.outstanding(case_id, asked)) == 1, "what one has not says nothing of the other"
    second = ledger.begin_enquiry(case_id, "PACS", "", 50.0)
    ledger.named(second, {})
    assert ledger.outstanding(case_id, asked) == []
    assert ledger.counted(second) == (0, 0)
    ledger.named(second, {series: uids[1:]})
    ledger.forget_want(case_id, named=True)
    assert ledger.outstanding(case_id, asked) == []
