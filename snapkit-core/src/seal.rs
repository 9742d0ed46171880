//! Sealing: object keys, headers and frames.
//!
//! Every sealed object begins with a [`Header`]. An object for readers only (packs, snapshots) has a
//! fresh random key, sealed to the repository's X25519 key by HPKE (RFC 9180, base mode,
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM): whoever writes it cannot open it again. An
//! object for every credential (index segments, sessions, markers, pack trailers) is sealed under the
//! index key. Content is AES-256-GCM with a nonce per frame; the associated data is the whole header,
//! the frame's number and, where the object's name is not a hash of its bytes, its name.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as _, X25519HkdfSha256};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use zeroize::Zeroizing;

use crate::codec::{Reader, WriteExt};
use crate::context::Context;
use crate::error::{Error, Reason, Result};
use crate::id::RepositoryId;
use crate::secret::{Secret, SecretKey};

/// The format that this program reads and writes. Programs refuse to mix drafts.
pub const FORMAT: &str = "1-draft";

/// How the format is marked in object headers: the high byte says draft.
pub const FORMAT_NUMBER: u16 = 0xD001;

/// First bytes of every sealed object.
pub const MAGIC: [u8; 8] = *b"snapkit\0";

/// Bytes that sealing adds to a frame.
pub const TAG_LEN: usize = 16;

/// What a sealed object is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectType {
    /// A pack of content.
    DataPack = 1,
    /// A pack of tree entries and chunk lists.
    MetaPack = 2,
    /// An index segment.
    Index = 3,
    /// A snapshot.
    Snapshot = 4,
    /// What stands where an aborted or forgotten snapshot stood.
    Marker = 5,
    /// A session's start or heartbeat.
    Session = 6,
    /// What was added to a snapshot since.
    Note = 7,
}

impl ObjectType {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::DataPack,
            Self::MetaPack,
            Self::Index,
            Self::Snapshot,
            Self::Marker,
            Self::Session,
            Self::Note,
        ]
        .into_iter()
        .find(|t| *t as u8 == byte)
    }

    /// Whether only a full credential opens it.
    #[must_use]
    pub const fn for_readers(self) -> bool {
        matches!(self, Self::DataPack | Self::MetaPack | Self::Snapshot | Self::Note)
    }
}

/// The first bytes of a sealed object: 64 for objects under the index key, 144 for the others.
///
/// `magic[8] format:u16 type:u8 0:u8 epoch:u32 repository[16] salt[32]`, then for objects for readers
/// `encapsulated[32] sealed_key[48]`. Numbers are little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub object: ObjectType,
    /// Which generation of keys it is sealed under.
    pub epoch: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// Random; makes the object's keys its own.
    pub salt: [u8; 32],
    /// The object key, sealed; for objects for readers.
    pub sealed_key: Option<SealedKey>,
}

/// An object key, sealed to the repository's public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedKey {
    /// HPKE's encapsulated key.
    pub encapsulated: [u8; 32],
    /// The object key and its tag.
    pub ciphertext: [u8; 48],
}

impl Header {
    /// Length of the part that all objects have.
    pub const SHORT: usize = 64;
    /// Length with a sealed key.
    pub const LONG: usize = 144;

    /// Length of this header.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        if self.sealed_key.is_some() { Self::LONG } else { Self::SHORT }
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LONG);
        out.extend_from_slice(&MAGIC);
        out.put_u16(FORMAT_NUMBER);
        out.push(self.object as u8);
        out.push(0);
        out.put_u32(self.epoch);
        out.extend_from_slice(&self.repository.0);
        out.extend_from_slice(&self.salt);
        if let Some(key) = &self.sealed_key {
            out.extend_from_slice(&key.encapsulated);
            out.extend_from_slice(&key.ciphertext);
        }
        out
    }

    /// Read a header and what follows it. `expected` says what the object's place holds.
    pub fn decode<'a>(
        bytes: &'a [u8],
        expected: &[ObjectType],
        repository: RepositoryId,
    ) -> Result<(Self, &'a [u8])> {
        let mut r = Reader::new(bytes, "an object header");
        if r.array()? != MAGIC {
            return Err(Error::corrupt("this is not an object of snapkit"));
        }
        let format = r.u16()?;
        if format != FORMAT_NUMBER {
            return Err(Error::new(
                Reason::FormatMismatch,
                format!(
                    "an object has format {format:#06x}, this program knows {FORMAT_NUMBER:#06x} ({FORMAT})"
                ),
            ));
        }
        let object = ObjectType::from_byte(r.u8()?)
            .filter(|t| expected.contains(t))
            .ok_or_else(|| Error::corrupt("an object of another type stands here"))?;
        if r.u8()? != 0 {
            return Err(r.broken("a reserved byte is not zero"));
        }
        let epoch = r.u32()?;
        if epoch != 0 {
            return Err(Error::corrupt(format!("an object names unknown key epoch {epoch}")));
        }
        let header_repository = RepositoryId(r.array()?);
        if header_repository != repository {
            return Err(Error::corrupt("an object of another repository stands here")
                .with("its_repository", header_repository));
        }
        let salt = r.array()?;
        let sealed_key = if object.for_readers() {
            Some(SealedKey { encapsulated: r.array()?, ciphertext: r.array()? })
        } else {
            None
        };
        Ok((Self { object, epoch, repository, salt, sealed_key }, r.rest()))
    }
}

