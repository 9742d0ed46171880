//! What is known of a store beside its URL.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;

use snapkit_core::secret::{Secret, SecretString};

/// Variables of stores begin so; no other is looked at.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Requests that a store is given at once, unless set.
const REQUESTS: usize = 8;

/// What is known of a store beside its URL: the variables that its own tools know. For S3
/// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE`, `AWS_REGION`,
/// `AWS_ENDPOINT_URL` and the others that concern a store.
#[derive(Clone)]
pub struct Settings {
    variables: BTreeMap<String, SecretString>,
    home: Option<PathBuf>,
    requests: usize,
    rates: Rates,
}

/// How quickly a store is written to and read from at most, in bytes per second; `None` is as quickly as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// What is put.
    pub upload: Option<NonZeroU64>,
    /// What is read.
    pub download: Option<NonZeroU64>,
}

impl Settings {
    /// The variables among these that concern stores, and the home directory in which profiles are looked
    /// for.
    #[must_use]
    pub fn new(
        variables: impl IntoIterator<Item = (String, String)>,
        home: Option<PathBuf>,
    ) -> Self {
        let concerns = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let variables = variables
            .into_iter()
            .filter(|(name, value)| concerns(name) && !value.is_empty())
            .map(|(name, value)| (name, Secret::new(value)))
            .collect();
        Self { variables, home, requests: REQUESTS, rates: Rates::default() }
    }

    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let home = std::env::var_os("HOME").map(PathBuf::from);
        Self::new(std::env::vars_os().filter_map(text), home)
    }

    /// How quickly a store is written to and read from. It is waited between objects, so that what counts is the
    /// average over some of them, of up to 16 MiB each.
    #[must_use]
    pub fn with_rates(mut self, rates: Rates) -> Self {
        self.rates = rates;
        self
    }

    pub(crate) fn rates(&self) -> Rates {
        self.rates
    }

    /// How many requests a store is given at once: at least 1; 8 unless set.
    #[must_use]
    pub fn with_requests(mut self, requests: usize) -> Self {
        self.requests = requests.max(1);
        self
    }

    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.expose().as_str())
    }

    /// The variables whose names begin so.
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(crate) fn variables(&self, prefix: &str) -> BTreeMap<String, String> {
        let of = self.variables.iter().filter(|(name, _)| name.starts_with(prefix));
        of.map(|(name, value)| (name.clone(), value.expose().clone())).collect()
    }

    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(crate) fn home(&self) -> Option<&std::path::Path> {
        self.home.as_deref()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::of_process()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.variables.keys().collect();
        f.debug_struct("Settings")
            .field("variables", &names)
            .field("home", &self.home)
            .field("requests", &self.requests)
            .finish()
    }
}
