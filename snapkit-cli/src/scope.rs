//! Which snapshots `latest` and times speak of, in words.

use std::collections::BTreeSet;

use snapkit_core::engine::{Ledger, Scope};

use crate::format::count;

/// How many are named in a sentence.
const NAMED: usize = 5;

/// `stack shop, any host, set full`
pub(crate) fn describe(scope: &Scope) -> String {
    let part = |what: &str, value: &Option<String>| match value {
        Some(value) => format!("{what} {value}"),
        None => format!("any {what}"),
    };
    [part("stack", &scope.stack), part("host", &scope.host), part("set", &scope.set)].join(", ")
}

/// What to do if what is meant is not in the scope: where snapshots are.
pub(crate) fn elsewhere(ledger: &Ledger, scope: &Scope) -> String {
    let inside = ledger.snapshots.iter().filter(|s| scope.holds(s)).count() as u64;
    if inside > 0 {
        let is = if inside == 1 { "is" } else { "are" };
        let snapshots = count(inside, "snapshot", "snapshots");
        return format!("there {is} {snapshots} among these; `snapkit list` shows all");
    }
    let all: BTreeSet<_> = ledger
        .snapshots
        .iter()
        .map(|s| format!("{}@{} (set {})", s.stack, s.host, s.set))
        .collect();
    if all.is_empty() && !ledger.sealed.is_empty() {
        let sealed = count(ledger.sealed.len() as u64, "snapshot is", "snapshots are");
        return format!("{sealed} there that this credential cannot read: use a full one");
    }
    if all.is_empty() {
        return "there are no snapshots yet: `snapkit create` makes one".to_owned();
    }
    format!(
        "there are snapshots of {}; choose with --stack-name, --host, --any-host and --set",
        enumerate(&all)
    )
}

/// The stacks that are meant alike, if the scope names none and there is more than one.
pub(crate) fn rivals(ledger: &Ledger, scope: &Scope) -> Option<String> {
    if scope.stack.is_some() {
        return None;
    }
    let stacks: BTreeSet<_> =
        ledger.snapshots.iter().filter(|s| scope.holds(s)).map(|s| s.stack.clone()).collect();
    (stacks.len() > 1).then(|| enumerate(&stacks))
}

fn enumerate(names: &BTreeSet<String>) -> String {
    let mut named: Vec<_> = names.iter().take(NAMED).cloned().collect();
    if names.len() > NAMED {
        named.push(format!("{} more", names.len() - NAMED));
    }
    named.join(", ")
}
