//! Azure Blob Storage: `az://CONTAINER/PREFIX`, with the variables `AZURE_…` that its tools know.

use std::sync::Arc;

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use snapkit_core::error::{Error, Reason, Result};

use super::{ObjectSink, url};
use crate::settings::Settings;

/// What the tools of Azure call it, and what the client does.
const OTHER_NAMES: [(&str, AzureConfigKey); 2] = [
    ("AZURE_STORAGE_ACCOUNT", AzureConfigKey::AccountName),
    ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey),
];

pub(super) fn open(text: &str, settings: &Settings) -> Result<ObjectSink> {
    let (container, prefix) = url::parts(text, "az")?;
    let location = url::location("az", container, &prefix);
    if settings.get("AZURE_STORAGE_CONNECTION_STRING").is_some() {
        return Err(Error::new(
            Reason::Unsupported,
            "AZURE_STORAGE_CONNECTION_STRING is not known here: set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY",
        ));
    }
    let mut builder = MicrosoftAzureBuilder::new();
    let mut client = url::client();
    for (name, value) in settings.variables("AZURE_") {
        let other = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, key)| *key);
        let key = other.or_else(|| name.to_ascii_lowercase().parse().ok());
        match key {
            // These are decided here.
            None | Some(AzureConfigKey::ContainerName | AzureConfigKey::Client(_)) => {}
            Some(key) => {
                // Whoever writes an address without TLS means it, as for a store on the same machine.
                if matches!(key, AzureConfigKey::Endpoint) {
                    let is_plain =
                        value.get(..7).is_some_and(|s| s.eq_ignore_ascii_case("http://"));
                    client = client.with_allow_http(is_plain);
                }
                builder = builder.with_config(key, value);
            }
        }
    }
    let store = builder
        .with_container_name(container)
        .with_client_options(client)
        .with_retry(url::no_retries())
        .build()
        .map_err(|e| url::unusable(&location, e))?;
    Ok(ObjectSink::new(Arc::new(store), prefix, location, settings.requests()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        Settings::new(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), None)
    }

    #[test]
    fn a_container_is_opened_without_asking_it() {
        let known =
            settings(&[("AZURE_STORAGE_ACCOUNT", "acme"), ("AZURE_STORAGE_KEY", "aHVudGVyMg==")]);
        let sink = open("az://backups/shop", &known).unwrap();
        assert_eq!(sink.info.location, "az://backups/shop");
        assert!(!format!("{sink:?}").contains("aHVudGVyMg"));
        let told = |variables| {
            let e = open("az://backups", &settings(variables)).unwrap_err();
            format!("{} ({})", e.chain(), e.reason())
        };
        insta::assert_snapshot!(told(&[]), @"the store cannot be used like this (location=az://backups): Generic MicrosoftAzure error: Account must be specified (invalid-config)");
        insta::assert_snapshot!(told(&[("AZURE_STORAGE_CONNECTION_STRING", "x")]), @"AZURE_STORAGE_CONNECTION_STRING is not known here: set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY (unsupported)");
    }
}
