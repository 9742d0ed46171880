//! Signatures: who wrote an object that is not named by its content.
//!
//! A signed object ends with a [`SIGNATURE_LEN`]-byte block: `credential[16] role:u8
//! verifying_key[32] certificate[64] signature[64]`. The certificate is the repository certifier's
//! Ed25519 signature over the credential; the signature is the credential's over the object's name
//! and bytes. So anyone who knows the certifier's public key can tell who wrote what, without a key.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::codec::{Reader, WriteExt};
use crate::error::{Error, Reason, Result};
use crate::id::{CredentialId, RepositoryId};

/// What a credential may do.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Full = 1,
    /// Add snapshots, and see which exist; not read them.
    Writer = 2,
}

/// Length of the block at the end of a signed object.
pub const SIGNATURE_LEN: usize = 16 + 1 + 32 + 64 + 64;

/// A credential's verifying key, certified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub credential: CredentialId,
    /// What it may do.
    pub role: Role,
    /// Its Ed25519 key.
    pub verifying_key: [u8; 32],
    /// The certifier's signature.
    pub signature: [u8; 64],
}

impl Certificate {
    fn message(
        repository: RepositoryId,
        credential: CredentialId,
        role: Role,
        verifying_key: &[u8; 32],
    ) -> Vec<u8> {
        let mut m = b"snapkit 1-draft certificate\0".to_vec();
        m.extend_from_slice(&repository.0);
        m.extend_from_slice(&credential.0);
        m.push(role as u8);
        m.extend_from_slice(verifying_key);
        m
    }

    /// Certify a credential's key.
    #[must_use]
    pub fn issue(
        certifier: &SigningKey,
        repository: RepositoryId,
        credential: CredentialId,
        role: Role,
        verifying_key: [u8; 32],
    ) -> Self {
        let message = Self::message(repository, credential, role, &verifying_key);
        let signature = certifier.sign(&message).to_bytes();
        Self { credential, role, verifying_key, signature }
    }

    /// Check it against the certifier's public key.
    pub fn check(&self, certifier: &[u8; 32], repository: RepositoryId) -> Result<()> {
        let message = Self::message(repository, self.credential, self.role, &self.verifying_key);
        verify(certifier, &message, &self.signature)
            .map_err(|e| e.with("credential", self.credential))
    }
}

fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Result<()> {
    VerifyingKey::from_bytes(key)
        .and_then(|k| k.verify_strict(message, &Signature::from_bytes(signature)))
        .map_err(|_| Error::new(Reason::BadSignature, "a signature does not hold"))
}

fn object_message(repository: RepositoryId, name: &str, body: &[u8]) -> Vec<u8> {
    let mut m = b"snapkit 1-draft object\0".to_vec();
    m.extend_from_slice(&repository.0);
    m.put_bytes(name.as_bytes());
    m.extend_from_slice(blake3::hash(body).as_bytes());
    m
}

/// Signs objects in the name of a credential.
#[derive(Clone)]
pub struct ObjectSigner {
    repository: RepositoryId,
    key: SigningKey,
    certificate: Certificate,
}

impl std::fmt::Debug for ObjectSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectSigner({})", self.certificate.credential)
    }
}

impl ObjectSigner {
    /// From a credential's signing key and its certificate.
    #[must_use]
    pub fn new(repository: RepositoryId, key: SigningKey, certificate: Certificate) -> Self {
        Self { repository, key, certificate }
    }

    /// Whose name it signs in.
    #[must_use]
    pub fn credential(&self) -> CredentialId {
        self.certificate.credential
    }

    /// The key and certificate, to be stored in a credential.
    pub(crate) fn parts(&self) -> (&SigningKey, &Certificate) {
        (&self.key, &self.certificate)
    }

    /// Append the signature block to an object that will be stored as `name`.
    pub fn sign(&self, name: &str, object: &mut Vec<u8>) {
        let signature = self.key.sign(&object_message(self.repository, name, object)).to_bytes();
        object.extend_from_slice(&self.certificate.credential.0);
        object.push(self.certificate.role as u8);
        object.extend_from_slice(&self.certificate.verifying_key);
        object.extend_from_slice(&self.certificate.signature);
        object.extend_from_slice(&signature);
    }
}

/// Check the signature block of the object stored as `name`; the bytes before it, and who signed.
pub fn check_signed<'a>(
    certifier: &[u8; 32],
    repository: RepositoryId,
    name: &str,
    object: &'a [u8],
) -> Result<(&'a [u8], CredentialId, Role)> {
    let split = object
        .len()
        .checked_sub(SIGNATURE_LEN)
        .ok_or_else(|| Error::corrupt("a signed object is too short"))?;
    let (body, block) = object.split_at(split);
    let mut r = Reader::new(block, "a signature block");
    let credential = CredentialId(r.array()?);
    let role = match r.u8()? {
        1 => Role::Full,
        2 => Role::Writer,
        _ => return Err(r.broken("unknown role")),
    };
    let certificate =
        Certificate { credential, role, verifying_key: r.array()?, signature: r.array()? };
    let signature = r.array()?;
    certificate.check(certifier, repository)?;
    verify(&certificate.verifying_key, &object_message(repository, name, body), &signature)?;
    Ok((body, credential, role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let repository = RepositoryId([1; 16]);
        let certifier = SigningKey::from_bytes(&[5; 32]);
        let key = SigningKey::from_bytes(&[6; 32]);
        let id = CredentialId([7; 16]);
        let certificate = Certificate::issue(
            &certifier,
            repository,
            id,
            Role::Writer,
            key.verifying_key().to_bytes(),
        );
        let signer = ObjectSigner::new(repository, key, certificate);
        let mut object = b"body".to_vec();
        signer.sign("snapshots/x", &mut object);
        let public = certifier.verifying_key().to_bytes();
        let check = |name: &str, o: &[u8]| {
            check_signed(&public, repository, name, o).map(|(b, c, r)| (b.to_vec(), c, r))
        };
        assert_eq!(check("snapshots/x", &object).unwrap(), (b"body".to_vec(), id, Role::Writer));
        assert!(check("snapshots/y", &object).is_err());
        assert!(check_signed(&public, RepositoryId([2; 16]), "snapshots/x", &object).is_err());
        for i in 0..object.len() {
            let mut bad = object.clone();
            bad[i] ^= 1;
            assert!(check("snapshots/x", &bad).is_err(), "byte {i}");
            assert!(check("snapshots/x", &object[..i]).is_err(), "length {i}");
        }
    }
}
