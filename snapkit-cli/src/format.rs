//! Numbers and times for people.

use std::time::Duration;

use snapkit_core::context::Timestamp;
use snapkit_core::error::{Error, Result};

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size in binary units, such as `1.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded up to 1024 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration, such as `0.4 s` or `2 min 5 s`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole seconds of a run, which are not negative"
)]
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, min, s) => format!("{min} min {s} s"),
        (h, min, _) => format!("{h} h {min} min"),
    }
}

/// A number of microseconds, such as `42.0 ms`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn micros(micros: u64) -> String {
    if micros < 1_000_000 {
        format!("{:.1} ms", micros as f64 / 1e3)
    } else {
        seconds(micros as f64 / 1e6)
    }
}

/// A time to the second.
pub(crate) fn time(at: Timestamp) -> String {
    const SECOND: i64 = 1_000_000_000;
    Timestamp(at.0.div_euclid(SECOND).saturating_mul(SECOND)).to_string()
}

/// A count with its noun.
pub(crate) fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Read a size such as `256MiB`, `1 GiB` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::invalid(format!("not a size such as 256MiB: {text:?}"));
    let text = text.trim();
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(bad()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(bad)
}

/// Read a duration such as `10s`, `500ms`, `2m`, `1h`, `7d` or `2w`; a number alone is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || Error::invalid(format!("not a duration such as 10s, 500ms or 2m: {text:?}"));
    let text = text.trim();
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let millis = match unit.trim() {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

/// Rows as a table: columns as wide as their widest cell, two spaces between, none at the end.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([head[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<_> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    std::iter::once(line(head))
        .chain(rows.iter().map(|row| line(std::array::from_fn(|i| row[i].as_str()))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (text, bytes) in
            [("1", 1), ("256MiB", 256 << 20), ("1 GiB", 1 << 30), ("2MB", 2_000_000)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for bad in ["", "MiB", "1.5MiB", "-1", "1 XiB", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(seconds(0.44), "0.4 s");
        assert_eq!(seconds(59.96), "1 min 0 s");
        assert_eq!(seconds(125.0), "2 min 5 s");
        assert_eq!(seconds(7260.0), "2 h 1 min");
        assert_eq!(micros(42_000), "42.0 ms");
        assert_eq!(time(Timestamp(1_768_487_400_999_999_999)), "2026-01-15T14:30:00Z");
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_duration("7d").unwrap(), Duration::from_secs(7 * 86_400));
        assert_eq!(parse_duration("5").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_duration("2w").unwrap(), Duration::from_secs(14 * 86_400));
        for bad in ["", "s", "1.5s", "1y", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [["a".to_owned(), "long cell".to_owned()], ["bc".to_owned(), String::new()]];
        assert_eq!(table(["X", "Y"], &rows), ["X   Y", "a   long cell", "bc"]);
    }
}
