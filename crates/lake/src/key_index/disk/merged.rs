//! Several runs read as one: of entries of one key, the newest run's counts.

use alluvium_change::Result;

use super::run::{Entry, Run, Scan};

/// What two runs that have the same key mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SameKey {
    NewestWins,
    /// The runs are parts of one index: the key is in it twice.
    IsDouble,
}

/// Entries of runs, given oldest first, with an order within the bounds; those that are gone, too.
/// False, and the end, at a key that is double where it may not be.
///
/// # Errors
/// A file that cannot be read or is damaged; what `take` returns.
pub(super) fn merged(
    runs: &[&Run],
    (from, until): (u64, Option<u64>),
    same_key: SameKey,
    take: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<bool> {
    let mut scans: Vec<Scan<'_>> = runs.iter().map(|run| Scan::new(run, from, until)).collect();
    if let [scan] = scans.as_mut_slice() {
        while let Some(entry) = scan.next()? {
            take(entry)?;
        }
        return Ok(true);
    }
    let mut heads = Vec::with_capacity(scans.len());
    for scan in &mut scans {
        heads.push(scan.next()?);
    }
    loop {
        let mut least: Option<Entry> = None;
        for head in heads.iter().flatten() {
            // Later runs win.
            if least.is_none_or(|least| (head.order, head.key) <= (least.order, least.key)) {
                least = Some(*head);
            }
        }
        let Some(least) = least else { return Ok(true) };
        let mut holders = 0;
        for (head, scan) in heads.iter_mut().zip(&mut scans) {
            if head.is_some_and(|head| head.key == least.key) {
                holders += 1;
                *head = scan.next()?;
            }
        }
        if holders > 1 && same_key == SameKey::IsDouble {
            return Ok(false);
        }
        take(least)?;
    }
}
