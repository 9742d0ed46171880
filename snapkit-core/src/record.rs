//! Records: content that is a sequence of keyed values, such as the keys of a store or the messages
//! of a stream.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use crate::artifact::ByteStream;
use crate::context::Context;
use crate::error::Result;

/// The largest value that travels inline: 8 MiB. A larger one is a stream of parts.
pub const MAX_INLINE_VALUE: usize = 8 << 20;

/// The most axes that records have.
pub const MAX_AXES: usize = 4;

/// The longest place on an axis: 16 KiB.
pub const MAX_POSITION: usize = 16 << 10;

/// A place in a sequence of records, comparable byte for byte. A record has one on each axis that
/// its source declares (a key; a sequence number and a time), in the same order for every record. At most
/// [`MAX_POSITION`] bytes: of a longer key it is the beginning, and the value holds all of it.
pub type RecordPosition = Bytes;

/// The value of a record.
pub enum RecordValue {
    /// At most [`MAX_INLINE_VALUE`] bytes.
    Inline(Bytes),
    /// A larger value, to be read to its end before the next record is looked at.
    Parts(ByteStream),
}

impl Debug for RecordValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(b) => write!(f, "Inline({} bytes)", b.len()),
            Self::Parts(_) => f.write_str("Parts"),
        }
    }
}

/// One record.
#[derive(Debug)]
pub struct Record {
    /// Its place on each axis. The first axis orders the records; places on it never go back.
    pub positions: Vec<RecordPosition>,
    /// Its value.
    pub value: RecordValue,
}

/// A pull reader of records.
#[async_trait]
pub trait RecordReader: Send {
    /// The names of the axes, such as `["key"]` or `["sequence", "time"]`: one to [`MAX_AXES`].
    fn axes(&self) -> &[String];

    /// The next records, in order, or `None` at the end. A batch is not empty, and holds at most
    /// 8 MiB or one record.
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>>;
}
