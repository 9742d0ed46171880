//! The RDB format, versions 1 to 12: what Redis up to 8.4 and Valkey up to 8 write.
//!
//! There is no specification but the server: `src/rdb.c`, `src/rdb.h` and the encodings in `src/listpack.c`,
//! `src/ziplist.c`, `src/intset.c`, `src/zipmap.c` and `src/t_stream.c` of Redis 7.0 and 7.4. Lengths are big-endian
//! with one to nine bytes, most other numbers little-endian. Keys and values are bytes.
//!
//! A snapshot is read from front to back, in memory that its largest key and its largest packed value bound: see
//! [`MAX_KEY`] and [`MAX_PACKED`]. Whatever this module does not know is an error, and is never skipped: nobody could
//! say where it ends.

mod digest;
mod input;
mod lzf;
mod packed;
mod stream;
mod value;

use std::io::Read;

use snapkit_core::context::Context;
use snapkit_core::scratch::Room;
use snapkit_core::sort::Sorter;
use snapkit_core::{Error, Reason, Result};

use input::Input;

pub use digest::ValueDigest;
pub(crate) use input::CRC;
pub use input::{MAX_KEY, MAX_PACKED};

/// The newest version that is read.
pub const NEWEST: u32 = 12;

/// What comes next in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Something about the snapshot as a whole, such as `redis-ver`.
    Aux {
        /// What.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// The source text of a library of functions, since Redis 7.0.
    Function(Vec<u8>),
    /// A key. Its value follows: see [`Snapshot::value`].
    Key(Key),
    /// All has been read, and its checksum is right.
    End {
        /// Whether there was a checksum: `rdbchecksum no` writes none.
        checked: bool,
    },
}

/// A key, and all that is known before its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The number of its database.
    pub database: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// When it expires, in milliseconds since 1970.
    pub expires: Option<u64>,
    /// For how many seconds nobody had asked for it, where the server counts that (`maxmemory-policy *-lru`).
    pub idle: Option<u64>,
    /// How often it is asked for, where the server counts that (`*-lfu`): a logarithmic counter.
    pub frequency: Option<u8>,
    /// How the value is encoded, as a number of the format.
    pub encoding: u8,
}

impl Key {
    /// What kind of value it has, such as `string` or `stream`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        value::kind(self.encoding)
    }

    /// The lowest version of the format in which there is such an encoding: what a `DUMP` payload with this value has
    /// to name at least.
    #[must_use]
    pub fn version(&self) -> u32 {
        value::version(self.encoding)
    }
}

/// A snapshot that is being read.
#[derive(Debug)]
pub struct Snapshot<R> {
    input: Input<R>,
    version: u32,
    database: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between items.
    Between,
    /// A key was told, and its value has not been read.
    Value(u8),
    /// The end was reached.
    Ended,
}

const AUX: u8 = 0xfa;
const RESIZE: u8 = 0xfb;
pub(crate) const EXPIRES_MS: u8 = 0xfc;
const EXPIRES: u8 = 0xfd;
pub(crate) const SELECT: u8 = 0xfe;
pub(crate) const END: u8 = 0xff;
pub(crate) const FREQUENCY: u8 = 0xf9;
pub(crate) const IDLE: u8 = 0xf8;
const MODULE_AUX: u8 = 0xf7;
pub(crate) const FUNCTION: u8 = 0xf5;
const SLOT_INFO: u8 = 0xf4;

/// How many bytes say which format a snapshot has.
pub const HEAD: usize = 9;

/// The version of the format that the first bytes of a snapshot name. `invalid-argument` if it is none, `unsupported` if
/// it is newer than [`NEWEST`].
pub fn version(head: &[u8; HEAD]) -> Result<u32> {
    let digits =
        std::str::from_utf8(&head[5..]).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    let version = digits.and_then(|digits| digits.parse().ok());
    let version = match version {
        Some(version) if head.starts_with(b"REDIS") => version,
        _ if head.starts_with(b"VALKEY") => {
            return Err(Error::new(
                Reason::Unsupported,
                "a snapshot of Valkey 9 or newer, whose format is not known here",
            ));
        }
        _ => {
            return Err(Error::invalid("this is no snapshot of Redis: it does not begin like one"));
        }
    };
    if version == 0 || version > NEWEST {
        let what = format!(
            "a snapshot of version {version}, and {NEWEST} is the newest that is known here"
        );
        return Err(Error::new(Reason::Unsupported, what));
    }
    Ok(version)
}

impl<R: Read> Snapshot<R> {
    /// Begin to read one. `invalid-argument` if it is none, `unsupported` if it is newer than [`NEWEST`].
    pub fn begin(input: R) -> Result<Self> {
        let mut input = Input::new(input);
        let version = version(&input.array()?)?;
        Ok(Self { input, version, database: 0, state: State::Between })
    }

