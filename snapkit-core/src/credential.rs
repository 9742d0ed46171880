//! Credentials: what opens a repository, kept as age files under `keys/`.
//!
//! `keys/<id>.age` is an age file whose payload is a JSON document with the credential's keys. It is
//! opened by a key file (an age identity) or a passphrase. A full credential holds the HPKE private
//! key and the certifier's key; a writer credential does not.

use std::io::Read as _;

use age::secrecy::ExposeSecret as _;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::config::RepositoryConfig;
use crate::context::Context;
use crate::error::{Error, Reason, Result};
use crate::id::{CredentialId, RepositoryId, from_hex, to_hex};
use crate::key::Key;
use crate::seal::{FORMAT, ReaderKey, WriterKeys, generate_key_pair};
use crate::secret::{Secret, SecretKey, SecretString};
use crate::sign::{Certificate, ObjectSigner, Role};

/// The largest credential file: 64 KiB.
pub const MAX_CREDENTIAL: usize = 64 << 10;

/// scrypt work factor for passphrases, as the logarithm of N (r = 8, p = 1): opening takes about
/// 0.1 s and 32 MiB.
const WORK_FACTOR: u8 = 15;

/// The largest work factor that is accepted when opening: 128 MiB of memory, half a second. Whoever can put
/// files into a repository decides how long it takes to try them.
const MAX_WORK_FACTOR: u8 = 17;

/// What a person or a program has to open a credential with.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// The text of a key file: age identities, one a line, comments with `#`.
    KeyFile(SecretString),
    /// A passphrase.
    Passphrase(SecretString),
}

/// An opened credential.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Its identity.
    pub id: CredentialId,
    /// What it may do.
    pub role: Role,
    /// What adding needs.
    pub writer: WriterKeys,
    /// What reading needs; full credentials only.
    pub reader: Option<ReaderKey>,
    /// Signs in its name.
    pub signer: ObjectSigner,
    private: Option<SecretKey>,
    certifier: Option<SigningKeyCell>,
    certifier_public: [u8; 32],
}

#[derive(Clone)]
struct SigningKeyCell(SigningKey);

impl std::fmt::Debug for SigningKeyCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// The payload of a credential file. Everything binary is lower-case hexadecimal.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Payload {
    format: String,
    credential: String,
    #[zeroize(skip)]
    role: Option<Role>,
    repository: String,
    public_key: String,
    certifier: String,
    id_key: String,
    index_key: String,
    signing_key: String,
    certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certifier_key: Option<String>,
}

/// A new key file: its text, and the recipient that credentials are encrypted to.
#[must_use]
pub fn generate_key_file() -> SecretString {
    let identity = age::x25519::Identity::generate();
    let public = identity.to_public();
    Secret::new(format!(
        "# snapkit key file. Whoever has it can read the repository; without it nobody can.\n\
         # Keep a copy in another place.\n# public key: {public}\n{}\n",
        identity.to_string().expose_secret()
    ))
}

impl Credential {
    /// The keys of a new repository, and the first, full credential.
    pub fn create(cx: &Context) -> Result<Self> {
        let (private, public) = generate_key_pair(cx)?;
        let certifier = SigningKey::from_bytes(&Zeroizing::new(cx.random()?));
        let repository = RepositoryId(cx.random()?);
        let writer = WriterKeys {
            repository,
            public,
            id_key: Secret::new(cx.random()?),
            index_key: Secret::new(cx.random()?),
        };
        Self::issue(cx, Role::Full, writer, private, certifier)
    }

    /// Another credential for the same repository. Only a full one can issue.
    pub fn derive(&self, cx: &Context, role: Role) -> Result<Self> {
        let (Some(private), Some(certifier)) = (&self.private, &self.certifier) else {
            return Err(Error::new(
                Reason::KeyCannotRead,
                "a writer credential cannot make others",
            ));
        };
        let full =
            Self::issue(cx, role, self.writer.clone(), private.clone(), certifier.0.clone())?;
        Ok(match role {
            Role::Full => full,
            Role::Writer => Self { reader: None, private: None, certifier: None, ..full },
        })
    }

    fn issue(
        cx: &Context,
        role: Role,
        writer: WriterKeys,
        private: SecretKey,
        certifier: SigningKey,
    ) -> Result<Self> {
        let id = CredentialId(cx.random()?);
        let signing = SigningKey::from_bytes(&Zeroizing::new(cx.random()?));
        let verifying = signing.verifying_key().to_bytes();
        let certificate = Certificate::issue(&certifier, writer.repository, id, role, verifying);
        Ok(Self {
            id,
            role,
            signer: ObjectSigner::new(writer.repository, signing, certificate),
            writer,
            reader: Some(ReaderKey::new(private.clone())),
            private: Some(private),
            certifier_public: certifier.verifying_key().to_bytes(),
            certifier: Some(SigningKeyCell(certifier)),
        })
    }

