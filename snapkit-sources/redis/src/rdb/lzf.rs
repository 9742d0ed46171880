//! LZF, as strings are compressed with (`src/lzf_d.c`): runs of literal bytes, and copies of what stands at most 8 KiB
//! before.

use std::collections::VecDeque;

use snapkit_core::{Error, Result};

use super::input::Raw;

/// How far back a copy reaches.
const WINDOW: usize = 8 << 10;

/// Text that is handed on at once.
const PIECE: usize = 64 << 10;

/// Takes compressed bytes in pieces and gives the text in pieces.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The last of the text that was handed on, and what was not handed on yet.
    text: Vec<u8>,
    /// Where in it that begins.
    fresh: usize,
    /// How long the text is to be.
    left: u64,
    /// Compressed bytes of which the rest is to come.
    pending: VecDeque<u8>,
}

impl Decoder {
    pub(super) fn new(length: u64) -> Self {
        Self { text: Vec::new(), fresh: 0, left: length, pending: VecDeque::new() }
    }

    pub(super) fn push(&mut self, piece: &[u8], to: Raw<'_>) -> Result<()> {
        self.pending.extend(piece);
        while self.step()? {
            if self.text.len() - self.fresh >= PIECE {
                self.hand_on(to)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, to: Raw<'_>) -> Result<()> {
        self.hand_on(to)?;
        if self.left > 0 || !self.pending.is_empty() {
            return Err(broken("it ends early"));
        }
        Ok(())
    }

    /// Take one run. Whether all of it was there.
    fn step(&mut self) -> Result<bool> {
        let at = |i| self.pending.get(i).copied();
        let Some(first) = at(0) else { return Ok(false) };
        if first < 32 {
            let len = usize::from(first) + 1;
            if self.pending.len() <= len {
                return Ok(false);
            }
            self.count(len)?;
            self.pending.pop_front();
            self.text.extend(self.pending.drain(..len));
            return Ok(true);
        }
        let (short, mut used) = (usize::from(first >> 5), 1);
        let mut len = short + 2;
        if short == 7 {
            let Some(more) = at(1) else { return Ok(false) };
            len += usize::from(more);
            used = 2;
        }
        let Some(low) = at(used) else { return Ok(false) };
        let back = (usize::from(first & 0x1f) << 8 | usize::from(low)) + 1;
        self.pending.drain(..=used);
        self.count(len)?;
        let from = self
            .text
            .len()
            .checked_sub(back)
            .ok_or_else(|| broken("it copies what is not there"))?;
        // What is copied may be what is just being written.
        for i in from..from + len {
            self.text.push(self.text[i]);
        }
        Ok(true)
    }

    fn count(&mut self, len: usize) -> Result<()> {
        let left = self.left.checked_sub(len as u64);
        self.left = left.ok_or_else(|| broken("it is longer than it says"))?;
        Ok(())
    }

    fn hand_on(&mut self, to: Raw<'_>) -> Result<()> {
        to(&self.text[self.fresh..])?;
        let keep = self.text.len().saturating_sub(WINDOW);
        self.text.drain(..keep);
        self.fresh = self.text.len();
        Ok(())
    }
}

fn broken(why: &str) -> Error {
    Error::corrupt(format!("a compressed string is malformed: {why}"))
}
