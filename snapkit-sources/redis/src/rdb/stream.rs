//! Streams: messages, consumer groups and what was given to whom and not acknowledged (`src/t_stream.c`, `rdb.c`).

use std::io::Read;

use snapkit_core::{Error, Result};

use super::digest::{Elements, ValueDigest};
use super::input::{Input, MAX_PACKED, Raw};
use super::packed::Listpack;

/// A message is not there any more.
const DELETED: i64 = 1;
/// It has the fields of the first of its listpack.
const SAME_FIELDS: i64 = 2;

/// The identity of a message, as 16 bytes that sort as it does.
fn identity(ms: u64, number: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&ms.to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

fn broken(why: &str) -> Error {
    Error::corrupt(format!("a stream is malformed: {why}"))
}

/// Read a stream of the format's version 1 (encoding 15), 2 (19, Redis 7.0) or 3 (21, Redis 7.2).
pub(super) fn read<R: Read>(
    input: &mut Input<R>,
    version: u8,
    raw: Raw<'_>,
) -> Result<ValueDigest> {
    let mut elements = Elements::in_order("stream");
    let listpacks = input.length_raw(raw)?;
    for _ in 0..listpacks {
        let first = input.string_raw(16, raw)?;
        let packed = input.string_raw(MAX_PACKED, raw)?;
        messages(&first, &packed, &mut elements)?;
    }
    // How many there are, the last that was added; since 7.0 the first, the highest that was deleted, and how many
    // were ever added.
    let numbers = if version >= 2 { 8 } else { 3 };
    let mut about = Vec::new();
    for _ in 0..numbers {
        about.extend_from_slice(&input.length_raw(raw)?.to_be_bytes());
    }
    if about[..8] != elements.count().to_be_bytes() {
        return Err(broken("it has another number of messages than it says"));
    }
    // The first is known from the messages, and a server that has never heard of the others gives none.
    elements.note(&[b"last", &about[8..24]]);
    if version >= 2 {
        elements.note(&[b"deleted and added", &about[40..]]);
    }
    let groups = input.length_raw(raw)?;
    // In any order: they are sorted in memory by the server, and by their names here.
    let mut all = Elements::in_any_order("groups");
    let mut pending = 0_u64;
    for _ in 0..groups {
        let group = group(input, version, raw)?;
        all.add(&[&group.hash]);
        pending = pending.saturating_add(group.pending);
    }
    elements.note(&[b"groups", &all.finish().hash]);
    Ok(ValueDigest { groups, pending, ..elements.finish() })
}

/// The messages of a listpack. The first element is about all of them: how many are there, how many are deleted, and the
/// fields that most have.
fn messages(first: &[u8], packed: &[u8], elements: &mut Elements) -> Result<()> {
    let (Some(ms), Some(number)) = (first.first_chunk::<8>(), first.last_chunk::<8>()) else {
        return Err(broken("an identity has another length"));
    };
    if first.len() != 16 {
        return Err(broken("an identity has another length"));
    }
    let (first_ms, first_number) = (u64::from_be_bytes(*ms), u64::from_be_bytes(*number));
    let mut pack = Listpack::new(packed)?;
    let (_, _) = (pack.must_number()?, pack.must_number()?);
    let count = count(pack.must_number()?)?;
    let mut fields = Vec::new();
    for _ in 0..count {
        fields.push(pack.must()?);
    }
    pack.must()?;
    while let Some(flags) = pack.next()? {
        let flags = flags.number().ok_or_else(|| broken("a message has no flags"))?;
        let ms = first_ms.wrapping_add(pack.must_number()?.cast_unsigned());
        let number = first_number.wrapping_add(pack.must_number()?.cast_unsigned());
        let own =
            if flags & SAME_FIELDS != 0 { None } else { Some(self::count(pack.must_number()?)?) };
        let is_there = flags & DELETED == 0;
        let mut message = Elements::in_order("message");
        let mut shared = fields.iter();
        for _ in 0..own.unwrap_or(fields.len()) {
            let field = match (own, shared.next()) {
                (None, Some(field)) => *field,
                _ => pack.must()?,
            };
            let value = pack.must()?;
            field.with_text(|field| value.with_text(|value| message.add(&[field, value])));
        }
        // How many elements of the listpack it has.
        pack.must()?;
        if is_there {
            elements.add(&[&identity(ms, number), &message.finish().hash]);
        }
    }
    Ok(())
}

fn count(number: i64) -> Result<usize> {
    usize::try_from(number).map_err(|_| broken("a number of fields is impossible"))
}

fn group<R: Read>(input: &mut Input<R>, version: u8, raw: Raw<'_>) -> Result<ValueDigest> {
    let mut group = Elements::in_any_order("group");
    let name = input.string_raw(MAX_PACKED, raw)?;
    let last = identity(input.length_raw(raw)?, input.length_raw(raw)?);
    group.note(&[b"name", &name, &last]);
    if version >= 2 {
        // How many it has read, or -1 if nobody knows.
        group.note(&[b"read", &input.length_raw(raw)?.to_be_bytes()]);
    }
    let pending = input.length_raw(raw)?;
    for _ in 0..pending {
        let id: [u8; 16] = input.array_raw(raw)?;
        let delivered: [u8; 8] = input.array_raw(raw)?;
        let times = input.length_raw(raw)?;
        group.add(&[b"pending", &id, &delivered, &times.to_be_bytes()]);
    }
    let consumers = input.length_raw(raw)?;
    for _ in 0..consumers {
        let mut consumer = Elements::in_any_order("consumer");
        let name = input.string_raw(MAX_PACKED, raw)?;
        let seen: [u8; 8] = input.array_raw(raw)?;
        consumer.note(&[b"name", &name, &seen]);
        // A server that knows when a consumer was last given something takes what an older one says for both.
        let active = if version >= 3 { input.array_raw(raw)? } else { seen };
        consumer.note(&[b"active", &active]);
        let pending = input.length_raw(raw)?;
        for _ in 0..pending {
            let id: [u8; 16] = input.array_raw(raw)?;
            consumer.add(&[&id]);
        }
        group.add(&[b"consumer", &consumer.finish().hash]);
    }
    Ok(ValueDigest { pending, ..group.finish() })
}
