//! Google Cloud Storage: `gs://BUCKET/PREFIX`, with the variables `GOOGLE_…` that its tools know.

use std::sync::Arc;

use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use snapkit_core::error::Result;

use super::{ObjectSink, url};
use crate::settings::Settings;

pub(super) fn open(text: &str, settings: &Settings) -> Result<ObjectSink> {
    let (bucket, prefix) = url::parts(text, "gs")?;
    let location = url::location("gs", bucket, &prefix);
    let mut builder = GoogleCloudStorageBuilder::new();
    let mut client = url::client();
    for (name, value) in settings.variables("GOOGLE_") {
        match name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
            // These are decided here.
            Ok(GoogleConfigKey::Bucket | GoogleConfigKey::Client(_)) | Err(_) => {}
            Ok(key) => {
                // Whoever writes an address without TLS means it, as for a store on the same machine.
                if matches!(key, GoogleConfigKey::BaseUrl) {
                    let is_plain =
                        value.get(..7).is_some_and(|s| s.eq_ignore_ascii_case("http://"));
                    client = client.with_allow_http(is_plain);
                }
                builder = builder.with_config(key, value);
            }
        }
    }
    let store = builder
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_retry(url::no_retries())
        .build()
        .map_err(|e| url::unusable(&location, e))?;
    Ok(ObjectSink::new(Arc::new(store), prefix, location, settings.requests()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_opened_without_asking_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.json");
        let text = r#"{"type":"service_account","client_email":"x@y.z","private_key_id":"k",
            "private_key":"private_key","disable_oauth":true}"#;
        std::fs::write(&key, text).unwrap();
        let name = "GOOGLE_SERVICE_ACCOUNT".to_owned();
        let settings = Settings::new([(name, key.display().to_string())], None);
        let sink = open("gs://acme-backups/shop", &settings).unwrap();
        assert_eq!(sink.info.location, "gs://acme-backups/shop");
        assert!(open("s3://acme-backups/shop", &settings).is_err());
    }
}
