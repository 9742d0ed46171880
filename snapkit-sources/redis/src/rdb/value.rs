//! Values, by the number of their encoding (`RDB_TYPE_*` in `src/rdb.h`).

use std::io::Read;

use snapkit_core::{Error, Reason, Result};

use super::digest::{Elements, ValueDigest};
use super::input::{Input, MAX_KEY, MAX_PACKED, Raw};
use super::packed::{self, Element, Listpack, Ziplist};
use super::stream;

/// What kind of value an encoding is of.
pub(super) fn kind(encoding: u8) -> &'static str {
    match encoding {
        0 => "string",
        1 | 10 | 14 | 18 => "list",
        2 | 11 | 20 => "set",
        3 | 5 | 12 | 17 => "zset",
        4 | 9 | 13 | 16 | 24 | 25 => "hash",
        7 => "module",
        15 | 19 | 21 => "stream",
        _ => "unknown",
    }
}

/// The lowest version of the format that knows an encoding (`src/redisver.h` of redis/librdb). What is older than every
/// server that anybody runs counts as version 9.
pub(super) fn version(encoding: u8) -> u32 {
    match encoding {
        16..=19 => 10,
        20 | 21 => 11,
        22..=25 => 12,
        _ => 9,
    }
}

/// An error for an encoding that is not known.
pub(super) fn check(encoding: u8) -> Result<()> {
    let what = match encoding {
        6 => "a value of a module, in the form before Redis 4".to_owned(),
        22 | 23 => "a hash in the form of a release candidate of Redis 7.4".to_owned(),
        _ if kind(encoding) == "unknown" => format!("something with the number {encoding}"),
        _ => return Ok(()),
    };
    Err(Error::new(
        Reason::Unsupported,
        format!(
            "the snapshot holds {what}, which is not known here; nothing behind it can be read"
        ),
    ))
}

/// Read a value.
pub(super) fn read<R: Read>(
    input: &mut Input<R>,
    encoding: u8,
    raw: Raw<'_>,
) -> Result<ValueDigest> {
    match encoding {
        0 => {
            let mut text = blake3::Hasher::new();
            input.pieces(MAX_KEY, raw, &mut |piece| {
                text.update(piece);
                Ok(())
            })?;
            let mut elements = Elements::in_order("string");
            elements.add(&[text.finalize().as_bytes(), &text.count().to_le_bytes()]);
            Ok(elements.finish())
        }
        1 => strings(input, raw),
        2 | 4 | 24 => {
            let head = head(input, encoding, raw)?;
            table(input, encoding, &head, &mut |_, element| raw(element))
        }
        3 | 5 => sorted_set(input, encoding, raw),
        7 => module(input, raw),
        9 => {
            let mut elements = Elements::in_any_order("hash");
            let packed = input.string_raw(MAX_PACKED, raw)?;
            packed::zipmap(&packed, |field, value| elements.add(&[field, value, &[]]))?;
            Ok(elements.finish())
        }
        11 => {
            let mut elements = Elements::in_any_order("set");
            let packed = input.string_raw(MAX_PACKED, raw)?;
            packed::intset(&packed, |number| elements.add(&[number.to_string().as_bytes()]))?;
            Ok(elements.finish())
        }
        10 | 12 | 13 => {
            let packed = input.string_raw(MAX_PACKED, raw)?;
            let mut list = Ziplist::new(&packed)?;
            match encoding {
                10 => singles(Elements::in_order("list"), || list.next()),
                12 => scores(|| list.next()),
                _ => fields(|| list.next()),
            }
        }
        14 | 18 => quicklist(input, encoding, raw),
        16 | 17 | 20 => {
            let packed = input.string_raw(MAX_PACKED, raw)?;
            let mut list = Listpack::new(&packed)?;
            match encoding {
                16 => fields(|| list.next()),
                17 => scores(|| list.next()),
                _ => singles(Elements::in_any_order("set"), || list.next()),
            }
        }
        25 => {
            let _soonest: [u8; 8] = input.array_raw(raw)?;
            let packed = input.string_raw(MAX_PACKED, raw)?;
            packed_expiring_hash(&packed)
        }
        15 => stream::read(input, 1, raw),
        19 => stream::read(input, 2, raw),
        21 => stream::read(input, 3, raw),
        _ => Err(Error::internal("the encoding of a value was not checked")),
    }
}

