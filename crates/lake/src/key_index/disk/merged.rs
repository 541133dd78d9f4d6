//! Several runs read as one: of entries of one key, the newest run's counts.

use alluvium_change::Result;

use super::run::{Entry, Run, Scan};

/// Entries of runs, given oldest first, with an order within the bounds; those that are gone, too.
///
/// # Errors
/// A file that cannot be read or is damaged; what `take` returns.
pub(super) fn merged(
    runs: &[&Run],
    (from, until): (u64, Option<u64>),
    take: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let mut scans: Vec<Scan<'_>> = runs.iter().map(|run| Scan::new(run, from, until)).collect();
    if let [scan] = scans.as_mut_slice() {
        while let Some(entry) = scan.next()? {
            take(entry)?;
        }
        return Ok(());
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
        let Some(least) = least else { return Ok(()) };
        for (head, scan) in heads.iter_mut().zip(&mut scans) {
            if head.is_some_and(|head| head.key == least.key) {
                *head = scan.next()?;
            }
        }
        take(least)?;
    }
}
