//! Servers that speak TLS.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::artifact::SourceName;
use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::source::Source as _;
use snapkit_source_redis::{Redis, RedisConfig};

use crate::rdb::fill;
use crate::server::Server;

/// An authority, and a certificate that it has signed for this machine.
fn certificates(dir: &Path) {
    let script = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out request.pem
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > names
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem
    "#;
    let made = Command::new("sh").arg("-ec").arg(script).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

async fn facts(port: u16, dir: &Path, files: &[(&str, &str)]) -> Result<i64> {
    let mut settings = serde_json::json!({ "url": format!("rediss://127.0.0.1:{port}") });
    for (name, file) in files {
        settings[name] = dir.join(file).to_str().unwrap().into();
    }
    let config: RedisConfig = serde_json::from_value(settings).unwrap();
    let source = Redis::new(SourceName::new("cache").unwrap(), config)?;
    let facts = source.facts(&Context::system().within(Duration::from_secs(30))).await?;
    Ok(facts.0["keys"].value.to_string().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_its_client_prove_who_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let Ok(openssl) = Command::new("openssl").arg("version").output() else {
        assert!(std::env::var_os("CI").is_none(), "openssl must not be missing in CI");
        return;
    };
    assert!(openssl.status.success());
    certificates(dir.path());
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (port_text, cert, key, ca) =
        (port.to_string(), place("cert.pem"), place("key.pem"), place("ca.pem"));
    let settings = [
        "--repl-diskless-sync-delay",
        "0",
        "--tls-port",
        &port_text,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ];
    let Some(server) = Server::start(&settings) else { return };
    fill(&mut server.client());
    let all = [("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")];
    assert!(facts(port, dir.path(), &all).await.unwrap() > 20);
    let mut said = String::new();
    for (what, files) in [
        ("an unknown authority", &[("cert", "cert.pem"), ("key", "key.pem")][..]),
        ("no certificate", &[("ca", "ca.pem")]),
        ("half a certificate", &[("ca", "ca.pem"), ("cert", "cert.pem")]),
        ("no PEM", &[("ca", "names")]),
        ("a file that is not there", &[("ca", "none")]),
        ("another's key", &[("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "ca.key")]),
    ] {
        let e = facts(port, dir.path(), files).await.unwrap_err();
        let text = e
            .chain()
            .replace(&port.to_string(), "PORT")
            .replace(dir.path().to_str().unwrap(), "DIR");
        said += &format!("{what}: {text} ({})\n", e.reason());
    }
    let config = RedisConfig::new(format!("rediss://no_host!:{port}"));
    let odd = Redis::new(SourceName::new("cache").unwrap(), config).unwrap();
    let e = odd.facts(&Context::system().within(Duration::from_secs(30))).await.unwrap_err();
    said += &format!(
        "an odd host: {} ({})\n",
        e.chain().replace(&port.to_string(), "PORT"),
        e.reason()
    );
    assert_snapshot!(said, @"
    an unknown authority: TLS with the server is not possible: check `ca`, `cert` and `key`, and that it speaks TLS there (server=127.0.0.1:PORT): invalid peer certificate: UnknownIssuer (invalid-config)
    no certificate: TLS with the server is not possible: check `ca`, `cert` and `key`, and that it speaks TLS there (server=127.0.0.1:PORT): received fatal alert: CertificateRequired (invalid-config)
    half a certificate: `cert` and `key` belong together (source=cache) (invalid-config)
    no PEM: there is no certificate in the file (path=DIR/names) (invalid-config)
    a file that is not there: a file of certificates or keys cannot be used: it must be PEM (path=DIR/none): I/O error: No such file or directory (os error 2) (invalid-config)
    another's key: TLS cannot be used like this: keys may not be consistent: KeyMismatch (invalid-config)
    an odd host: `url`: a certificate cannot be of such a host (host=no_host!): invalid dns name (invalid-config)
    ");
}
