//! What is read before there is a key, or to get one: config, credential, header, signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_core::config::RepositoryConfig;
use snapkit_core::credential::{Credential, Unlock};
use snapkit_core::id::CredentialId;
use snapkit_core::seal::{Header, ObjectType};
use snapkit_core::secret::Secret;
use snapkit_core::sign::check_signed;
use snapkit_fuzz::CREDENTIAL;

const KEY: &str = "AGE-SECRET-KEY-1QQPQQ9Q5V6PFK75T6SQVJ4W0SS8GYWJSFWEXW3Q0PPSXQNFYSJWS6PSM8K";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = RepositoryConfig::decode(bytes) {
        drop((config.public_key(), config.certifier(), config.fingerprint()));
        let unlock = Unlock::KeyFile(Secret::new(KEY.to_owned()));
        drop(Credential::decode(CredentialId([0; 16]), bytes, &unlock, &config));
    }
    let repository = CREDENTIAL.writer.repository;
    let all = [
        ObjectType::DataPack,
        ObjectType::MetaPack,
        ObjectType::Index,
        ObjectType::Snapshot,
        ObjectType::Marker,
        ObjectType::Session,
    ];
    if let Ok((header, rest)) = Header::decode(bytes, &all, repository) {
        assert_eq!(header.encode(), bytes[..bytes.len() - rest.len()]);
        if header.sealed_key.is_some() {
            drop(CREDENTIAL.reader.as_ref().unwrap().open(&header, ""));
        }
    }
    let certifier = CREDENTIAL.certifier().unwrap().verifying_key().to_bytes();
    assert!(check_signed(&certifier, repository, "sessions/x/0", bytes).is_err(), "a forgery");
    // As a key file that a person names.
    if let Ok(text) = std::str::from_utf8(bytes) {
        let unlock = Unlock::KeyFile(Secret::new(text.to_owned()));
        drop(CREDENTIAL.encode(&unlock));
    }
});