    /// The key that signs the configuration; full credentials only.
    pub fn certifier(&self) -> Result<&SigningKey> {
        self.certifier
            .as_ref()
            .map(|c| &c.0)
            .ok_or_else(|| Error::new(Reason::KeyCannotRead, "a writer credential cannot do this"))
    }

    /// What reading needs, or an error that says that this credential cannot.
    pub fn reader(&self) -> Result<&ReaderKey> {
        self.reader.as_ref().ok_or_else(|| {
            Error::new(Reason::KeyCannotRead, "this credential can add snapshots but not read them")
        })
    }

    /// The object's key.
    pub fn key(&self) -> Result<Key> {
        Key::new(format!("keys/{}.age", self.id))
    }

    /// The file to be stored, opened by what `unlock` says. Costs about 0.1 s for a passphrase.
    pub fn encode(&self, unlock: &Unlock) -> Result<Vec<u8>> {
        let hex = |k: &SecretKey| to_hex(k.expose());
        let (signing, certificate) = self.signer.parts();
        let payload = Payload {
            format: FORMAT.to_owned(),
            credential: self.id.to_string(),
            role: Some(self.role),
            repository: self.writer.repository.to_string(),
            public_key: to_hex(&self.writer.public),
            certifier: to_hex(&self.certifier_public),
            id_key: hex(&self.writer.id_key),
            index_key: hex(&self.writer.index_key),
            signing_key: to_hex(&signing.to_bytes()),
            certificate: to_hex(&certificate.signature),
            private_key: self.private.as_ref().map(hex),
            certifier_key: self.certifier.as_ref().map(|c| to_hex(&c.0.to_bytes())),
        };
        let plain = Zeroizing::new(
            serde_json::to_vec(&payload)
                .map_err(|e| Error::internal("cannot encode a credential").caused_by(e))?,
        );
        let failed = |e| Error::internal("cannot encrypt a credential").caused_by(AgeError(e));
        match unlock {
            Unlock::KeyFile(text) => {
                let identity = identities(text)?.into_iter().next().ok_or_else(|| {
                    Error::new(Reason::NoKey, "the key file holds no age identity")
                })?;
                age::encrypt(&identity.to_public(), &plain).map_err(|e| failed(e.to_string()))
            }
            Unlock::Passphrase(text) => {
                let mut recipient = age::scrypt::Recipient::new(text.expose().clone().into());
                recipient.set_work_factor(WORK_FACTOR);
                age::encrypt(&recipient, &plain).map_err(|e| failed(e.to_string()))
            }
        }
    }

    /// Open a credential file stored as `keys/<id>.age`. `Ok(None)`: it is not for this key or
    /// passphrase. Damage and mix-ups are errors.
    pub fn decode(
        id: CredentialId,
        file: &[u8],
        unlock: &Unlock,
        config: &RepositoryConfig,
    ) -> Result<Option<Self>> {
        let Some(plain) = decrypt(file, unlock)? else { return Ok(None) };
        let payload: Payload = serde_json::from_slice(&plain)
            .map_err(|_| damaged("a credential holds something else than keys"))?;
        let broken = || damaged("a credential is malformed");
        let bytes32 = |text: &str| -> Result<[u8; 32]> {
            from_hex(text).and_then(|b| b.try_into().ok()).ok_or_else(broken)
        };
        if payload.format != FORMAT {
            return Err(Error::new(
                Reason::FormatMismatch,
                format!(
                    "a credential has format {:?}, this program knows {FORMAT:?}",
                    payload.format
                ),
            ));
        }
        if payload.credential != id.to_string() {
            return Err(damaged("a credential file stands under another's name"));
        }
        let certifier_public = config.certifier()?;
        if payload.repository != config.repository.to_string()
            || payload.public_key != config.public_key
            || payload.certifier != config.certifier
        {
            return Err(Error::new(
                Reason::RepositoryReplaced,
                "the credential belongs to another repository than the config beside it",
            ));
        }
        let role = payload.role.ok_or_else(broken)?;
        let signing = SigningKey::from_bytes(&Zeroizing::new(bytes32(&payload.signing_key)?));
        let certificate = Certificate {
            credential: id,
            role,
            verifying_key: signing.verifying_key().to_bytes(),
            signature: from_hex(&payload.certificate)
                .and_then(|b| b.try_into().ok())
                .ok_or_else(broken)?,
        };
        certificate.check(&certifier_public, config.repository)?;
        let secret =
            |t: &Option<String>| t.as_deref().map(bytes32).transpose().map(|k| k.map(Secret::new));
        let private = secret(&payload.private_key)?;
        let certifier = secret(&payload.certifier_key)?
            .map(|k| SigningKeyCell(SigningKey::from_bytes(k.expose())));
        if (role == Role::Full) != (private.is_some() && certifier.is_some()) {
            return Err(broken());
        }
        Ok(Some(Self {
            id,
            role,
            writer: WriterKeys {
                repository: config.repository,
                public: config.public_key()?,
                id_key: Secret::new(bytes32(&payload.id_key)?),
                index_key: Secret::new(bytes32(&payload.index_key)?),
            },
            reader: private.clone().map(ReaderKey::new),
            signer: ObjectSigner::new(config.repository, signing, certificate),
            private,
            certifier,
            certifier_public,
        }))
    }
}

