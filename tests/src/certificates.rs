//! Certificates for TLS, made anew for each test.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// An authority, and the folder with its certificate and those that it has signed.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// The files of a certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// It, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority.
    ///
    /// # Panics
    /// When the system has no folder for it.
    #[expect(clippy::new_without_default, reason = "every one is another")]
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("there are no names to be wrong");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of tests");
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.self_signed(&key).expect("a key can sign itself");
        let folder = tempfile::tempdir().expect("a folder can be made");
        fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("a file can be written");
        Authority { issuer: Issuer::new(params, key), folder }
    }

    /// The file with its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a host that is valid now.
    ///
    /// # Panics
    /// When the name can't be one of a host.
    pub fn sign(&self, name: &str) -> Certificate {
        self.sign_for(name, Duration::from_secs(3600))
    }

    /// A certificate for a host that is valid no more.
    ///
    /// # Panics
    /// When the name can't be one of a host.
    pub fn sign_expired(&self, name: &str) -> Certificate {
        self.sign_for(name, Duration::ZERO)
    }

    /// The options of a server that presents a certificate.
    pub fn options(certificate: &Certificate) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("a path of the tests is UTF-8").to_owned();
        let options = ["--listen", "127.0.0.1:0", "--tls-cert"].map(str::to_owned);
        let files = [path(&certificate.certificate), "--tls-key".to_owned(), path(&certificate.key)];
        options.into_iter().chain(files).collect()
    }

    fn sign_for(&self, name: &str, time: Duration) -> Certificate {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("it is a name of a host");
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = (now - Duration::from_secs(1800) + time).into();
        let key = KeyPair::generate().expect("a key can be made");
        let signed = params.signed_by(&key, &self.issuer).expect("an authority can sign");
        let file = |kind: &str| tempfile::Builder::new().suffix(kind).tempfile_in(self.folder.path());
        let written = |kind: &str, text: String| -> PathBuf {
            let (_, path) = file(kind).expect("a file can be made").keep().expect("it stays");
            fs::write(&path, text).expect("a file can be written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
            path
        };
        Certificate { certificate: written(".pem", signed.pem()), key: written(".key", key.serialize_pem()) }
    }
}
