//! How a suite says that a contract does not hold.

use std::fmt::Debug;

use snapkit_core::error::{Error, Reason};

/// The value, or a panic with the sentence that does not hold.
#[track_caller]
pub(crate) fn must<T, E: Debug>(sentence: &str, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("contract broken: {sentence}: {e:?}"),
    }
}

/// The error, which must have this reason.
#[track_caller]
pub(crate) fn must_fail<T: Debug>(sentence: &str, reason: Reason, result: Result<T, Error>) {
    match result {
        Ok(value) => {
            let value: String = format!("{value:?}").chars().take(200).collect();
            panic!("contract broken: {sentence}: it succeeded with {value}")
        }
        Err(e) if e.reason() == reason => {}
        Err(e) => panic!("contract broken: {sentence}: expected `{reason}`, got {e:?}"),
    }
}

/// A condition that must hold.
macro_rules! hold {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            panic!("contract broken: {}", format_args!($($sentence)+));
        }
    };
}
pub(crate) use hold;
