//! Keys and values that a person gives a snapshot.

use std::collections::BTreeMap;

use snapkit_core::error::{Error, Result};

/// Tags as they are given: `KEY=VALUE`.
pub(crate) fn parse(given: &[String]) -> Result<BTreeMap<String, String>> {
    let parse = |tag: &String| match tag.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::invalid(format!("a tag is KEY=VALUE, not {tag:?}"))),
    };
    given.iter().map(parse).collect()
}
