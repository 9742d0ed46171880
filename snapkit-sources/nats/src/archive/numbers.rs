//! Numbers as Go's `encoding/binary` writes them: 7 bits in a byte, signed ones zigzag.

use std::io::{self, Read};

/// Reads numbers.
pub(crate) trait Numbers {
    /// A number.
    fn number(&mut self) -> io::Result<u64>;

    /// A signed number.
    fn signed(&mut self) -> io::Result<i64> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }
}

impl<R: Read> Numbers for R {
    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            let bits = u64::from(byte[0] & 0x7f);
            if shift == 63 && byte[0] > 1 {
                break;
            }
            number |= bits << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a number is too long"))
    }
}

/// Writes numbers.
pub(crate) trait WriteNumbers {
    /// A number.
    fn put_number(&mut self, number: u64);

    /// A signed number.
    fn put_signed(&mut self, number: i64) {
        self.put_number((number << 1 ^ number >> 63).cast_unsigned());
    }
}

impl WriteNumbers for Vec<u8> {
    fn put_number(&mut self, mut number: u64) {
        while number > 0x7f {
            self.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.push(number.to_le_bytes()[0]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_read_back(number: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.put_number(number);
            bytes.put_signed(signed);
            let mut rest = &bytes[..];
            prop_assert_eq!(rest.number().unwrap(), number);
            prop_assert_eq!(rest.signed().unwrap(), signed);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            drop((&bytes[..]).number());
        }
    }
}
