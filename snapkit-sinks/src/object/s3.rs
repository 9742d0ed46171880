//! S3, and stores that speak its language: where, with what credentials, how patiently.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path;
use snapkit_core::error::{Error, Reason, Result};

use super::ObjectSink;
use super::profile::{self, Places};
use crate::settings::Settings;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a store may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(60);

/// How long one request may take: 64 MiB at 1 Mbit/s.
const REQUEST: Duration = Duration::from_secs(600);

/// The variables, completed by those of the profile where they do not say it themselves.
fn complete(settings: &Settings) -> Result<BTreeMap<String, String>> {
    let mut all = settings.variables("AWS_");
    let get = |name: &str| settings.get(name);
    let named = get("AWS_PROFILE").or_else(|| get("AWS_DEFAULT_PROFILE"));
    let given = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    if named.is_none() && given.iter().any(|name| get(name).is_some()) {
        return Ok(all);
    }
    let place = |variable: &str, file: &str| {
        let in_home = || settings.home().map(|home| home.join(".aws").join(file));
        get(variable).map(PathBuf::from).or_else(in_home).unwrap_or_default()
    };
    let places = Places {
        credentials: place("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        config: place("AWS_CONFIG_FILE", "config"),
    };
    let name = named.unwrap_or("default");
    let Some(profile) = profile::read(&places, name)? else {
        return match named {
            None => Ok(all),
            Some(name) => Err(Error::new(
                Reason::InvalidConfig,
                format!("there is no profile {name:?}: check AWS_PROFILE"),
            )
            .with("credentials", places.credentials.display())
            .with("config", places.config.display())),
        };
    };
    if named.is_some() {
        // A profile that is asked for by name counts more than keys that happen to be set.
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
            all.remove(name);
        }
    }
    for (setting, variable) in [
        ("aws_access_key_id", "AWS_ACCESS_KEY_ID"),
        ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
        ("aws_session_token", "AWS_SESSION_TOKEN"),
        ("region", "AWS_REGION"),
        ("endpoint_url", "AWS_ENDPOINT_URL"),
    ] {
        if let Some(value) = profile.get(setting) {
            let known = variable == "AWS_REGION" && all.contains_key("AWS_DEFAULT_REGION");
            if !known {
                all.entry(variable.to_owned()).or_insert_with(|| value.clone());
            }
        }
    }
    Ok(all)
}

