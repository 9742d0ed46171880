//! Small values that are packed into one string: listpacks, ziplists, intsets and zipmaps.

use snapkit_core::{Error, Result};

/// An element of a packed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element<'a> {
    Text(&'a [u8]),
    Number(i64),
}

impl Element<'_> {
    /// As a client sees it.
    pub(super) fn with_text<T>(self, f: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Text(text) => f(text),
            Self::Number(number) => f(number.to_string().as_bytes()),
        }
    }

    /// The number that it is.
    pub(super) fn number(self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        }
    }

    /// The score that it is.
    pub(super) fn score(self) -> Option<f64> {
        match self {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a score is a double, and was one before"
            )]
            Self::Number(number) => Some(number as f64),
            Self::Text(text) => score(text),
        }
    }
}

/// A score as the server writes it.
pub(super) fn score(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn broken(what: &str, why: &str) -> Error {
    Error::corrupt(format!("a packed value is malformed ({what}): {why}"))
}

/// Takes bytes from the front.
struct Bytes<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.rest.split_at_checked(n).ok_or_else(|| broken(self.what, "it ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A signed little-endian number of up to eight bytes.
    fn number(&mut self, bytes: usize) -> Result<i64> {
        let taken = self.take(bytes)?;
        let number = taken.iter().rev().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        let shift = 64 - 8 * bytes;
        Ok((number << shift).cast_signed() >> shift)
    }

    fn length(&mut self, bytes: usize) -> Result<usize> {
        let taken = self.take(bytes)?;
        let number = taken.iter().rev().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        usize::try_from(number).map_err(|_| broken(self.what, "a length is impossible"))
    }
}

/// The elements of a listpack (`src/listpack.c`): total bytes (4), count (2), elements, 0xff.
#[derive(Debug)]
pub(super) struct Listpack<'a> {
    rest: &'a [u8],
}

const LISTPACK: &str = "listpack";

impl<'a> Listpack<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        let mut head = Bytes { rest: bytes, what: LISTPACK };
        let (total, _) = (head.length(4)?, head.length(2)?);
        if total != bytes.len() {
            return Err(broken(LISTPACK, "its length is not what it says"));
        }
        Ok(Self { rest: head.rest })
    }

    pub(super) fn next(&mut self) -> Result<Option<Element<'a>>> {
        let all = self.rest.len();
        let mut r = Bytes { rest: self.rest, what: LISTPACK };
        let first = r.byte()?;
        let element = match first {
            0xff if r.rest.is_empty() => return Ok(None),
            0..=0x7f => Element::Number(first.into()),
            0x80..=0xbf => Element::Text(r.take((first & 0x3f).into())?),
            0xc0..=0xdf => {
                let number = i64::from(first & 0x1f) << 8 | i64::from(r.byte()?);
                Element::Number(number << 51 >> 51)
            }
            0xe0..=0xef => {
                let len = usize::from(first & 0x0f) << 8 | usize::from(r.byte()?);
                Element::Text(r.take(len)?)
            }
            0xf0 => {
                let len = r.length(4)?;
                Element::Text(r.take(len)?)
            }
            0xf1 => Element::Number(r.number(2)?),
            0xf2 => Element::Number(r.number(3)?),
            0xf3 => Element::Number(r.number(4)?),
            0xf4 => Element::Number(r.number(8)?),
            _ => return Err(broken(LISTPACK, "an element is of an unknown form")),
        };
        // How long the element is, for who comes from behind.
        let back = match all - r.rest.len() {
            0..=127 => 1,
            128..=16382 => 2,
            16383..=2_097_150 => 3,
            2_097_151..=268_435_454 => 4,
            _ => 5,
        };
        r.take(back)?;
        self.rest = r.rest;
        Ok(Some(element))
    }

    pub(super) fn must(&mut self) -> Result<Element<'a>> {
        self.next()?.ok_or_else(|| broken(LISTPACK, "it ends early"))
    }

    pub(super) fn must_number(&mut self) -> Result<i64> {
        self.must()?.number().ok_or_else(|| broken(LISTPACK, "a number is none"))
    }
}

/// The elements of a ziplist (`src/ziplist.c`): bytes (4), where the last is (4), count (2), elements, 0xff.
#[derive(Debug)]
pub(super) struct Ziplist<'a> {
    rest: &'a [u8],
}

const ZIPLIST: &str = "ziplist";

