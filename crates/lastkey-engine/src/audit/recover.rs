//! Putting back what a crash kept from the segments, and finding the one to go on with.

use std::{collections::HashSet, io, path::Path};

use lastkey_store::disk::{Access, Disk};

use super::{
    Head, files,
    journal::{Frame, Position},
    segment::{self, Segment},
};

/// Puts back what the segments lost of the journal's frames: bytes missing at the end, or blocks
/// of zeros. Other bytes in their place were changed by somebody; they stay, as evidence.
/// Segments that were deleted on purpose, up to record `deleted`, and those that were closed,
/// made durable and compressed since, are left alone. Only where a segment is missing is it asked
/// what was deleted: the answer takes reading all checkpoints.
pub(super) fn restore(
    disk: &dyn Disk,
    directory: &Path,
    frames: &[Frame],
    deleted: impl FnOnce() -> io::Result<u64>,
) -> io::Result<()> {
    let segments = files::list(disk, directory)?;
    let is_missing = |frame: &Frame| {
        !frame.payload.is_empty()
            && segments.iter().all(|file| file.first != frame.position.segment)
    };
    let deleted = if frames.iter().any(is_missing) { deleted()? } else { 0 };
    let compressed: HashSet<u64> = segments
        .iter()
        .filter(|file| file.compressed && !file.plain)
        .map(|file| file.first)
        .collect();
    let left_alone = |frame: &Frame| {
        frame.payload.is_empty()
            || frame.head.seq <= deleted
            || compressed.contains(&frame.position.segment)
    };
    let mut restored = 0usize;
    let mut open: Option<(u64, Segment)> = None;
    for frame in frames.iter().filter(|frame| !left_alone(frame)) {
        let first = frame.position.segment;
        if open.as_ref().is_none_or(|(of, _)| *of != first) {
            if let Some((_, done)) = open.take() {
                done.sync()?;
            }
            let segment = Segment::open(disk, directory, first)?;
            // What a failed sync left in memory would hide what is missing on the disk.
            segment.forget_cache();
            open = Some((first, segment));
        }
        let Some((_, segment)) = &open else { continue };
        let found = segment.read_at(frame.payload.len(), frame.position.offset)?;
        if found == frame.payload {
            continue;
        }
        let lost = frame
            .payload
            .iter()
            .enumerate()
            .all(|(i, b)| found.get(i).is_none_or(|seen| seen == b || *seen == 0));
        if lost {
            segment.write_at(&frame.payload, frame.position.offset)?;
            restored += frame.payload.len();
        } else {
            tracing::error!(
                segment = segment::name(first),
                "audit records differ from the journal's; run `lastkey audit verify`"
            );
        }
    }
    if let Some((_, last)) = open {
        last.sync()?;
    }
    if restored > 0 {
        tracing::warn!(bytes = restored, "audit records were put back from the journal");
    }
    Ok(())
}

/// The segment to go on with. One that does not end where it should is left as it is, for
/// `audit verify` to show, and a new one is begun.
pub(super) fn resume(
    disk: &dyn Disk,
    directory: &Path,
    head: Head,
    end: Position,
) -> io::Result<(Segment, Position)> {
    if let Err(error) = drop_unused(disk, directory, end.segment) {
        tracing::warn!(%error, "an audit segment that holds nothing cannot be removed");
    }
    if end.offset == 0 || segment::exists(disk, directory, end.segment)? {
        let segment = Segment::open(disk, directory, end.segment)?;
        if segment.len()? == end.offset {
            return Ok((segment, end));
        }
    }
    tracing::error!(
        segment = segment::name(end.segment),
        "the audit segment does not end where the journal says; run `lastkey audit verify`"
    );
    let fresh = Position { segment: head.seq + 1, offset: 0 };
    Ok((Segment::open(disk, directory, fresh.segment)?, fresh))
}

/// Gives back what closed segments have reserved and not used, those of releases that left it with
/// them, and of one that a crash kept from it.
pub(super) fn give_back(disk: &dyn Disk, directory: &Path, open: u64) -> io::Result<()> {
    for file in files::list(disk, directory)? {
        if file.first < open && file.plain {
            let path = directory.join(segment::name(file.first));
            disk.open(&path, Access::Write)?.give_back()?;
        }
    }
    Ok(())
}

/// Removes segments behind the open one that were begun and got no record: the open one goes on
/// beyond where their names say that they begin, which would hide its records from searches.
fn drop_unused(disk: &dyn Disk, directory: &Path, open: u64) -> io::Result<()> {
    let mut removed = false;
    for file in files::list(disk, directory)? {
        if file.first > open && file.plain && file.open(disk, directory)?.file.length()? == 0 {
            disk.remove(&directory.join(segment::name(file.first)))?;
            removed = true;
        }
    }
    if removed { disk.sync_directory(directory) } else { Ok(()) }
}
