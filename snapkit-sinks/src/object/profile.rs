//! Profiles in the files of the AWS command line: static keys, a region and an endpoint. What a profile
//! gets from another program or service is refused, with the way round.
//!
//! Format: <https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html>.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use snapkit_core::error::{Error, IoContext as _, Reason, Result};

/// The largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Ways to a credential that are another program's.
const ELSEWHERE: [&str; 7] = [
    "sso_session",
    "sso_start_url",
    "role_arn",
    "credential_process",
    "web_identity_token_file",
    "credential_source",
    "login_session",
];

/// The settings of a profile, by the names of the files.
pub(super) type Profile = BTreeMap<String, String>;

/// Where the files are.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) credentials: PathBuf,
    pub(super) config: PathBuf,
}

/// Read a profile. `None` if neither file has it. Whoever needs no credentials of it may have one that has them
/// from elsewhere.
pub(super) fn read(places: &Places, name: &str, for_credentials: bool) -> Result<Option<Profile>> {
    let mut found: Option<Profile> = None;
    // What the credentials file says counts more.
    for (path, section) in [
        (
            &places.config,
            if name == "default" { name.to_owned() } else { format!("profile {name}") },
        ),
        (&places.credentials, name.to_owned()),
    ] {
        let Some(text) = contents(path)? else { continue };
        if let Some(settings) = parse(&text, &section) {
            found.get_or_insert_default().extend(settings);
        }
    }
    let Some(profile) = found else { return Ok(None) };
    // Keys beside a role are those with which the role is taken, and not the role's.
    if for_credentials
        && (!profile.contains_key("aws_access_key_id") || profile.contains_key("role_arn"))
        && let Some(way) = ELSEWHERE.iter().find(|k| profile.contains_key(**k))
    {
        return Err(Error::new(
            Reason::Unsupported,
            format!(
                "the profile {name} gets its credentials by `{way}`, which is not known here; run \
                 `eval \"$(aws configure export-credentials --profile {name} --format env)\"` first, \
                 and unset AWS_PROFILE"
            ),
        ));
    }
    Ok(Some(profile))
}

fn contents(path: &Path) -> Result<Option<String>> {
    let what = || format!("cannot read {}", path.display());
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(what(), e)),
        Ok(meta) if meta.len() > LARGEST => {
            return Err(Error::new(Reason::InvalidConfig, "the file is too large")
                .with("path", path.display()));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).doing(what).map(Some)
}

/// The settings of one section.
fn parse(text: &str, section: &str) -> Option<Profile> {
    let mut found: Option<Profile> = None;
    let mut inside = false;
    for line in text.lines() {
        // Indented lines belong to a nested setting.
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            let words: Vec<_> = name.split_whitespace().collect();
            inside = words.join(" ") == section;
            if inside {
                found.get_or_insert_default();
            }
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && let Some(found) = &mut found
        {
            // A comment after a value begins with a space and a hash.
            let value = value.split(" #").next().unwrap_or_default().trim();
            if !value.is_empty() {
                found.insert(key.trim().to_ascii_lowercase(), value.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read_as_the_aws_command_line_reads_them() {
        let text = "# x\n[default]\nregion = eu-west-1\ns3 =\n  max_concurrent_requests = 20\n\n\
                    [ profile  shop ]\nregion=us-east-2 # there\nendpoint_url = http://x#y\n";
        assert_eq!(
            parse(text, "default").unwrap(),
            [("region".to_owned(), "eu-west-1".to_owned())].into()
        );
        let shop = parse(text, "profile shop").unwrap();
        assert_eq!(shop["region"], "us-east-2");
        assert_eq!(shop["endpoint_url"], "http://x#y");
        assert!(parse(text, "profile other").is_none());
    }

    #[test]
    fn what_is_another_programs_is_refused_with_the_way_round() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            credentials: dir.path().join("credentials"),
            config: dir.path().join("config"),
        };
        assert!(read(&places, "shop", true).unwrap().is_none());
        std::fs::write(&places.config, "[profile shop]\nsso_session = corp\nregion = eu-west-1\n")
            .unwrap();
        let e = read(&places, "shop", true).unwrap_err();
        assert_eq!(e.reason(), Reason::Unsupported);
        assert!(
            e.message().contains("sso_session") && e.message().contains("export-credentials"),
            "{e}"
        );
        std::fs::write(
            &places.credentials,
            "[shop]\naws_access_key_id = A\naws_secret_access_key = B\n",
        )
        .unwrap();
        let shop = read(&places, "shop", true).unwrap().unwrap();
        assert_eq!(
            (shop["region"].as_str(), shop["aws_access_key_id"].as_str()),
            ("eu-west-1", "A")
        );
    }
}
