//! TLS from files that change: what client and server use until their certificates are renewed, and after it.
//!
//! Both sides show a certificate, and both check the other's. Files are looked at from time to time
//! ([`Reloading::check`]); what cannot be used leaves what was loaded before in use.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Bytes of a file with certificates or a key.
const MOST_BYTES: u64 = 1 << 20;

/// gRPC is HTTP/2, and Go's refuses a server that does not say so.
const PROTOCOL: &[u8] = b"h2";

/// Where certificates are; the names of a Secret of type `kubernetes.io/tls` with `ca.crt` beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Who may sign the other side's certificate: PEM, one or more.
    pub authority: PathBuf,
    /// Our certificate and what leads to its authority: PEM.
    pub certificate: PathBuf,
    /// Our private key: PEM, PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It is missing, too large or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not PEM.
    #[error("{} is no PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// No certificate is in it.
    #[error("no certificate in {}", .0.display())]
    Empty(PathBuf),
    /// An authority, a certificate or a key cannot be used, or key and certificate do not belong together.
    #[error("cannot use {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Clients cannot be checked with these authorities.
    #[error("cannot check clients")]
    Verifier(#[from] VerifierBuilderError),
    /// The certificate is not valid any more.
    #[error("{} has expired", .0.display())]
    Expired(PathBuf),
    /// They changed while they were read.
    #[error("certificates change just now")]
    Changing,
}

impl Files {
    /// `ca.crt`, `tls.crt` and `tls.key` of a directory.
    pub fn of(directory: &Path) -> Self {
        Self {
            authority: directory.join("ca.crt"),
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        }
    }

    /// A server that lets nobody in without a certificate of the authority.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
        let (chain, key) = self.identity()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| self.unusable(source))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|source| self.unusable(source))?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A session that is resumed shows no certificate: it would outlive the authority that let it in.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// A client that shows its certificate and trusts servers of the authority only.
    pub fn client(&self) -> Result<ClientConfig, TlsError> {
        let roots = self.roots()?;
        let (chain, key) = self.identity()?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| self.unusable(source))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|source| self.unusable(source))?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authority)? {
            roots
                .add(certificate)
                .map_err(|source| TlsError::Unusable { path: self.authority.clone(), source })?;
        }
        Ok(roots)
    }

    fn identity(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|source| TlsError::Pem { path: self.key.clone(), source })?;
        Ok((chain, key))
    }

    /// An error when our certificate is over; one that cannot be read that far is judged by the other side.
    fn not_expired(&self, now: SystemTime) -> Result<(), TlsError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ours = certificates(&self.certificate)?;
        let read = ours.first().and_then(|certificate| x509_parser::parse_x509_certificate(certificate).ok());
        match read {
            Some((_, ours)) if u64::try_from(ours.validity().not_after.timestamp()).unwrap_or(0) < now => {
                Err(TlsError::Expired(self.certificate.clone()))
            }
            _ => Ok(()),
        }
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        TlsError::Unusable { path: self.certificate.clone(), source }
    }

    fn stamp(&self) -> Stamp {
        [&self.authority, &self.certificate, &self.key].map(|path| {
            let of =
                |file: fs::Metadata| (file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.size());
            fs::metadata(path).ok().map(of)
        })
    }
}

/// What changes when a file is written or replaced, or a directory is exchanged by a link, as Kubernetes does.
type Stamp = [Option<(u64, u64, i64, i64, u64)>; 3];

/// What a look at the files found.
#[derive(Debug)]
pub enum Look {
    /// What is in use is what is in the files; or what cannot be used is as it was at the last look.
    Same,
    /// They changed, and are in use from now on.
    Loaded,
    /// They changed and cannot be used; what was loaded before is.
    Failed(TlsError),
}

/// What was made of files, and is made again when they change.
#[derive(Debug)]
pub struct Reloading<C> {
    files: Files,
    make: fn(&Files) -> Result<C, TlsError>,
    state: Mutex<State<C>>,
}

#[derive(Debug)]
struct State<C> {
    current: Arc<C>,
    seen: Stamp,
}

impl<C> Reloading<C> {
    /// Reads the files; `make` is [`Files::server`] or [`Files::client`].
    pub fn open(files: Files, make: fn(&Files) -> Result<C, TlsError>) -> Result<Self, TlsError> {
        let (made, seen) = load(&files, make);
        let state = Mutex::new(State { current: Arc::new(made?), seen });
        Ok(Self { files, make, state })
    }

    /// What to use for the next connection.
    pub fn current(&self) -> Arc<C> {
        Arc::clone(&self.state().current)
    }

    /// Looks whether the files changed; call it every few seconds.
    pub fn check(&self) -> Look {
        if self.files.stamp() == self.state().seen {
            return Look::Same;
        }
        // At the start an expired one is better than none: a server may not look. Later the former one is.
        let make = |files: &Files| {
            files.not_expired(SystemTime::now())?;
            (self.make)(files)
        };
        let (made, seen) = load(&self.files, make);
        let mut state = self.state();
        match made {
            Ok(made) => {
                *state = State { current: Arc::new(made), seen };
                Look::Loaded
            }
            // The next look tries again.
            Err(TlsError::Changing) => Look::Same,
            Err(error) => {
                state.seen = seen;
                Look::Failed(error)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The three files as they were at one time: a key of one pair and a certificate of the next do not fit.
fn load<C>(files: &Files, make: impl Fn(&Files) -> Result<C, TlsError>) -> (Result<C, TlsError>, Stamp) {
    let before = files.stamp();
    let made = make(files);
    let made = if files.stamp() == before { made } else { Err(TlsError::Changing) };
    (made, before)
}

/// The one provider of this project; not the process's default, which a program may have set to anything.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(bytes)
}