/// age's errors as text: they carry no secrets, and their types are not ours to expose.
#[derive(Debug)]
struct AgeError(String);

impl std::fmt::Display for AgeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AgeError {}

fn identities(text: &SecretString) -> Result<Vec<age::x25519::Identity>> {
    text.expose()
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|l| {
            l.parse().map_err(|_| {
                Error::new(
                    Reason::NoKey,
                    "a line of the key file is not an age identity (AGE-SECRET-KEY-1…)",
                )
            })
        })
        .collect()
}

/// Without it nothing opens, and so nothing could say more about the damage.
fn damaged(what: &str) -> Error {
    Error::corrupt(what).with_hint(
        "put the file back from a copy of the repository, or use another key if there is one",
    )
}

fn decrypt(file: &[u8], unlock: &Unlock) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let damaged = |e: String| damaged("a credential file is damaged").caused_by(AgeError(e));
    let decryptor = age::Decryptor::new_buffered(file).map_err(|e| damaged(e.to_string()))?;
    let opened = match (unlock, decryptor.is_scrypt()) {
        (Unlock::KeyFile(text), false) => {
            let identities = identities(text)?;
            decryptor.decrypt(identities.iter().map(|i| i as &dyn age::Identity))
        }
        (Unlock::Passphrase(text), true) => {
            let mut identity = age::scrypt::Identity::new(text.expose().clone().into());
            identity.set_max_work_factor(MAX_WORK_FACTOR);
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
        }
        _ => return Ok(None),
    };
    let reader = match opened {
        Ok(reader) => reader,
        Err(
            age::DecryptError::NoMatchingKeys
            | age::DecryptError::KeyDecryptionFailed
            | age::DecryptError::DecryptionFailed,
        ) => return Ok(None),
        Err(e) => return Err(damaged(e.to_string())),
    };
    let mut plain = Zeroizing::new(Vec::with_capacity(MAX_CREDENTIAL));
    reader
        .take(MAX_CREDENTIAL as u64)
        .read_to_end(&mut plain)
        .map_err(|e| damaged(e.to_string()))?;
    Ok(Some(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ManifestPlace;
    use crate::context::Timestamp;

    fn config(c: &Credential) -> RepositoryConfig {
        RepositoryConfig {
            format: FORMAT.to_owned(),
            repository: c.writer.repository,
            public_key: to_hex(&c.writer.public),
            certifier: to_hex(&c.certifier_public),
            created: Timestamp(0),
            create_only: true,
            manifest: ManifestPlace::Stored,
        }
    }

    #[tokio::test]
    async fn credentials_open_with_their_key_only() {
        let cx = Context::system();
        let full = Credential::create(&cx).unwrap();
        let config = config(&full);
        let key = Unlock::KeyFile(generate_key_file());
        let word = Unlock::Passphrase(Secret::new("correct horse".to_owned()));
        for unlock in [&key, &word] {
            let file = full.encode(unlock).unwrap();
            let back = Credential::decode(full.id, &file, unlock, &config).unwrap().unwrap();
            assert_eq!(back.writer.id_key.expose(), full.writer.id_key.expose());
            assert!(back.reader.is_some());
            let text = format!("{back:?}");
            assert!(!text.contains(&to_hex(full.writer.id_key.expose())));
            for wrong in [
                Unlock::KeyFile(generate_key_file()),
                Unlock::Passphrase(Secret::new("wrong".to_owned())),
            ] {
                assert!(Credential::decode(full.id, &file, &wrong, &config).unwrap().is_none());
            }
            let other = CredentialId([9; 16]);
            assert!(Credential::decode(other, &file, unlock, &config).is_err());
            let mut elsewhere = config.clone();
            elsewhere.repository = RepositoryId([3; 16]);
            let e = Credential::decode(full.id, &file, unlock, &elsewhere).unwrap_err();
            assert_eq!(e.reason(), Reason::RepositoryReplaced);
        }
    }

    #[tokio::test]
    async fn a_writer_credential_holds_no_reading_key() {
        let cx = Context::system();
        let full = Credential::create(&cx).unwrap();
        let writer = full.derive(&cx, Role::Writer).unwrap();
        let unlock = Unlock::KeyFile(generate_key_file());
        let file = writer.encode(&unlock).unwrap();
        let back = Credential::decode(writer.id, &file, &unlock, &config(&full)).unwrap().unwrap();
        assert_eq!(back.reader().unwrap_err().reason(), Reason::KeyCannotRead);
        assert!(back.certifier().is_err() && back.derive(&cx, Role::Full).is_err());
    }
}