fn strings<R: Read>(input: &mut Input<R>, raw: Raw<'_>) -> Result<ValueDigest> {
    let mut elements = Elements::in_order("list");
    for _ in 0..input.length_raw(raw)? {
        elements.add(&[&input.string_raw(MAX_PACKED, raw)?]);
    }
    Ok(elements.finish())
}

/// Whether a value is kept as a table: its elements come in an order that is another one after each start of the
/// server, which hashes with a random seed.
pub(super) fn is_table(encoding: u8) -> bool {
    matches!(encoding, 2 | 4 | 24)
}

/// What stands before the elements of a table.
#[derive(Debug)]
pub(super) struct Head {
    /// When the first of the fields of a hash expires (Redis 7.4).
    soonest: Option<u64>,
    count: u64,
}

pub(super) fn head<R: Read>(input: &mut Input<R>, encoding: u8, raw: Raw<'_>) -> Result<Head> {
    let soonest = match encoding {
        24 => Some(u64::from_le_bytes(input.array_raw(raw)?)),
        _ => None,
    };
    Ok(Head { soonest, count: input.length_raw(raw)? })
}

/// Read the elements of a table: each goes to `each` as it is, with how many of its bytes stand before its name. That
/// is, where fields expire, how much later than the first this one does, plus one, or 0.
pub(super) fn table<R: Read>(
    input: &mut Input<R>,
    encoding: u8,
    head: &Head,
    each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<ValueDigest> {
    let mut elements = Elements::in_any_order(kind(encoding));
    let mut element = Vec::new();
    for _ in 0..head.count {
        element.clear();
        let expires = match head.soonest {
            Some(soonest) => {
                let later = input.length_raw(&mut keep(&mut element))?;
                later.checked_sub(1).map(|later| soonest.wrapping_add(later))
            }
            None => None,
        };
        let before = element.len();
        let name = input.string_raw(MAX_PACKED, &mut keep(&mut element))?;
        if encoding == 2 {
            elements.add(&[&name]);
        } else {
            let value = input.string_raw(MAX_PACKED, &mut keep(&mut element))?;
            add_field(&mut elements, &name, &value, expires);
        }
        each(before, &element)?;
    }
    Ok(elements.finish())
}

fn keep(to: &mut Vec<u8>) -> impl FnMut(&[u8]) -> Result<()> {
    |piece| {
        to.extend_from_slice(piece);
        Ok(())
    }
}

/// A hash whose fields expire, in a listpack: fields, values and when each expires, or 0.
fn packed_expiring_hash(packed: &[u8]) -> Result<ValueDigest> {
    let mut elements = Elements::in_any_order("hash");
    let mut list = Listpack::new(packed)?;
    while let Some(field) = list.next()? {
        let value = list.must()?;
        let expires = u64::try_from(list.must_number()?).unwrap_or(0);
        field.with_text(|field| {
            value.with_text(|value| {
                add_field(&mut elements, field, value, (expires > 0).then_some(expires));
            });
        });
    }
    Ok(elements.finish())
}

fn add_field(elements: &mut Elements, field: &[u8], value: &[u8], expires: Option<u64>) {
    match expires {
        Some(at) => elements.add(&[field, value, &at.to_le_bytes()]),
        None => elements.add(&[field, value, &[]]),
    }
}

fn sorted_set<R: Read>(input: &mut Input<R>, encoding: u8, raw: Raw<'_>) -> Result<ValueDigest> {
    let mut elements = Elements::in_any_order("zset");
    for _ in 0..input.length_raw(raw)? {
        let member = input.string_raw(MAX_PACKED, raw)?;
        let score = match encoding {
            5 => f64::from_le_bytes(input.array_raw(raw)?),
            _ => text_score(input, raw)?,
        };
        add_score(&mut elements, &member, score);
    }
    Ok(elements.finish())
}

/// A score as text, as before Redis 4: a length, or a number that stands for what has no digits.
fn text_score<R: Read>(input: &mut Input<R>, raw: Raw<'_>) -> Result<f64> {
    let [len] = input.array_raw(raw)?;
    Ok(match len {
        253 => f64::NAN,
        254 => f64::INFINITY,
        255 => f64::NEG_INFINITY,
        len => {
            let mut text = Vec::new();
            for _ in 0..len {
                text.extend(input.array_raw::<1>(raw)?);
            }
            packed::score(&text).ok_or_else(|| input.broken("a score is no number"))?
        }
    })
}

fn add_score(elements: &mut Elements, member: &[u8], score: f64) {
    // There are two zeros, and they are one score.
    let score = if score == 0.0 { 0.0 } else { score };
    elements.add(&[member, &score.to_bits().to_le_bytes()]);
}

/// A list as a list of packed ones; one that is too long for that stands for itself (Redis 7.0).
fn quicklist<R: Read>(input: &mut Input<R>, encoding: u8, raw: Raw<'_>) -> Result<ValueDigest> {
    let mut elements = Elements::in_order("list");
    for _ in 0..input.length_raw(raw)? {
        let container = if encoding == 18 { input.length_raw(raw)? } else { 2 };
        let packed = input.string_raw(MAX_PACKED, raw)?;
        let mut add = |element: Element<'_>| element.with_text(|text| elements.add(&[text]));
        match (container, encoding) {
            (1, _) => add(Element::Text(&packed)),
            (2, 14) => {
                let mut list = Ziplist::new(&packed)?;
                while let Some(element) = list.next()? {
                    add(element);
                }
            }
            (2, _) => {
                let mut list = Listpack::new(&packed)?;
                while let Some(element) = list.next()? {
                    add(element);
                }
            }
            _ => return Err(input.broken("a part of a list is of an unknown kind")),
        }
    }
    Ok(elements.finish())
}

/// A value of a module: its identity, then tagged parts up to a tag of none.
fn module<R: Read>(input: &mut Input<R>, raw: Raw<'_>) -> Result<ValueDigest> {
    let mut elements = Elements::in_order("module");
    let id = input.length_raw(raw)?;
    elements.note(&[&id.to_le_bytes()]);
    loop {
        let tag = input.length_raw(raw)?;
        match tag {
            0 => return Ok(elements.finish()),
            1 | 2 => elements.add(&[&input.length_raw(raw)?.to_le_bytes()]),
            3 => elements.add(&[&input.array_raw::<4>(raw)?]),
            4 => elements.add(&[&input.array_raw::<8>(raw)?]),
            5 => elements.add(&[&input.string_raw(MAX_KEY, raw)?]),
            _ => return Err(input.broken("a part of a module's value is of an unknown kind")),
        }
    }
}

/// The name in the identity of a module: nine characters of six bits (`src/module.c`).
pub(super) fn module_name(id: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letter = |n: u32| char::from(LETTERS[(id >> (58 - 6 * n) & 63) as usize]);
    (0..9).map(letter).collect()
}

type Next<'a> = Result<Option<Element<'a>>>;

fn singles<'a>(mut elements: Elements, mut next: impl FnMut() -> Next<'a>) -> Result<ValueDigest> {
    while let Some(element) = next()? {
        element.with_text(|text| elements.add(&[text]));
    }
    Ok(elements.finish())
}

fn fields<'a>(mut next: impl FnMut() -> Next<'a>) -> Result<ValueDigest> {
    let mut elements = Elements::in_any_order("hash");
    while let Some((field, value)) = pair(&mut next)? {
        field.with_text(|field| value.with_text(|value| elements.add(&[field, value, &[]])));
    }
    Ok(elements.finish())
}

fn scores<'a>(mut next: impl FnMut() -> Next<'a>) -> Result<ValueDigest> {
    let mut elements = Elements::in_any_order("zset");
    while let Some((member, score)) = pair(&mut next)? {
        let score = score.score().ok_or_else(|| Error::corrupt("a score is no number"))?;
        member.with_text(|member| add_score(&mut elements, member, score));
    }
    Ok(elements.finish())
}

fn pair<'a>(next: &mut impl FnMut() -> Next<'a>) -> Result<Option<(Element<'a>, Element<'a>)>> {
    let Some(first) = next()? else { return Ok(None) };
    let second = next()?.ok_or_else(|| Error::corrupt("a packed value has half a pair"))?;
    Ok(Some((first, second)))
}
