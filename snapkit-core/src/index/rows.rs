//! Sums of rows: whether two sets of rows are the same, without looking each row up.

use crate::context::Context;
use crate::error::Result;
use crate::manifest::ChunkRef;
use crate::pack::PackContents;

/// Where a frame lies in its pack: its number, where it begins, its sealed and its raw length.
pub(crate) type FramePlace = (u32, u32, u32, u32);

/// Digests rows under a key of its own, so that nobody can choose rows whose sum is that of others.
#[derive(Debug)]
pub(crate) struct RowSummer([u8; 32]);

/// How many rows there are of a pack, and the sum of their digests, in whatever order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowSum {
    rows: u64,
    sum: u128,
}

impl RowSummer {
    pub(crate) fn new(cx: &Context) -> Result<Self> {
        Ok(Self(cx.random()?))
    }

    /// The digest of one row.
    pub(crate) fn digest(&self, place: FramePlace, start: u32, chunk: &ChunkRef) -> u128 {
        let mut row = [0; 32 + 6 * 4];
        row[..32].copy_from_slice(&chunk.id.0);
        let (number, offset, stored, raw) = place;
        let numbers = [number, offset, stored, raw, start, chunk.len];
        for (to, number) in row[32..].chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::keyed_hash(&self.0, &row).as_bytes()[..16]);
        u128::from_le_bytes(digest)
    }

    /// The sum of the rows that a pack's trailer stands for.
    pub(crate) fn of_pack(&self, contents: &PackContents) -> RowSum {
        let mut sum = RowSum::default();
        for (number, frame) in (0..).zip(&contents.frames) {
            let mut start = 0;
            for chunk in &frame.chunks {
                let place = (number, frame.offset, frame.stored, frame.raw);
                sum.add(self.digest(place, start, chunk));
                start += chunk.len;
            }
        }
        sum
    }
}

impl RowSum {
    pub(crate) fn add(&mut self, digest: u128) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(digest);
    }

    /// How many rows were added.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether these are the rows of another sum, all of them equally often: segments may list a pack twice.
    pub(crate) fn repeats(&self, once: &Self) -> bool {
        let times = self.rows.checked_div(once.rows).unwrap_or_default();
        self.sum == once.sum.wrapping_mul(u128::from(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    #[test]
    fn sums_tell_whether_rows_are_the_same() {
        let summer = RowSummer::new(&Context::system()).unwrap();
        let row =
            |n: u8| summer.digest((0, 1, 2, 3), 4, &ChunkRef { id: ChunkId([n; 32]), len: 5 });
        let of = |rows: &[u128]| {
            let mut sum = RowSum::default();
            rows.iter().for_each(|row| sum.add(*row));
            sum
        };
        let once = of(&[row(1), row(2)]);
        for (rows, repeats) in [
            (&[row(2), row(1)][..], true),
            (&[row(1), row(2), row(2), row(1)], true),
            (&[], true),
            (&[row(1)], false),
            (&[row(1), row(1)], false),
            (&[row(1), row(3)], false),
            (&[row(1), row(2), row(2)], false),
            (&[row(1), row(2), row(2), row(2)], false),
        ] {
            assert_eq!(of(rows).repeats(&once), repeats, "{rows:?}");
        }
        assert!(!once.repeats(&RowSum::default()));
        let chunk = ChunkRef { id: ChunkId([1; 32]), len: 5 };
        for other in [
            summer.digest((9, 1, 2, 3), 4, &chunk),
            summer.digest((0, 9, 2, 3), 4, &chunk),
            summer.digest((0, 1, 9, 3), 4, &chunk),
            summer.digest((0, 1, 2, 9), 4, &chunk),
            summer.digest((0, 1, 2, 3), 9, &chunk),
            summer.digest((0, 1, 2, 3), 4, &ChunkRef { len: 9, ..chunk }),
        ] {
            assert_ne!(other, row(1));
        }
    }
}