/// The bucket and what is below it of `s3://BUCKET/PREFIX`.
fn parts(url: &str) -> Result<(&str, Path)> {
    let bad = |why: &str| Error::invalid(format!("{why}: write s3://BUCKET/PREFIX"));
    let rest = url
        .get(..5)
        .filter(|scheme| scheme.eq_ignore_ascii_case("s3://"))
        .map(|_| &url[5..])
        .ok_or_else(|| bad("this is no URL of S3"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        // The rest may hold a secret: it is not repeated.
        return Err(bad("credentials do not belong into a URL"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if bucket.len() < 3 || bucket.len() > 255 || !bucket.chars().all(fits) {
        return Err(bad("the URL names no bucket"));
    }
    if url.contains(['?', '#']) {
        return Err(bad("a repository's URL has no query and no fragment"));
    }
    let prefix = Path::parse(prefix.trim_end_matches('/'))
        .map_err(|e| bad("the URL's path has empty, relative or odd parts").caused_by(e))?;
    Ok((bucket, prefix))
}

pub(super) fn open(url: &str, settings: &Settings) -> Result<ObjectSink> {
    let (bucket, prefix) = parts(url)?;
    let variables = complete(settings)?;
    let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .iter()
        .find_map(|name| variables.get(*name));
    let mut location = format!("s3://{bucket}");
    if !prefix.as_ref().is_empty() {
        location.push('/');
        location.push_str(prefix.as_ref());
    }
    let mut client = ClientOptions::new()
        .with_connect_timeout(CONNECT)
        .with_read_timeout(SILENCE)
        .with_timeout(REQUEST);
    if let Some(endpoint) = endpoint {
        let (scheme, host) = endpoint.split_once("://").ok_or_else(|| {
            Error::new(Reason::InvalidConfig, "AWS_ENDPOINT_URL is no URL: write https://HOST:PORT")
        })?;
        if host.contains('@') {
            let what = "credentials do not belong into AWS_ENDPOINT_URL";
            return Err(Error::new(Reason::InvalidConfig, what));
        }
        // An address that is written with http is meant so.
        client = client.with_allow_http(scheme.eq_ignore_ascii_case("http"));
        location.push_str(" at ");
        location.push_str(host.trim_end_matches('/'));
    }
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &variables {
        match name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            // These are decided here.
            Ok(AmazonS3ConfigKey::Bucket | AmazonS3ConfigKey::ConditionalPut) => {}
            Ok(AmazonS3ConfigKey::Client(_)) => {}
            Ok(key) => builder = builder.with_config(key, value),
            // Not everything that AWS tools know concerns a store of objects.
            Err(_) => {}
        }
    }
    let store = builder
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // One at a time: whoever may delete one object need not be allowed to delete many.
        .with_disable_bulk_delete(true)
        // Attempts are counted where they can be cancelled.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .build()
        .map_err(|e| {
            let told = Error::new(Reason::InvalidConfig, "the store cannot be used like this");
            told.with("location", &location).caused_by(e)
        })?;
    Ok(ObjectSink::new(Arc::new(store), prefix, location, settings.requests()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], home: Option<PathBuf>) -> Settings {
        Settings::new(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), home)
    }

    #[test]
    fn urls_are_taken_apart() {
        let (bucket, prefix) = parts("s3://acme-backups/shop/a b/").unwrap();
        assert_eq!((bucket, prefix.as_ref()), ("acme-backups", "shop/a b"));
        assert_eq!(parts("S3://acme").unwrap().1.as_ref(), "");
        for bad in [
            "s3://",
            "s3:///x",
            "s3://ab",
            "s3://a b/",
            "s3://acme/../x",
            "s3://acme/a//b",
            "s3://acme?x",
            "é",
        ] {
            assert_eq!(parts(bad).unwrap_err().reason(), Reason::InvalidArgument, "{bad}");
        }
        let e = parts("s3://key:hunter2@acme/x").unwrap_err();
        assert!(!format!("{e:?}").contains("hunter2"));
    }

    #[test]
    fn a_place_is_told_without_secrets() {
        let settings = settings(
            &[
                ("AWS_ACCESS_KEY_ID", "AKIA"),
                ("AWS_SECRET_ACCESS_KEY", "hunter2"),
                ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/"),
                ("PATH", "/bin"),
            ],
            None,
        );
        assert!(!format!("{settings:?}").contains("hunter2"));
        let sink = open("s3://acme/x", &settings).unwrap();
        assert_eq!(sink.info.location, "s3://acme/x at 127.0.0.1:9000");
        assert!(!format!("{sink:?}").contains("hunter2"));
    }

    #[test]
    fn a_profile_fills_what_is_not_said() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let file = home.path().join(".aws/credentials");
        let text = "[default]\naws_access_key_id = D\naws_secret_access_key = E\nregion = r1\n\
                    [shop]\naws_access_key_id = A\naws_secret_access_key = B\n";
        std::fs::write(file, text).unwrap();
        let home = || Some(home.path().to_owned());
        let of = |variables: &[(&str, &str)], name: &str| {
            complete(&settings(variables, home())).unwrap().get(name).cloned().unwrap_or_default()
        };
        assert_eq!(of(&[], "AWS_ACCESS_KEY_ID"), "D");
        assert_eq!(of(&[("AWS_DEFAULT_REGION", "mine")], "AWS_REGION"), "");
        assert_eq!(of(&[("AWS_ACCESS_KEY_ID", "mine")], "AWS_ACCESS_KEY_ID"), "mine");
        let both = [("AWS_ACCESS_KEY_ID", "mine"), ("AWS_PROFILE", "shop")];
        assert_eq!(of(&both, "AWS_ACCESS_KEY_ID"), "A");
        assert_eq!(of(&both, "AWS_SECRET_ACCESS_KEY"), "B");
        let e = complete(&settings(&[("AWS_PROFILE", "none")], home())).unwrap_err();
        assert_eq!(e.reason(), Reason::InvalidConfig);
    }
}
