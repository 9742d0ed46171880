//! TLS: whom we trust, and who we are.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use snapkit_core::{Error, Reason, Result};

use crate::connection::Trust;

/// One end of a connection to a host, before anything was said.
pub(crate) fn client(host: &str, trust: &Trust) -> Result<ClientConnection> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let refused = |e: rustls::Error| {
        Error::new(Reason::InvalidConfig, "TLS cannot be used like this").caused_by(e)
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?;
    let builder = match &trust.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(refused)?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.with_platform_verifier().map_err(refused)?,
    };
    let config = match &trust.identity {
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, e))?;
            builder.with_client_auth_cert(certificates(certificate)?, key).map_err(refused)?
        }
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|e| {
        let what = "`url`: a certificate cannot be of such a host";
        Error::new(Reason::InvalidConfig, what).with("host", host).caused_by(e)
    })?;
    ClientConnection::new(Arc::new(config), name).map_err(refused)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).map_err(|e| unreadable(path, e))?;
    let all = all.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| unreadable(path, e))?;
    if all.is_empty() {
        let what = "there is no certificate in the file";
        return Err(Error::new(Reason::InvalidConfig, what).with("path", path.display()));
    }
    Ok(all)
}

fn unreadable(path: &Path, e: rustls::pki_types::pem::Error) -> Error {
    let what = "a file of certificates or keys cannot be used: it must be PEM";
    Error::new(Reason::InvalidConfig, what).with("path", path.display()).caused_by(e)
}
