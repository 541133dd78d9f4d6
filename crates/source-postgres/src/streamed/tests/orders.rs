//! Pieces, savepoints, releases and rollbacks in every order there is, up to a length: of one
//! transaction, and of two whose pieces come in between each other.

use super::server::{Row, Server, What};
use super::{ALTERED, received};

/// What one transaction does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// A row, which is sent with all that waits as a piece.
    Send,
    /// A row that waits for the next piece, or is never sent.
    Keep,
    Savepoint,
    /// A savepoint, and a row that is sent after it.
    Within,
    Release,
    /// Back to the savepoint set last.
    Back,
    /// Back to the first one, with all within.
    BackToFirst,
    Commit,
    Abort,
}

use Move::{Abort, Back, BackToFirst, Commit, Keep, Release, Savepoint, Send, Within};

/// All that a transaction can do in `length` moves of `moves`, each ended in both ways.
fn scripts(moves: &[Move], length: usize) -> Vec<Vec<Move>> {
    let mut scripts = vec![(Vec::new(), 0_usize)];
    for _ in 0..length {
        let mut longer = Vec::new();
        for (script, depth) in scripts {
            for next in moves {
                let depth = match next {
                    Savepoint | Within => depth + 1,
                    Release | Back if depth > 0 => depth - 1,
                    // With one savepoint it is the same as `Back`.
                    BackToFirst if depth > 1 => 0,
                    Release | Back | BackToFirst => continue,
                    _ => depth,
                };
                let mut script: Vec<Move> = script.clone();
                script.push(*next);
                longer.push((script, depth));
            }
        }
        scripts = longer;
    }
    let ended = |(script, _): (Vec<Move>, usize)| {
        [Commit, Abort].map(|end| script.iter().copied().chain([end]).collect())
    };
    scripts.into_iter().flat_map(ended).collect()
}

/// Every way to do `first` and `second` at the same time, as whose move comes next.
fn interleavings(first: usize, second: usize) -> Vec<Vec<usize>> {
    if first == 0 || second == 0 {
        return vec![[vec![0; first], vec![1; second]].concat()];
    }
    let after = |who: usize, rest: Vec<Vec<usize>>| {
        rest.into_iter().map(move |rest| [vec![who], rest].concat())
    };
    after(0, interleavings(first - 1, second))
        .chain(after(1, interleavings(first, second - 1)))
        .collect()
}

/// Moves of several transactions, each with its transaction's place among those of the history.
type History = Vec<(usize, Move)>;

fn perform(server: &mut Server, history: &History) {
    let transactions = history.iter().map(|(who, _)| who + 1).max().unwrap_or(0);
    let xids: Vec<u32> = (0..transactions).map(|_| server.begin(true)).collect();
    for (id, (who, what)) in (0..).zip(history) {
        let at = server.place_of(xids[*who]).unwrap();
        if matches!(what, Savepoint | Within) {
            server.savepoint(at);
        }
        if matches!(what, Send | Keep | Within) {
            server.change(at, ALTERED, What::Insert { id, bytes: 20 });
        }
        match what {
            Send | Within => server.flush(at),
            Keep | Savepoint => {}
            Release => server.release(at),
            Back => server.rollback_to(at, server.depth(at) - 1),
            BackToFirst => server.rollback_to(at, 0),
            Commit => server.commit(at),
            Abort => server.abort(at),
        }
    }
}

/// What was received, and what was committed.
fn outcome(histories: &[History], budget_bytes: usize) -> (Vec<Row>, Vec<Row>) {
    let mut server = Server::new(true);
    for history in histories {
        perform(&mut server, history);
    }
    (received(&server.messages, budget_bytes, 7), server.expected)
}

/// All histories come out as they committed, whether all of them is on disk or nothing. Many are one
/// stream: what an earlier one leaves behind would show.
fn come_out(histories: &[History]) {
    for budget_bytes in [0, usize::MAX] {
        for some in histories.chunks(500) {
            let (rows, expected) = outcome(some, budget_bytes);
            if rows == expected {
                continue;
            }
            for one in some {
                let (rows, expected) = outcome(std::slice::from_ref(one), budget_bytes);
                assert_eq!(rows, expected, "{one:?} with {budget_bytes} bytes");
            }
            panic!("histories that come out alone do not after others");
        }
    }
}

#[test]
fn a_transaction_comes_out_in_whatever_order_parts_of_it_are_rolled_back() {
    let all = [Send, Keep, Savepoint, Release, Back, BackToFirst];
    // More of them, and deeper within each other.
    let deep = [Within, Release, Back, BackToFirst];
    let mut histories: Vec<History> = Vec::new();
    for (moves, most) in [(&all[..], 6), (&deep[..], 8)] {
        for length in 1..=most {
            let alone = |script: Vec<Move>| script.into_iter().map(|what| (0, what)).collect();
            histories.extend(scripts(moves, length).into_iter().map(alone));
        }
    }
    assert!(histories.len() > 10_000, "{}", histories.len());
    come_out(&histories);
}

#[test]
fn two_transactions_come_out_in_whatever_order_their_pieces_and_rollbacks_come() {
    let scripts = scripts(&[Send, Savepoint, Back], 3);
    let orders = interleavings(4, 4);
    assert_eq!(orders.len(), 70);
    let mut histories: Vec<History> = Vec::new();
    for first in &scripts {
        for second in &scripts {
            for order in &orders {
                let mut moves = [first.iter(), second.iter()];
                let next = |who: &usize| (*who, *moves[*who].next().unwrap());
                histories.push(order.iter().map(next).collect());
            }
        }
    }
    assert!(histories.len() > 10_000, "{}", histories.len());
    come_out(&histories);
}
