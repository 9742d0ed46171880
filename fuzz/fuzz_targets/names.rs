//! Names: of objects, entries, snapshots, sources and artifacts, and times.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_core::artifact::{ArtifactName, SourceName};
use snapkit_core::context::Timestamp;
use snapkit_core::engine::{Ledger, Scope};
use snapkit_core::id::{SnapshotId, from_hex, to_hex};
use snapkit_core::key::Key;
use snapkit_core::tree::{EntryPath, escape, unescape};

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(unescape(&escape(bytes)).as_deref(), Some(bytes));
    if let Ok(path) = EntryPath::new(bytes) {
        let parts: Vec<&[u8]> = path.components().collect();
        assert!(parts.iter().all(|p| !matches!(*p, b"" | b"." | b"..") && !p.contains(&0)));
        assert!(!bytes.starts_with(b"/") && parts.join(&b'/') == bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = Key::new(text) {
        let odd = |part: &str| matches!(part, "" | "." | "..");
        assert!(!key.as_str().split('/').any(odd) && !key.as_str().contains(['\\', '\0']));
    }
    for name in [SourceName::new(text).map(String::from), ArtifactName::new(text).map(String::from)]
    {
        assert!(name.is_err() || !(text.contains('/') || matches!(text, "" | "." | "..")));
    }
    if let Ok(id) = text.parse::<SnapshotId>() {
        assert_eq!(id.as_str(), text);
    }
    if let Some(decoded) = from_hex(text) {
        assert_eq!(to_hex(&decoded), text);
    }
    if let Ok(time) = Timestamp::parse(text) {
        drop(time.to_string());
    }
    drop(Ledger::default().resolve(text, &Scope::default()));
    if let Some(decoded) = unescape(text) {
        drop(escape(&decoded));
    }
});
