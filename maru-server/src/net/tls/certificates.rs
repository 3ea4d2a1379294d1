//! Who the server is and whom it believes, from files in PEM.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::ServerError;

/// The files; each says what it is for where it can't be used.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    /// The server's certificate, and those that lead from it to an authority.
    pub(crate) chain: PathBuf,
    /// The key of the server's certificate.
    pub(crate) key: PathBuf,
    /// The authorities whose certificates clients have to present; without it they present none.
    pub(crate) client_authorities: Option<PathBuf>,
}

impl CertificateFiles {
    /// What connections are served by, as the files are now.
    ///
    /// # Errors
    /// [`ServerError::Certificates`] where a file can't be read or used.
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, ServerError> {
        let chain = certificates(&self.chain)?;
        let key = private_key(&self.key)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider speaks TLS 1.3");
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut authorities = RootCertStore::empty();
                for certificate in certificates(path)? {
                    authorities.add(certificate).map_err(|error| unusable(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities.into(), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(path, &error))?)
            }
        };
        let mut configuration = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => unusable(
                &self.key,
                &format_args!("it is not the key of the certificate in {}", self.chain.display()),
            ),
            error => unusable(&self.chain, &error),
        })?;
        // Whoever comes again shakes hands again: what is renewed or withdrawn counts at once.
        configuration.send_tls13_tickets = 0;
        Ok(configuration.into())
    }
}

/// The certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(unusable(path, &"it has no certificate in PEM (-----BEGIN CERTIFICATE-----)"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unreadable(path, error)),
    }
}

/// The first key of a file that is nobody's but its owner's and its group's to read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ServerError> {
    let file = path.metadata().map_err(|error| unusable(path, &error))?;
    if file.permissions().mode() & 0o007 != 0 {
        return Err(unusable(
            path,
            &"it is a secret, and every user can read it; take that away: chmod o= FILE",
        ));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            unusable(path, &"it has no private key in PEM without a password (-----BEGIN PRIVATE KEY-----)")
        }
        error => unreadable(path, error),
    })
}

fn unreadable(path: &Path, error: pem::Error) -> ServerError {
    match error {
        pem::Error::Io(error) => unusable(path, &error),
        error => unusable(path, &format_args!("it is no PEM: {error}")),
    }
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> ServerError {
    ServerError::Certificates { path: path.to_owned(), reason: reason.to_string() }
}