/// What every credential holds to add to a repository.
#[derive(Clone, Debug)]
pub struct WriterKeys {
    /// The repository.
    pub repository: RepositoryId,
    /// HPKE public key that object keys are sealed to.
    pub public: [u8; 32],
    /// Makes chunk ids and chunk boundaries.
    pub id_key: SecretKey,
    /// Opens index segments, pack trailers, sessions and markers.
    pub index_key: SecretKey,
}

impl WriterKeys {
    /// A fresh object for readers: its header, and what seals its frames. `name` is its key, unless that
    /// is a hash of its bytes.
    pub fn begin(
        &self,
        cx: &Context,
        object: ObjectType,
        name: &str,
    ) -> Result<(Header, FrameSealer)> {
        let salt = cx.random::<32>()?;
        let object_key = Zeroizing::new(cx.random::<32>()?);
        let short =
            Header { object, epoch: 0, repository: self.repository, salt, sealed_key: None };
        let sealed_key = seal_object_key(cx, &self.public, &short.encode(), &object_key)?;
        let header = Header { sealed_key: Some(sealed_key), ..short };
        let sealer = FrameSealer::new(&object_key, &header, name);
        Ok((header, sealer))
    }

    /// A fresh object under the index key. `name` is its key, unless that is a hash of its bytes.
    pub fn begin_shared(
        &self,
        cx: &Context,
        object: ObjectType,
        name: &str,
    ) -> Result<(Header, FrameSealer)> {
        let header = Header {
            object,
            epoch: 0,
            repository: self.repository,
            salt: cx.random()?,
            sealed_key: None,
        };
        let sealer = self.shared(&header, name);
        Ok((header, sealer))
    }

    /// What opens an object under the index key, or the trailer of a pack with this header.
    #[must_use]
    pub fn shared(&self, header: &Header, name: &str) -> FrameSealer {
        FrameSealer::new(self.index_key.expose(), header, name)
    }
}

/// What a full credential holds besides: it opens objects for readers.
#[derive(Clone, Debug)]
pub struct ReaderKey(SecretKey);

impl ReaderKey {
    /// From the HPKE private key.
    #[must_use]
    pub fn new(private: SecretKey) -> Self {
        Self(private)
    }

    /// What opens the frames of an object for readers. `name` is the object's key, unless that is a
    /// hash of its bytes.
    pub fn open(&self, header: &Header, name: &str) -> Result<FrameSealer> {
        let sealed = header
            .sealed_key
            .as_ref()
            .ok_or_else(|| Error::internal("an object without a sealed key was to be opened"))?;
        let short = Header { sealed_key: None, ..header.clone() }.encode();
        let object_key = open_object_key(self.0.expose(), &short, sealed)?;
        Ok(FrameSealer::new(&object_key, header, name))
    }
}

/// A new HPKE key pair: private, public.
pub fn generate_key_pair(cx: &Context) -> Result<(SecretKey, [u8; 32])> {
    let seed = Zeroizing::new(cx.random::<32>()?);
    let (private, public) = X25519HkdfSha256::derive_keypair(&seed[..]);
    Ok((Secret::new(private.to_bytes().into()), public.to_bytes().into()))
}

/// HPKE draws its ephemeral key from the context's randomness, taken beforehand.
struct Drawn(Zeroizing<[u8; 64]>, usize);

