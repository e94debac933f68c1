//! `droptailer certs`: an authority and pairs for those who have none.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

use crate::timestamp::date;
use crate::wire::SERVER_NAME;

const DAY: Duration = Duration::from_secs(86_400);
/// Validity begins so long ago: clocks differ.
const EARLIER: Duration = Duration::from_secs(86_400);
/// About a hundred years.
const MOST_DAYS: u32 = 36_500;

/// What to make.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Directory that gets ca.crt and ca.key, and server/ and client/ with ca.crt, tls.crt and tls.key each
    ///
    /// An authority that is there already signs the new pairs.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
    /// Replace pairs that are there already; never the authority
    #[arg(long)]
    pub renew: bool,
    /// Days for which server and client certificates are valid
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_DAYS)))]
    pub days: u32,
    /// Days for which a new authority is valid
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_DAYS)))]
    pub authority_days: u32,
    /// Also print the Secrets `droptailer-server` and `droptailer-client` for `kubectl apply -f -`
    #[arg(long)]
    pub secrets: bool,
    /// Namespace of the Secrets
    #[arg(long, default_value = "firewall")]
    pub namespace: String,
}

/// An authority, or a certificate that it signed, with its key; PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The server in the cluster, of the name `droptailer`.
    Server,
    /// The clients on firewalls.
    Client,
}

impl Holder {
    const BOTH: [Self; 2] = [Self::Server, Self::Client];

    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// Makes what is asked for, and says what it made on standard output.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let directory = &options.directory;
    let mut made = Vec::new();
    // Before anything is made, so that a mistake leaves nothing half done.
    if !options.renew {
        for file in Holder::BOTH.iter().flat_map(|holder| files(directory, *holder)) {
            if fs::symlink_metadata(&file).is_ok() {
                bail!(
                    "{} is there already: take --renew to replace it, or another --directory",
                    file.display()
                );
            }
        }
    }
    make_directory(directory)?;
    let authority = authority(options, now, &mut made)?;
    let mut pairs = Vec::new();
    for holder in Holder::BOTH {
        let pair = pair(&authority, holder, options.days, now)?;
        make_directory(&directory.join(holder.name()))?;
        let texts = [&authority.certificate, &pair.certificate, &pair.key];
        for (file, text) in files(directory, holder).into_iter().zip(texts) {
            let mode = if file.ends_with("tls.key") { 0o600 } else { 0o644 };
            write(&file, text, mode, options.renew)?;
            made.push(file);
        }
        pairs.push((holder, pair));
    }
    let mut output = io::stdout().lock();
    if options.secrets {
        for (holder, pair) in &pairs {
            output.write_all(secret(*holder, &options.namespace, &authority.certificate, pair).as_bytes())?;
        }
    } else {
        for file in made {
            writeln!(output, "{}", file.display())?;
        }
    }
    Ok(())
}

/// A new authority. Times are whole days.
pub fn new_authority(days: u32, now: SystemTime) -> anyhow::Result<Pair> {
    let mut params = params("droptailer authority", days, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(pem(&params.self_signed(&key)?, &key))
}

/// A certificate that `authority` signs.
pub fn pair(authority: &Pair, holder: Holder, days: u32, now: SystemTime) -> anyhow::Result<Pair> {
    let signer = KeyPair::from_pem(&authority.key).context("cannot use the authority's key")?;
    let issuer =
        Issuer::from_ca_cert_pem(&authority.certificate, signer).context("cannot use the authority")?;
    let name = match holder {
        Holder::Server => SERVER_NAME,
        Holder::Client => "droptailer-client",
    };
    let mut params = params(name, days, now)?;
    params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match holder {
        Holder::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Holder::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(pem(&params.signed_by(&key, &issuer)?, &key))
}

/// The Secret of a holder, as YAML.
pub fn secret(holder: Holder, namespace: &str, authority: &str, pair: &Pair) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: droptailer-{}\n  namespace: {}\ntype: kubernetes.io/tls\nstringData:\n",
        holder.name(),
        serde_json::Value::from(namespace),
    );
    for (name, pem) in [("ca.crt", authority), ("tls.crt", &pair.certificate), ("tls.key", &pair.key)] {
        text.push_str(&format!("  {name}: |\n"));
        for line in pem.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

/// The authority of the directory, made when there is none.
fn authority(options: &Options, now: SystemTime, made: &mut Vec<PathBuf>) -> anyhow::Result<Pair> {
    let [certificate, key] = ["ca.crt", "ca.key"].map(|name| options.directory.join(name));
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    if exists(&certificate) || exists(&key) {
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        return Ok(Pair { certificate: read(&certificate)?, key: read(&key)? });
    }
    let pair = new_authority(options.authority_days, now)?;
    write(&key, &pair.key, 0o600, false)?;
    write(&certificate, &pair.certificate, 0o644, false)?;
    made.extend([certificate, key]);
    Ok(pair)
}

fn params(name: &str, days: u32, now: SystemTime) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, name);
    let day = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = date(since.as_secs());
        anyhow::Ok(date_time_ymd(i32::try_from(year)?, u8::try_from(month)?, u8::try_from(day)?))
    };
    params.not_before = day(now.checked_sub(EARLIER).unwrap_or(now))?;
    params.not_after = day(now.checked_add(DAY * days).context("that many days are too many")?)?;
    Ok(params)
}

fn pem(certificate: &Certificate, key: &KeyPair) -> Pair {
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn files(directory: &Path, holder: Holder) -> [PathBuf; 3] {
    ["ca.crt", "tls.crt", "tls.key"].map(|name| directory.join(holder.name()).join(name))
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Never readable by more than `mode` says, not even while it is written; whole or not at all when it replaces another.
fn write(path: &Path, text: &str, mode: u32, replace: bool) -> anyhow::Result<()> {
    let target = if replace { path.with_extension("new") } else { path.to_owned() };
    if replace {
        // One that a killed run left.
        let _ = fs::remove_file(&target);
    }
    let written =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&target).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    let written = written.and_then(|()| if replace { fs::rename(&target, path) } else { Ok(()) });
    written.with_context(|| format!("cannot write {}", path.display()))
}