    /// The version of the format.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// How many bytes have been read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.input.position()
    }

    /// What the snapshot was read from. What follows its end has not been read.
    pub fn into_inner(self) -> R {
        self.input.into_inner()
    }

    /// What comes next. The value of a key must have been read before.
    pub fn item(&mut self) -> Result<Item> {
        match self.state {
            State::Between => {}
            State::Value(_) => return Err(Error::internal("the value of a key was not read")),
            State::Ended => return Err(Error::internal("the snapshot has ended")),
        }
        let mut key = Key {
            database: self.database,
            name: Vec::new(),
            expires: None,
            idle: None,
            frequency: None,
            encoding: 0,
        };
        loop {
            match self.input.byte()? {
                EXPIRES_MS => key.expires = Some(u64::from_le_bytes(self.input.array()?)),
                EXPIRES => {
                    let seconds = u32::from_le_bytes(self.input.array()?);
                    key.expires = Some(u64::from(seconds) * 1000);
                }
                IDLE => key.idle = Some(self.input.length()?),
                FREQUENCY => key.frequency = Some(self.input.byte()?),
                opcode
                    if key.expires.is_some() || key.idle.is_some() || key.frequency.is_some() =>
                {
                    return self.key(&key, opcode);
                }
                AUX => {
                    let key = self.input.string(MAX_KEY)?;
                    return Ok(Item::Aux { key, value: self.input.string(MAX_PACKED)? });
                }
                SELECT => {
                    self.database = self.input.length()?;
                    key.database = self.database;
                }
                // How large the tables are going to be, and how full the slots of a cluster are.
                RESIZE => self.skip(2)?,
                SLOT_INFO => self.skip(3)?,
                FUNCTION => return Ok(Item::Function(self.input.string(MAX_PACKED)?)),
                MODULE_AUX => {
                    let name = value::module_name(self.input.length()?);
                    let what = format!(
                        "the module {name} has put something into the snapshot, which cannot be read here"
                    );
                    return Err(Error::new(Reason::Unsupported, what));
                }
                END => return self.end(),
                encoding => return self.key(&key, encoding),
            }
        }
    }

    /// Numbers that are only hints for a server.
    fn skip(&mut self, numbers: u32) -> Result<()> {
        for _ in 0..numbers {
            self.input.length()?;
        }
        Ok(())
    }

    fn key(&mut self, key: &Key, encoding: u8) -> Result<Item> {
        value::check(encoding).map_err(|e| e.with("at", self.input.position()))?;
        let name = self.input.string(MAX_KEY)?;
        self.state = State::Value(encoding);
        Ok(Item::Key(Key { name, encoding, ..key.clone() }))
    }

    /// Read the value of the key that was told last: its bytes as they are, piece by piece, to `raw`; what they mean
    /// into a digest.
    pub fn value(&mut self, mut raw: impl FnMut(&[u8]) -> Result<()>) -> Result<ValueDigest> {
        let State::Value(encoding) = self.state else {
            return Err(Error::internal("there is no value to be read"));
        };
        self.state = State::Between;
        value::read(&mut self.input, encoding, &mut raw)
    }

    /// The same, with the elements of sets and hashes that are kept as tables in an order that does not depend on the
    /// server. It is sorted in scratch space.
    pub(crate) fn sorted_value(
        &mut self,
        cx: &Context,
        room: &Room,
        mut raw: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<ValueDigest> {
        let encoding = match self.state {
            State::Value(encoding) if value::is_table(encoding) => encoding,
            _ => return self.value(raw),
        };
        self.state = State::Between;
        let head = value::head(&mut self.input, encoding, &mut raw)?;
        let mut elements = Sorter::new(cx, room);
        let digest = value::table(&mut self.input, encoding, &head, &mut |before, element| {
            let (before, name) = element.split_at(before);
            elements.add(name.to_vec(), before.to_vec())
        })?;
        for element in elements.finish()? {
            let (name, before) = element?;
            raw(&before)?;
            raw(&name)?;
        }
        Ok(digest)
    }

    fn end(&mut self) -> Result<Item> {
        self.state = State::Ended;
        if self.version < 5 {
            return Ok(Item::End { checked: false });
        }
        let expected = self.input.checksum();
        match u64::from_le_bytes(self.input.array()?) {
            0 => Ok(Item::End { checked: false }),
            found if found == expected => Ok(Item::End { checked: true }),
            _ => Err(Error::corrupt("the checksum of the snapshot is wrong")),
        }
    }
}

/// What a value means that was kept as it is, all of it: its encoding, and its bytes.
pub fn digest(encoding: u8, value: impl Read) -> Result<ValueDigest> {
    value::check(encoding)?;
    let mut input = Input::new(value);
    let digest = value::read(&mut input, encoding, &mut |_| Ok(()))?;
    if input.is_at_end()? {
        Ok(digest)
    } else {
        Err(Error::corrupt("a value is longer than it says"))
    }
}

/// Two bytes of a version and the checksum over all before it: the end of what `DUMP` gives and `RESTORE` takes.
/// `payload` is the number of the encoding and the bytes of the value.
#[must_use]
pub fn footer(payload: &[&[u8]], version: u16) -> [u8; 10] {
    let mut crc = CRC.digest();
    payload.iter().for_each(|part| crc.update(part));
    footer_of(crc, version)
}

/// The same, behind what the checksum has been made of.
pub(crate) fn footer_of<'a>(
    mut crc: crc::Digest<'a, u64, crc::Table<16>>,
    version: u16,
) -> [u8; 10] {
    let version = version.to_le_bytes();
    crc.update(&version);
    let mut footer = [0; 10];
    footer[..2].copy_from_slice(&version);
    footer[2..].copy_from_slice(&crc.finalize().to_le_bytes());
    footer
}