impl rand_core::TryRng for Drawn {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut b = [0; 4];
        self.try_fill_bytes(&mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut b = [0; 8];
        self.try_fill_bytes(&mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        // DHKEM(X25519) draws 32 bytes once. Should it ever draw more, the bytes stay independent.
        for byte in out {
            if self.1 == self.0.len() {
                *self.0 = *Zeroizing::new(wide_hash(&self.0[..]));
                self.1 = 0;
            }
            *byte = self.0[self.1];
            self.1 += 1;
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Drawn {}

fn wide_hash(bytes: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    let mut hasher = blake3::Hasher::new_derive_key("snapkit 1-draft drawn randomness");
    hasher.update(bytes);
    hasher.finalize_xof().fill(&mut out);
    out
}

fn hpke_info(short_header: &[u8]) -> Vec<u8> {
    [b"snapkit 1-draft object key", short_header].concat()
}

fn seal_object_key(
    cx: &Context,
    public: &[u8; 32],
    short_header: &[u8],
    key: &[u8; 32],
) -> Result<SealedKey> {
    let failed = |e: hpke::HpkeError| Error::internal("cannot seal an object key").caused_by(e);
    let public = <X25519HkdfSha256 as hpke::Kem>::PublicKey::from_bytes(public).map_err(failed)?;
    let mut random = Drawn(Zeroizing::new(cx.random()?), 0);
    let (encapsulated, ciphertext) =
        hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            &hpke_info(short_header),
            key,
            &[],
            &mut random,
        )
        .map_err(failed)?;
    let ciphertext = ciphertext
        .try_into()
        .map_err(|_| Error::internal("a sealed object key has an unexpected length"))?;
    Ok(SealedKey { encapsulated: encapsulated.to_bytes().into(), ciphertext })
}

fn open_object_key(
    private: &[u8; 32],
    short_header: &[u8],
    sealed: &SealedKey,
) -> Result<Zeroizing<[u8; 32]>> {
    let failed = |_| Error::corrupt("an object key cannot be opened: the header is damaged");
    let private =
        <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(private).map_err(failed)?;
    let encapsulated =
        <X25519HkdfSha256 as hpke::Kem>::EncappedKey::from_bytes(&sealed.encapsulated)
            .map_err(failed)?;
    let plain = Zeroizing::new(
        hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &private,
            &encapsulated,
            &hpke_info(short_header),
            &sealed.ciphertext,
            &[],
        )
        .map_err(failed)?,
    );
    let mut key = Zeroizing::new([0; 32]);
    if plain.len() != key.len() {
        return Err(Error::corrupt("an object key has an impossible length"));
    }
    key.copy_from_slice(&plain);
    Ok(key)
}

/// Seals and opens the frames of one object.
pub struct FrameSealer {
    cipher: LessSafeKey,
    /// Header and name, to which each frame's number is added.
    bound: Vec<u8>,
    padding_key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameSealer(…)")
    }
}

/// The frame number of a pack's trailer; content frames count from 0.
pub const TRAILER_FRAME: u64 = u64::MAX;

impl FrameSealer {
    #[expect(clippy::expect_used, reason = "the key is as long as the algorithm wants it")]
    fn new(object_key: &[u8; 32], header: &Header, name: &str) -> Self {
        let material = Zeroizing::new([&object_key[..], &header.salt].concat());
        let content_key =
            Zeroizing::new(blake3::derive_key("snapkit 1-draft content key", &material));
        let padding_key =
            Zeroizing::new(blake3::derive_key("snapkit 1-draft padding key", &material));
        let mut bound = header.encode();
        bound.put_bytes(name.as_bytes());
        let cipher = UnboundKey::new(&AES_256_GCM, &*content_key).expect("a key of 32 bytes");
        Self { cipher: LessSafeKey::new(cipher), bound, padding_key }
    }

    fn nonce_and_aad(&self, frame: u64) -> (Nonce, Aad<Vec<u8>>) {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&frame.to_be_bytes());
        let mut aad = Vec::with_capacity(self.bound.len() + 8);
        aad.extend_from_slice(&self.bound);
        aad.put_u64(frame);
        (Nonce::assume_unique_for_key(nonce), Aad::from(aad))
    }

    /// Seal a frame in place; its tag is appended. No number is used twice for one object.
    pub fn seal(&self, frame: u64, buffer: &mut Vec<u8>) -> Result<()> {
        let (nonce, aad) = self.nonce_and_aad(frame);
        let tag = self
            .cipher
            .seal_in_place_separate_tag(nonce, aad, buffer)
            .map_err(|_| Error::internal("a frame is too long to seal"))?;
        buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Open a frame in place. Nothing is left in the buffer if it is not genuine.
    pub fn open(&self, frame: u64, buffer: &mut Vec<u8>) -> Result<()> {
        match self.open_slice(frame, buffer) {
            Ok(plain) => {
                let len = plain.len();
                buffer.truncate(len);
                Ok(())
            }
            Err(e) => {
                buffer.clear();
                Err(e)
            }
        }
    }

    /// Open a frame where it lies, and give its plain text. What is there is of no use if it is not genuine.
    pub fn open_slice<'b>(&self, frame: u64, sealed: &'b mut [u8]) -> Result<&'b [u8]> {
        let (nonce, aad) = self.nonce_and_aad(frame);
        match self.cipher.open_in_place(nonce, aad, sealed) {
            Ok(plain) => Ok(plain),
            Err(_) => Err(Error::corrupt("sealed content is damaged or not where it belongs")),
        }
    }

    /// Bytes that cannot be told from sealed ones.
    #[must_use]
    pub fn padding(&self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new_keyed(&self.padding_key).finalize_xof().fill(&mut out);
        out
    }
}

