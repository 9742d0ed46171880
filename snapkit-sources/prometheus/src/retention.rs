//! What a server would delete of restored blocks. It compares the age of a block with that of its newest block, not with the
//! clock (`BeyondTimeRetention` in `tsdb/db.go`): old blocks look well after a start, and are gone when the first new
//! block is cut, two or three hours later.

use std::time::Duration;

use snapkit_core::context::Timestamp;

use crate::block::BlockMeta;

/// Read the time in what a server says of its retention: `15d`, `1y2w`, `15d or 10GiB`.
fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.split(" or ").find(|part| !part.ends_with('B'))?.trim();
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [
            ("ms", 1),
            ("s", 1000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
            ("w", 604_800_000),
            ("y", 31_536_000_000),
        ];
        let (unit, each) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        millis = millis.checked_add(number.checked_mul(each)?)?;
    }
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// What is to be said of blocks under a server's retention, at a moment. None if it is not understood.
pub(crate) fn warning(blocks: &[BlockMeta], text: &str, now: Timestamp) -> Option<String> {
    let retention = parse(text)?;
    let vanishes = |block: &BlockMeta| block.end() + retention;
    let gone: Vec<_> = blocks.iter().filter(|block| vanishes(block) <= now).collect();
    if let Some(last) = gone.iter().map(|block| block.end()).max() {
        return Some(format!(
            "{} of {} blocks, with samples until {last}, are older than the server keeps them ({text}): it deletes \
             them when it cuts its next block, within two or three hours of its start; give it a longer \
             --storage.tsdb.retention.time before",
            gone.len(),
            blocks.len()
        ));
    }
    let first = blocks.iter().map(vanishes).min()?;
    Some(format!("the server deletes the first of these blocks on {first} ({text} after its end)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_servers_write_them() {
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        for (text, expected) in [
            ("15d", days(15)),
            ("1y2w", days(365 + 14)),
            ("15d or 10GiB", days(15)),
            ("10GiB", None),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("250ms", Some(Duration::from_millis(250))),
            ("0s", None),
            ("", None),
            ("d", None),
            ("99999999999999999999y", None),
            ("9999999999999999y", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn what_vanishes_is_told_with_its_time() {
        let block = |hours: i64| BlockMeta {
            ulid: String::new(),
            min_time: (hours - 2) * 3_600_000,
            max_time: hours * 3_600_000,
            stats: crate::block::BlockStats::default(),
            version: 1,
        };
        let blocks = [block(10), block(12), block(60)];
        let told = |hours: i64| warning(&blocks, "2d", crate::block::time(hours * 3_600_000));
        let all = [told(20), told(58), told(61), told(200)].map(Option::unwrap);
        insta::assert_snapshot!(all.join("\n"), @"
        the server deletes the first of these blocks on 1970-01-03T10:00:00Z (2d after its end)
        1 of 3 blocks, with samples until 1970-01-01T10:00:00Z, are older than the server keeps them (2d): it deletes them when it cuts its next block, within two or three hours of its start; give it a longer --storage.tsdb.retention.time before
        2 of 3 blocks, with samples until 1970-01-01T12:00:00Z, are older than the server keeps them (2d): it deletes them when it cuts its next block, within two or three hours of its start; give it a longer --storage.tsdb.retention.time before
        3 of 3 blocks, with samples until 1970-01-03T12:00:00Z, are older than the server keeps them (2d): it deletes them when it cuts its next block, within two or three hours of its start; give it a longer --storage.tsdb.retention.time before
        ");
        assert_eq!(warning(&[], "2d", Timestamp(0)), None);
        assert_eq!(warning(&blocks, "10GiB", Timestamp(0)), None);
    }
}
