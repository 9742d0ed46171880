//! Reading and writing of the format's binary parts. Every read is checked against what is there:
//! no length is trusted before its bytes are seen.

use crate::error::{Error, Result};

/// Takes bytes from the front of a slice.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Read from `bytes`; `what` names it in errors.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The error for something impossible.
    pub(crate) fn broken(&self, why: &str) -> Error {
        Error::corrupt(format!("{} is malformed: {why}", self.what))
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.rest.split_at_checked(n).ok_or_else(|| self.broken("it ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| self.broken("it ends early"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// LEB128, in its shortest form, at most 64 bits.
    pub(crate) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(self.broken("a number is not in its shortest form"))
    }

    /// A varint that must fit the type and not exceed `max`.
    pub(crate) fn bounded(&mut self, max: u64, what: &str) -> Result<usize> {
        let n = self.varint()?;
        if n > max {
            return Err(self.broken(&format!("{what} is {n}, the limit is {max}")));
        }
        usize::try_from(n).map_err(|_| self.broken("a number is too large for this machine"))
    }

    pub(crate) fn varint_u32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| self.broken("a number exceeds 32 bits"))
    }

    /// A signed number, zigzag coded.
    pub(crate) fn signed(&mut self) -> Result<i64> {
        let n = self.varint()?;
        Ok((n >> 1).cast_signed() ^ -((n & 1).cast_signed()))
    }

    /// A varint length and so many bytes.
    pub(crate) fn bytes(&mut self, max: usize, what: &str) -> Result<&'a [u8]> {
        let n = self.bounded(max as u64, what)?;
        self.take(n)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// An error if something is left.
    pub(crate) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.broken("something follows its end")) }
    }
}

/// The counterparts for writing.
pub(crate) trait WriteExt {
    fn put_varint(&mut self, n: u64);
    fn put_signed(&mut self, n: i64);
    fn put_bytes(&mut self, bytes: &[u8]);
    fn put_u16(&mut self, n: u16);
    fn put_u32(&mut self, n: u32);
    fn put_u64(&mut self, n: u64);
}

impl WriteExt for Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time is the encoding")]
    fn put_varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.push(n as u8);
    }

    fn put_signed(&mut self, n: i64) {
        self.put_varint(((n << 1) ^ (n >> 63)).cast_unsigned());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }

    fn put_u16(&mut self, n: u16) {
        self.extend_from_slice(&n.to_le_bytes());
    }

    fn put_u32(&mut self, n: u32) {
        self.extend_from_slice(&n.to_le_bytes());
    }

    fn put_u64(&mut self, n: u64) {
        self.extend_from_slice(&n.to_le_bytes());
    }
}

/// A length that the format holds in 32 bits.
pub(crate) fn len32(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::internal("a length exceeds 32 bits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_do_not_fit() {
        let mut v = Vec::new();
        v.put_varint(1 << 32);
        let e = Reader::new(&v, "a test").varint_u32().unwrap_err();
        assert_eq!(e.to_string(), "a test is malformed: a number exceeds 32 bits");
    }

    proptest! {
        #[test]
        fn numbers_read_back(n: u64, s: i64) {
            let mut v = Vec::new();
            v.put_varint(n);
            v.put_signed(s);
            let mut r = Reader::new(&v, "test");
            prop_assert_eq!(r.varint().unwrap(), n);
            prop_assert_eq!(r.signed().unwrap(), s);
            prop_assert!(r.is_empty());
        }

        #[test]
        fn a_number_has_one_encoding(v in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut r = Reader::new(&v, "test");
            if let Ok(n) = r.varint() {
                let mut again = Vec::new();
                again.put_varint(n);
                prop_assert_eq!(&v[..v.len() - r.rest().len()], &again[..]);
            }
        }
    }
}
