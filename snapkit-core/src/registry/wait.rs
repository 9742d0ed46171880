//! A wait in a document: seconds, or text such as `500ms`, `10s`, `2m` or `1h`; at most a day.
//!
//! For `#[serde(with = "snapkit_core::registry::wait")]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest wait that can be configured, in seconds: a day.
pub const LONGEST: f64 = 86_400.0;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wait {
    Whole(u64),
    Seconds(f64),
    Text(String),
}

/// Write seconds.
pub fn serialize<S: Serializer>(wait: &Duration, s: S) -> Result<S::Ok, S::Error> {
    match wait.subsec_nanos() {
        0 => Wait::Whole(wait.as_secs()),
        _ => Wait::Seconds(wait.as_secs_f64()),
    }
    .serialize(s)
}

/// Read seconds or text.
pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let wrong =
        || serde::de::Error::custom("must be seconds, or text such as \"10s\", at most a day");
    let (number, unit) = match Wait::deserialize(d).map_err(|_| wrong())? {
        Wait::Whole(seconds) => {
            return short_enough(Duration::from_secs(seconds)).ok_or_else(wrong);
        }
        Wait::Seconds(seconds) => (seconds, 1.0),
        Wait::Text(text) => {
            let text = text.trim();
            let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let unit = match unit.trim() {
                "ms" => 0.001,
                "s" | "" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            (number.trim().parse::<f64>().map_err(|_| wrong())?, unit)
        }
    };
    Duration::try_from_secs_f64(number * unit).ok().and_then(short_enough).ok_or_else(wrong)
}

fn short_enough(wait: Duration) -> Option<Duration> {
    (wait.as_secs_f64() <= LONGEST).then_some(wait)
}
