//! The repository's configuration: the one object that everyone can read.
//!
//! Stored as `config`: a line of JSON and a line `signature HEX`, the certifier's Ed25519 signature
//! over the first line. It never changes in this format.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::context::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::id::{RepositoryFingerprint, RepositoryId, from_hex, to_hex};
use crate::seal::FORMAT;

/// The object's key.
pub const CONFIG_KEY: &str = "config";

/// The largest configuration: 64 KiB.
pub const MAX_CONFIG: usize = 64 << 10;

/// Where a repository's ledger is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestPlace {
    /// In the sink, under `snapshots/`.
    Stored,
    /// Elsewhere, by an embedding program; stock programs then refuse to collect.
    External,
}

/// What a repository is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryConfig {
    /// [`FORMAT`].
    pub format: String,
    /// Its identity.
    pub repository: RepositoryId,
    /// HPKE public key, hexadecimal.
    pub public_key: String,
    /// The certifier's Ed25519 public key, hexadecimal.
    pub certifier: String,
    /// When it was made.
    pub created: Timestamp,
    /// Whether the sink honoured create-only puts when it was made.
    pub create_only: bool,
    /// Where its ledger is.
    pub manifest: ManifestPlace,
}

fn key_bytes(text: &str, what: &str) -> Result<[u8; 32]> {
    from_hex(text)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| Error::corrupt(format!("the repository's config holds no valid {what}")))
}

impl RepositoryConfig {
    /// The HPKE public key.
    pub fn public_key(&self) -> Result<[u8; 32]> {
        key_bytes(&self.public_key, "public key")
    }

    /// The certifier's public key.
    pub fn certifier(&self) -> Result<[u8; 32]> {
        key_bytes(&self.certifier, "certifier key")
    }

    /// What pins this repository: the identity and both public keys.
    #[must_use]
    pub fn fingerprint(&self) -> RepositoryFingerprint {
        let mut h = blake3::Hasher::new_derive_key("snapkit 1-draft repository fingerprint");
        h.update(&self.repository.0);
        for text in [&self.public_key, &self.certifier] {
            h.update(&(text.len() as u64).to_le_bytes());
            h.update(text.as_bytes());
        }
        RepositoryFingerprint(*h.finalize().as_bytes())
    }

    /// The stored bytes.
    pub fn encode(&self, certifier: &SigningKey) -> Result<Vec<u8>> {
        let mut text = serde_json::to_string(self)
            .map_err(|e| Error::internal("cannot encode the config").caused_by(e))?;
        let signature = certifier.sign(&message(text.as_bytes())).to_bytes();
        text.push_str("\nsignature ");
        text.push_str(&to_hex(&signature));
        text.push('\n');
        Ok(text.into_bytes())
    }

    /// Read the stored bytes. Another format is told apart from damage.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: String,
        }
        let damaged = |why: &str| {
            Error::corrupt(format!("the repository's config is damaged: {why}"))
                .with_hint("put the file config back from a copy: without it nothing can be read")
        };
        if bytes.len() > MAX_CONFIG {
            return Err(damaged("it is too long"));
        }
        let mut lines = bytes.splitn(2, |b| *b == b'\n');
        let json = lines.next().unwrap_or_default();
        let found: FormatOnly = serde_json::from_slice(json)
            .map_err(|e| damaged("it does not say what a config says").caused_by(e))?;
        if found.format != FORMAT {
            return Err(Error::new(
                Reason::FormatMismatch,
                format!(
                    "the repository has format {:?}, this program knows {FORMAT:?}",
                    found.format
                ),
            ));
        }
        let config: Self = serde_json::from_slice(json)
            .map_err(|e| damaged("a field is missing or malformed").caused_by(e))?;
        let signature: [u8; 64] = lines
            .next()
            .and_then(|l| std::str::from_utf8(l).ok())
            .and_then(|l| l.strip_prefix("signature ")?.strip_suffix('\n'))
            .and_then(from_hex)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| damaged("it has no signature"))?;
        VerifyingKey::from_bytes(&config.certifier()?)
            .and_then(|k| k.verify_strict(&message(json), &Signature::from_bytes(&signature)))
            .map_err(|_| damaged("its signature does not hold"))?;
        config.public_key()?;
        Ok(config)
    }
}

fn message(json: &[u8]) -> Vec<u8> {
    [b"snapkit 1-draft config\0", json].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts_and_other_formats_are_named() {
        let certifier = SigningKey::from_bytes(&[5; 32]);
        let config = RepositoryConfig {
            format: FORMAT.to_owned(),
            repository: RepositoryId([1; 16]),
            public_key: to_hex(&[2; 32]),
            certifier: to_hex(&certifier.verifying_key().to_bytes()),
            created: Timestamp(0),
            create_only: true,
            manifest: ManifestPlace::Stored,
        };
        let bytes = config.encode(&certifier).unwrap();
        assert_eq!(RepositoryConfig::decode(&bytes).unwrap(), config);
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(RepositoryConfig::decode(&bad).is_err(), "byte {i}");
            assert!(RepositoryConfig::decode(&bytes[..i]).is_err(), "length {i}");
        }
        let other = String::from_utf8(bytes).unwrap().replace(FORMAT, "2-draft");
        let e = RepositoryConfig::decode(other.as_bytes()).unwrap_err();
        assert_eq!(e.reason(), Reason::FormatMismatch);
    }
}
