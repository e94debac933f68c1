//! TLS as the cluster's own certificates allow it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A name in the API server's certificate, whatever address it is reached at.
pub(super) const SERVER_NAME: &str = "kubernetes.default.svc";

pub(super) fn server_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(SERVER_NAME)?)
}

/// Connects with the cluster's CA; with the administrator's certificate, or with none.
pub(super) fn connector(directory: &Path, as_admin: bool) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&directory.join("ca.crt"))? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = if as_admin {
        let (chain, key) = pair(directory, "admin")?;
        builder.with_client_auth_cert(chain, key)?
    } else {
        builder.with_no_client_auth()
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Accepts as the API server itself: with its certificate.
pub(super) fn acceptor(directory: &Path) -> Result<TlsAcceptor> {
    let (chain, key) = pair(directory, "server")?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn pair(directory: &Path, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&directory.join(format!("{name}.crt")))?;
    let file = directory.join(format!("{name}.key"));
    let key =
        PrivateKeyDer::from_pem_file(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok((chain, key))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read {}", file.display()))
}
