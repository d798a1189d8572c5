//! A second door of a test's broker: TLS, a password, and rights.
//!
//! ```text
//!   PLAINTEXT  ─ everybody may everything: Kafka's own tools
//!   SASL_SSL   ─ certificate for 127.0.0.1, SCRAM-SHA-512 or PLAIN, ACLs: the node under test
//! ```
//! The certificate is made by Java's keytool and signs itself, so it is its own authority.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Who the node under test is to the broker.
pub const USER: &str = "app";
/// Its password.
pub const PASSWORD: &str = "not-a-secret";

/// What a client needs to come in.
#[derive(Clone, Debug)]
pub struct Guard {
    pub(crate) port: u16,
    keys: PathBuf,
    /// The broker's certificate, PEM: what a client trusts.
    pub certificate: PathBuf,
    /// Another one, for the same address, that the broker does not have.
    pub other_certificate: PathBuf,
}

impl Guard {
    /// Makes certificates in `folder`.
    ///
    /// # Errors
    /// A sentence: keytool failed.
    pub(crate) fn make(folder: &Path, port: u16) -> Result<Self, String> {
        let keys = folder.join("broker.p12");
        let certificate = made(&keys, &folder.join("broker.pem"))?;
        let other_certificate = made(&folder.join("other.p12"), &folder.join("other.pem"))?;
        Ok(Self { port, keys, certificate, other_certificate })
    }

    /// `host:port`, for clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lines of `kafka.options`.
    pub fn options(&self, mechanism: &str, password: &str, certificate: &Path) -> String {
        [
            "security.protocol=SASL_SSL".to_owned(),
            format!("ssl.ca.location={}", certificate.display()),
            format!("sasl.mechanism={mechanism}"),
            format!("sasl.username={USER}"),
            format!("sasl.password={password}"),
        ]
        .join("\\n")
    }

    /// What goes into the broker's properties.
    pub(crate) fn properties(&self) -> String {
        let keys = self.keys.display();
        format!(
            "inter.broker.listener.name=PLAINTEXT\n\
             ssl.keystore.type=PKCS12\n\
             ssl.keystore.location={keys}\n\
             ssl.keystore.password={PASSWORD}\n\
             sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n"
        )
    }

    /// What the broker's storage is formatted with.
    pub(crate) fn credentials() -> String {
        format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]")
    }
}

/// A key pair in `keys`, and its certificate.
fn made(keys: &Path, certificate: &Path) -> Result<PathBuf, String> {
    let keytool = |arguments: &[&str]| -> Result<(), String> {
        let output = Command::new("keytool")
            .args(arguments)
            .args(["-alias", "broker", "-storetype", "PKCS12", "-storepass", PASSWORD])
            .arg("-keystore")
            .arg(keys)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("keytool did not start: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("keytool failed:\n{}", String::from_utf8_lossy(&output.stdout)))
    };
    let replaced = |error: io::Error| format!("{}: {error}", keys.display());
    if keys.exists() {
        fs::remove_file(keys).map_err(replaced)?;
    }
    keytool(&[
        "-genkeypair",
        "-keyalg",
        "EC",
        "-groupname",
        "secp256r1",
        "-dname",
        "CN=broker",
        "-ext",
        "SAN=IP:127.0.0.1",
        "-validity",
        "30",
    ])?;
    keytool(&["-exportcert", "-rfc", "-file", &certificate.display().to_string()])?;
    Ok(certificate.to_owned())
}
