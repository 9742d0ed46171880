//! S3, and stores that speak its language: where, with what credentials, how patiently.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use snapkit_core::error::{Error, Reason, Result};

use super::profile::{self, Places};
use super::{ObjectSink, url};
use crate::settings::Settings;

/// The variables, completed by those of the profile where they do not say it themselves.
fn complete(settings: &Settings) -> Result<BTreeMap<String, String>> {
    let mut all = settings.variables("AWS_");
    let get = |name: &str| settings.get(name);
    let named = get("AWS_PROFILE").or_else(|| get("AWS_DEFAULT_PROFILE"));
    let given = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    let has_credentials = named.is_none() && given.iter().any(|name| get(name).is_some());
    let place = |variable: &str, file: &str| {
        let in_home = || settings.home().map(|home| home.join(".aws").join(file));
        get(variable).map(PathBuf::from).or_else(in_home).unwrap_or_default()
    };
    let places = Places {
        credentials: place("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        config: place("AWS_CONFIG_FILE", "config"),
    };
    let name = named.unwrap_or("default");
    // Of a profile whose credentials are not needed it does not matter where it has them from.
    let Some(profile) = profile::read(&places, name, !has_credentials)? else {
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
    if named.is_some() && profile.contains_key("aws_access_key_id") {
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
            if has_credentials && setting.starts_with("aws_") {
                continue;
            }
            let known = variable == "AWS_REGION" && all.contains_key("AWS_DEFAULT_REGION");
            if !known {
                all.entry(variable.to_owned()).or_insert_with(|| value.clone());
            }
        }
    }
    Ok(all)
}

/// What the tools of AWS know and this client does not: to be silent about it would end at another place, or with
/// other credentials.
const NOT_KNOWN: [(&str, &str); 5] = [
    ("AWS_CA_BUNDLE", "add the certificate to those that the system trusts"),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "set AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    ("AWS_S3_EXPRESS", "use a bucket of another storage class"),
    ("AWS_USE_FIPS_ENDPOINT", "set AWS_ENDPOINT_URL to that endpoint"),
    ("AWS_USE_DUALSTACK_ENDPOINT", "set AWS_ENDPOINT_URL to that endpoint"),
];

fn refuse_unknown(variables: &BTreeMap<String, String>) -> Result<()> {
    let is_on =
        |name: &str| variables.get(name).is_some_and(|value| !value.eq_ignore_ascii_case("false"));
    if let Some((name, instead)) = NOT_KNOWN.iter().find(|(name, _)| is_on(name)) {
        let what = format!("{name} is not known here: {instead}, and unset it");
        return Err(Error::new(Reason::Unsupported, what));
    }
    if is_on("AWS_SSE_KMS_KEY_ID") && !is_on("AWS_SERVER_SIDE_ENCRYPTION") {
        let what = "AWS_SSE_KMS_KEY_ID needs AWS_SERVER_SIDE_ENCRYPTION=aws:kms";
        return Err(Error::new(Reason::InvalidConfig, what));
    }
    Ok(())
}

/// Addresses of the store, and of those that give credentials: what is none makes the library panic when it
/// is used.
fn check_addresses(variables: &BTreeMap<String, String>) -> Result<()> {
    let is_address = |name: &str| name.contains("ENDPOINT") || name.ends_with("_URI");
    for (name, value) in variables.iter().filter(|(name, _)| is_address(name)) {
        if let Err(e) = value.parse::<http::Uri>() {
            // It may hold a secret: it is not repeated.
            let what = format!("{name} is no address: write https://HOST:PORT");
            return Err(Error::new(Reason::InvalidConfig, what).caused_by(e));
        }
    }
    Ok(())
}

pub(super) fn open(text: &str, settings: &Settings) -> Result<ObjectSink> {
    let (bucket, prefix) = url::parts(text, "s3")?;
    let variables = complete(settings)?;
    refuse_unknown(&variables)?;
    check_addresses(&variables)?;
    let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .iter()
        .find_map(|name| variables.get(*name));
    let mut location = url::location("s3", bucket, &prefix);
    let mut client = url::client();
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
        .with_retry(url::no_retries())
        .build()
        .map_err(|e| url::unusable(&location, e))?;
    Ok(ObjectSink::new(Arc::new(store), prefix, location, settings.requests()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], home: Option<PathBuf>) -> Settings {
        Settings::new(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), home)
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_way_round() {
        let e =
            |variables: &[(&str, &str)]| open("s3://acme", &settings(variables, None)).unwrap_err();
        let told = NOT_KNOWN.iter().map(|(name, _)| {
            let e = e(&[(name, "true")]);
            format!("{} ({})", e.chain(), e.reason())
        });
        insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"), @"
        AWS_CA_BUNDLE is not known here: add the certificate to those that the system trusts, and unset it (unsupported)
        AWS_CONTAINER_AUTHORIZATION_TOKEN is not known here: set AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, and unset it (unsupported)
        AWS_S3_EXPRESS is not known here: use a bucket of another storage class, and unset it (unsupported)
        AWS_USE_FIPS_ENDPOINT is not known here: set AWS_ENDPOINT_URL to that endpoint, and unset it (unsupported)
        AWS_USE_DUALSTACK_ENDPOINT is not known here: set AWS_ENDPOINT_URL to that endpoint, and unset it (unsupported)
        ");
        let kms = e(&[("AWS_SSE_KMS_KEY_ID", "k")]);
        assert_eq!(kms.reason(), Reason::InvalidConfig);
        let on = [("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"), ("AWS_SSE_KMS_KEY_ID", "k")];
        open("s3://acme", &settings(&on, None)).unwrap();
        open("s3://acme", &settings(&[("AWS_USE_FIPS_ENDPOINT", "false")], None)).unwrap();
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
        assert_eq!(of(&[("AWS_ACCESS_KEY_ID", "mine")], "AWS_SECRET_ACCESS_KEY"), "");
        assert_eq!(of(&[("AWS_ACCESS_KEY_ID", "mine")], "AWS_REGION"), "r1");
        let both = [("AWS_ACCESS_KEY_ID", "mine"), ("AWS_PROFILE", "shop")];
        assert_eq!(of(&both, "AWS_ACCESS_KEY_ID"), "A");
        assert_eq!(of(&both, "AWS_SECRET_ACCESS_KEY"), "B");
        let e = complete(&settings(&[("AWS_PROFILE", "none")], home())).unwrap_err();
        assert_eq!(e.reason(), Reason::InvalidConfig);
    }
}