impl<'a> Ziplist<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        let mut head = Bytes { rest: bytes, what: ZIPLIST };
        let total = head.length(4)?;
        head.take(6)?;
        if total != bytes.len() {
            return Err(broken(ZIPLIST, "its length is not what it says"));
        }
        Ok(Self { rest: head.rest })
    }

    pub(super) fn next(&mut self) -> Result<Option<Element<'a>>> {
        let mut r = Bytes { rest: self.rest, what: ZIPLIST };
        match r.byte()? {
            0xff if r.rest.is_empty() => return Ok(None),
            0xff => return Err(broken(ZIPLIST, "something follows its end")),
            0xfe => drop(r.take(4)?),
            _ => {}
        }
        let first = r.byte()?;
        let element = match (first >> 6, first) {
            (0, _) => Element::Text(r.take((first & 0x3f).into())?),
            (1, _) => {
                let len = usize::from(first & 0x3f) << 8 | usize::from(r.byte()?);
                Element::Text(r.take(len)?)
            }
            (2, _) => {
                let len = r.take(4)?.iter().fold(0, |n: usize, byte| n << 8 | usize::from(*byte));
                Element::Text(r.take(len)?)
            }
            (_, 0xc0) => Element::Number(r.number(2)?),
            (_, 0xd0) => Element::Number(r.number(4)?),
            (_, 0xe0) => Element::Number(r.number(8)?),
            (_, 0xf0) => Element::Number(r.number(3)?),
            (_, 0xfe) => Element::Number(r.number(1)?),
            (_, 0xf1..=0xfd) => Element::Number(i64::from(first & 0x0f) - 1),
            _ => return Err(broken(ZIPLIST, "an element is of an unknown form")),
        };
        self.rest = r.rest;
        Ok(Some(element))
    }
}

/// The numbers of an intset (`src/intset.c`): bytes of each (4), count (4), numbers.
pub(super) fn intset(bytes: &[u8], mut each: impl FnMut(i64)) -> Result<()> {
    let mut r = Bytes { rest: bytes, what: "intset" };
    let (width, count) = (r.length(4)?, r.length(4)?);
    if !matches!(width, 2 | 4 | 8) || count.checked_mul(width) != Some(r.rest.len()) {
        return Err(broken("intset", "its length is not what it says"));
    }
    while !r.rest.is_empty() {
        each(r.number(width)?);
    }
    Ok(())
}

/// The fields of a zipmap (`src/zipmap.c`), in which hashes were kept before Redis 2.6: count (1), then length, field,
/// length, unused bytes (1), value, and 0xff.
pub(super) fn zipmap(bytes: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Result<()> {
    let mut r = Bytes { rest: bytes, what: "zipmap" };
    r.byte()?;
    let next = |r: &mut Bytes<'_>| match r.byte()? {
        0xff => Ok(None),
        0xfe => r.length(4).map(Some),
        len => Ok(Some(usize::from(len))),
    };
    while let Some(len) = next(&mut r)? {
        let field = r.take(len)?;
        let len = next(&mut r)?.ok_or_else(|| broken("zipmap", "it ends early"))?;
        let unused = r.byte()?;
        let value = r.take(len)?;
        r.take(unused.into())?;
        each(field, value);
    }
    if r.rest.is_empty() { Ok(()) } else { Err(broken("zipmap", "something follows its end")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_ziplist(bytes: &[u8]) -> Vec<String> {
        let mut list = Ziplist::new(bytes).unwrap();
        let mut all = Vec::new();
        while let Some(element) = list.next().unwrap() {
            all.push(element.with_text(|text| String::from_utf8_lossy(text).into_owned()));
        }
        all
    }

    /// The examples in the comments of `src/ziplist.c` and `src/zipmap.c`.
    #[test]
    fn the_examples_of_the_server_are_understood() {
        let ziplist = b"\x1c\0\0\0\x0e\0\0\0\x03\0\x00\xf3\x02\xf6\x02\x0bHello World\xff";
        assert_eq!(of_ziplist(ziplist), ["2", "5", "Hello World"]);
        let mut pairs = Vec::new();
        let zipmap = b"\x02\x03foo\x03\x00bar\x05hello\x05\x00world\xff";
        zipmap_of(zipmap, &mut pairs);
        assert_eq!(pairs, [("foo".into(), "bar".into()), ("hello".into(), "world".into())]);
    }

    fn zipmap_of(bytes: &[u8], pairs: &mut Vec<(String, String)>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        zipmap(bytes, |field, value| pairs.push((text(field), text(value)))).unwrap();
    }

    #[test]
    fn numbers_have_their_signs() {
        for (bytes, expected) in [
            (&b"\xc0\xfe\xff"[..], "-2"),
            (b"\xd0\x00\x00\x00\x80", "-2147483648"),
            (b"\xe0\xff\xff\xff\xff\xff\xff\xff\x7f", "9223372036854775807"),
            (b"\xf0\x00\x00\x80", "-8388608"),
            (b"\xfe\x80", "-128"),
            (b"\xf1", "0"),
            (b"\xfd", "12"),
        ] {
            let len = u32::try_from(12 + bytes.len()).unwrap();
            let list = [&len.to_le_bytes()[..], &[0; 6], &[0], bytes, &[0xff]].concat();
            assert_eq!(of_ziplist(&list), [expected]);
        }
        let mut numbers = Vec::new();
        let ints = b"\x02\0\0\0\x02\0\0\0\xff\xff\x05\x00";
        intset(ints, |number| numbers.push(number)).unwrap();
        assert_eq!(numbers, [-1, 5]);
    }
}
