//! The certificate and its key.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::EncryptedError;

/// The certificate and the key in use; all clones are the same.
#[derive(Clone, Debug)]
pub struct Papers(Arc<RwLock<Arc<CertifiedKey>>>);

impl Papers {
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, EncryptedError> {
        Ok(Self(Arc::new(RwLock::new(certified_key(certificate, key)?))))
    }

    /// Reads certificate and key again; handshakes from now on use them, connections that stand go on.
    ///
    /// # Errors
    /// See [`EncryptedError`]; those in use stay.
    pub fn replace(&self, certificate: &Path, key: &Path) -> Result<(), EncryptedError> {
        let new = certified_key(certificate, key)?;
        // Nothing can panic while it is held.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl ResolvesServerCert for Papers {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified_key(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, EncryptedError> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|source| EncryptedError::Pem { path: certificate.to_owned(), source })?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|source| EncryptedError::Pem { path: key.to_owned(), source })?;
    CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map(Arc::new)
        .map_err(EncryptedError::Certificate)
}