/// The least Padmé length that is not below `len`: at most 12 % more, 3 % for a mebibyte and above,
/// and few enough different lengths that they say little.
#[must_use]
pub fn padme(len: u64) -> u64 {
    if len < 2 {
        return len;
    }
    let exponent = u64::from(len.ilog2());
    let bits = u64::from(exponent.ilog2()) + 1;
    let low = exponent.saturating_sub(bits);
    let mask = (1u64 << low) - 1;
    len.saturating_add(mask) & !mask
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::context::{Simulated, Timestamp};
    use crate::progress::Silent;

    fn setup() -> (Context, WriterKeys, ReaderKey) {
        let cx = Context::system();
        let (private, public) = generate_key_pair(&cx).unwrap();
        let keys = WriterKeys {
            repository: RepositoryId([1; 16]),
            public,
            id_key: Secret::new([2; 32]),
            index_key: Secret::new([3; 32]),
        };
        (cx, keys, ReaderKey::new(private))
    }

    #[test]
    fn frames_open_only_in_their_place() {
        let (cx, keys, reader) = setup();
        let (header, sealer) = keys.begin(&cx, ObjectType::DataPack, "").unwrap();
        let mut sealed = b"hello".to_vec();
        sealer.seal(7, &mut sealed).unwrap();
        let encoded = header.encode();
        assert_eq!(encoded.len(), Header::LONG);
        let (decoded, rest) =
            Header::decode(&encoded, &[ObjectType::DataPack], keys.repository).unwrap();
        assert!(rest.is_empty());
        assert_eq!(decoded, header);
        let opener = reader.open(&decoded, "").unwrap();

        let mut good = sealed.clone();
        opener.open(7, &mut good).unwrap();
        assert_eq!(good, b"hello");

        let mut elsewhere = sealed.clone();
        assert!(opener.open(8, &mut elsewhere).is_err());
        assert!(elsewhere.is_empty());
        assert!(reader.open(&decoded, "other").unwrap().open(7, &mut sealed.clone()).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(opener.open(7, &mut bad).is_err(), "byte {i}");
        }
        for i in 0..encoded.len() {
            let mut bad = encoded.clone();
            bad[i] ^= 1;
            let opened = Header::decode(&bad, &[ObjectType::DataPack], keys.repository)
                .and_then(|(h, _)| reader.open(&h, ""))
                .and_then(|o| o.open(7, &mut sealed.clone()));
            assert!(opened.is_err(), "header byte {i}");
        }
    }

    #[test]
    fn a_writer_cannot_open_what_it_wrote() {
        let (cx, keys, _) = setup();
        let (other_private, _) = generate_key_pair(&cx).unwrap();
        let (header, _) = keys.begin(&cx, ObjectType::DataPack, "").unwrap();
        assert!(ReaderKey::new(other_private).open(&header, "").is_err());
        let (_, sealer) = keys.begin(&cx, ObjectType::DataPack, "").unwrap();
        let mut sealed = b"x".to_vec();
        sealer.seal(0, &mut sealed).unwrap();
        assert!(keys.shared(&header, "").open(0, &mut sealed).is_err());
    }

    #[test]
    fn sealing_repeats_for_a_seed() {
        let run = || {
            let cx = Context::new(Arc::new(Simulated::new(5, Timestamp(0))), Arc::new(Silent));
            let (_, public) = generate_key_pair(&cx).unwrap();
            let keys = WriterKeys {
                repository: RepositoryId([1; 16]),
                public,
                id_key: Secret::new([2; 32]),
                index_key: Secret::new([3; 32]),
            };
            keys.begin(&cx, ObjectType::Snapshot, "").unwrap().0
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            assert_eq!(run(), run());
        });
    }

    #[test]
    fn padme_is_small_and_idempotent() {
        for len in [0, 1, 2, 9, 1000, 65_537, 1 << 20, (16 << 20) + 12345, u64::MAX / 2] {
            let padded = padme(len);
            assert!(padded >= len && padme(padded) == padded, "{len}");
            assert!(len < 100 || (padded - len) as f64 <= len as f64 * 0.12, "{len} {padded}");
        }
    }
}
